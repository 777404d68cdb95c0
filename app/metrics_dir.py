"""Prepare the directory through which the workers of one gunicorn share their metrics, and keep it (B41).

    share()         as the configuration is read, in a reload too
    check()         in a worker that starts, before it imports the application: the directory may have gone
    trouble()       why others do not see what this worker counts: into ``troubles``
    adopt()         once the arbiter has its pid (``--daemon`` gives it another one)
    forget(pid)     a worker is gone: the files of its live gauges go, those of its counters stay
    add_restart()   and another one takes its place: one byte more in ``restarts``
    restarts()      how many so far
    files()         what the workers have counted

The arbiter does this without prometheus_client: workers that it forks from then on would inherit that with its
locks, imported before gevent could patch, and the arbiter would have metrics of its own.

Runs on: start-up, in gunicorn's arbiter, before anything imports prometheus_client; the last two in workers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_OWNER = "PROMETHEUS_MULTIPROC_OWNER"
_RESTARTS = "restarts"
_PREFIX: Final = "penstock-metrics-"
_MEMORY: Final = "/dev/shm"  # noqa: S108 - made with mkdtemp, for this user only
# As prometheus_client names its files: by kind (and mode) and by worker.
_OURS = re.compile(r"(?:counter|histogram|summary|gauge_[a-z]+)_[0-9]+\.db")

troubles: Final[list[str]] = []
"""Why others do not see what this process counts, for people. What is in it stays: only a restart mends it."""


def share(environ: MutableMapping[str, str]) -> str:
    """Take ``PROMETHEUS_MULTIPROC_DIR`` and empty it of an earlier run's files; where it is unset, make one.

    In memory where it can be (``/dev/shm``), else among the temporary files. A reload in the same process leaves
    the files alone. A directory made here goes away with this process. Of a directory that was given nothing goes
    but what workers have left there.

    Args:
        environ: The process environment; both variables are set in it.

    Returns:
        The directory.

    Raises:
        OSError: It cannot be made, read or written to.
    """
    me = str(os.getpid())
    given = environ.get(VARIABLE)
    if environ.get(_OWNER) == me and given is not None:
        return given
    environ[_OWNER] = me
    if given is None:
        environ[VARIABLE] = made = _make()
        atexit.register(_remove, made, os.getpid())
        return made
    Path(given).mkdir(parents=True, exist_ok=True)
    for file in files(given):
        Path(file).unlink()
    (Path(given) / _RESTARTS).write_bytes(b"")
    return given


def adopt(environ: MutableMapping[str, str], made: bool) -> None:
    """The arbiter has another pid than when it read its configuration: the directory is this one's now.

    Args:
        environ: As ``share`` has left it.
        made: ``share`` made the directory: it goes away with this process.
    """
    if environ.get(_OWNER) == str(os.getpid()):
        return
    environ[_OWNER] = str(os.getpid())
    if made:
        atexit.register(_remove, environ[VARIABLE], os.getpid())


def check(environ: MutableMapping[str, str], made: bool) -> None:
    """See to it that a worker can start, though the directory may have gone since (a cleaner of ``/tmp``).

    It is made anew if that is possible: then the workers from now on share it. Else this worker does without.
    What the workers before have mapped is theirs alone either way.

    Args:
        environ: The worker's environment; the variable is dropped from it where it is of no use.
        made: ``share`` made the directory: one of another user in its place is not taken.
    """
    given = environ.get(VARIABLE)
    if given is None or _usable(given, made):
        return
    gone = not os.path.lexists(given)
    if gone:
        with contextlib.suppress(OSError):
            Path(given).mkdir(mode=0o700, parents=True, exist_ok=True)
    if gone and _usable(given, made):
        trouble(f"{given} had gone and was made anew; what was counted before is lost")
        return
    trouble(f"{given} {'has gone' if gone else 'cannot be used'}; this worker counts for itself")
    if "prometheus_client" not in sys.modules:  # else its values ask for the variable
        environ.pop(VARIABLE)


def trouble(reason: str) -> None:
    """Note why others do not see what this process counts."""
    if reason not in troubles:
        troubles.append(reason)


def files(directory: str) -> list[str]:
    """Paths of what workers have left there, of those that are gone, too."""
    return [str(file) for file in Path(directory).iterdir() if _OURS.fullmatch(file.name)]


def forget(directory: str, pid: int) -> None:
    """Drop the live gauges of a worker that is gone, however it went."""
    for file in Path(directory).glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)


def add_restart(directory: str) -> None:
    """A worker ended and another one takes its place."""
    with (Path(directory) / _RESTARTS).open("ab") as file:
        file.write(b".")


def restarts(directory: str) -> int:
    """How many workers have been replaced since the arbiter started."""
    try:
        return (Path(directory) / _RESTARTS).stat().st_size
    except FileNotFoundError:
        return 0


def _make() -> str:
    with contextlib.suppress(OSError):
        return tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY)
    return tempfile.mkdtemp(prefix=_PREFIX)


def _usable(directory: str, own: bool) -> bool:
    try:
        ours = not own or os.lstat(directory).st_uid == os.geteuid()
    except OSError:
        return False
    return ours and Path(directory).is_dir() and os.access(directory, os.R_OK | os.W_OK | os.X_OK)


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # forked workers inherit this handler
        shutil.rmtree(directory, ignore_errors=True)
