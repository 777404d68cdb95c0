"""Make the file that the workers of one gunicorn share, and say where it is.

The arbiter makes it once, in memory where it can (``/dev/shm``), else among the temporary files, and hands its
path to the workers in the environment. All of its space is taken at once: a mapped page that finds no room later
would kill the worker that writes to it. A reload keeps the file; it goes away with the arbiter. One whose arbiter
was killed is removed by the next arbiter of the same user: a file in use is locked by its arbiter and workers.

Runs on: start-up, in gunicorn's arbiter (``share``) and its workers (``shared``).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from app.store.board import board_bytes

VARIABLE: Final = "WORKER_BOARD_FILE"
_OWNER: Final = "_OWNER"
_PREFIX: Final = "penstock-board-"
_MEMORY: Final = "/dev/shm"  # noqa: S108 - made with mkstemp, for this user only
_YOUNG_S: Final = 60.0


def share(
    environ: MutableMapping[str, str], variable: str = VARIABLE, size_bytes: int = 0, folders: tuple[str, ...] = ()
) -> str | None:
    """Make the file and put its path into ``environ``; a reload in the same process finds the one it made before.

    Args:
        environ: The process environment; ``variable`` and ``variable`` + ``_OWNER`` are set in it.
        variable: Where the path goes. Not a name that looks like a setting of ours.
        size_bytes: Its length, all zeros; 0: that of a board.
        folders: Where to try in this order, instead of memory and the temporary files.

    Returns:
        The path; None where no folder has room. Then each worker knows only what it learns itself.
    """
    me = str(os.getpid())
    if environ.get(variable + _OWNER) == me:
        return environ.get(variable)
    environ.pop(variable, None)  # of the gunicorn this one was started from
    environ[variable + _OWNER] = me
    for folder in folders or (_MEMORY, tempfile.gettempdir()):
        _sweep(folder)
        with contextlib.suppress(OSError):
            path = environ[variable] = _make(folder, size_bytes or board_bytes())
            atexit.register(_remove, path, os.getpid())
            return path
    return None


def shared(environ: Mapping[str, str], variable: str = VARIABLE) -> str | None:
    """The path this process's own arbiter made, if one did; in the arbiter or in a worker of it."""
    owner = environ.get(variable + _OWNER)
    return environ.get(variable) if owner in (str(os.getpid()), str(os.getppid())) else None


def _make(folder: str, size_bytes: int) -> str:
    file, path = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)  # never given back: the descriptor stays open here and in every worker
        os.posix_fallocate(file, 0, size_bytes)
    except OSError:
        os.close(file)
        Path(path).unlink(missing_ok=True)
        raise
    return path


def _sweep(folder: str) -> None:
    """Remove files that nobody holds any more. Young ones stay: theirs may just be about to be locked."""
    for left in Path(folder).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = left.stat()
            if about.st_uid != os.geteuid() or time.time() - about.st_mtime < _YOUNG_S:
                continue
            with left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # forked workers inherit this handler
        Path(path).unlink(missing_ok=True)
