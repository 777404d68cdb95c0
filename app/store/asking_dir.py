"""Make the directory through which the workers of one gunicorn ask each other, and say where it is.

The arbiter makes it once, for its own user alone (0700), in memory where it can (``/dev/shm``), else among the
temporary files, and hands its path to the workers in the environment. A reload keeps it; it goes away with the
arbiter. One whose arbiter was killed is removed by the next arbiter of the same user: a directory in use is locked
by its arbiter and workers.

Runs on: start-up, in gunicorn's arbiter (``share``); its workers find it with ``board_file.shared``.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "WORKER_QUESTIONS_DIR"
_OWNER: Final = VARIABLE + "_OWNER"
_PREFIX: Final = "penstock-asking-"
_MEMORY: Final = "/dev/shm"  # noqa: S108 - made with mkdtemp, for this user only
_YOUNG_S: Final = 60.0


def share(environ: MutableMapping[str, str], folders: tuple[str, ...] = ()) -> str | None:
    """Make the directory and put its path into ``environ``; a reload finds the one that was made before.

    Args:
        environ: The process environment; two variables are set in it.
        folders: Where to try in this order, instead of memory and the temporary files.

    Returns:
        The path; None where none can be made. Then each worker knows only what it served itself.
    """
    me = str(os.getpid())
    if environ.get(_OWNER) == me:
        return environ.get(VARIABLE)
    environ.pop(VARIABLE, None)  # of the gunicorn this one was started from
    environ[_OWNER] = me
    for folder in folders or (_MEMORY, tempfile.gettempdir()):
        _sweep(folder)
        with contextlib.suppress(OSError):
            path = environ[VARIABLE] = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)
            # never given back: the descriptor stays open here and in every worker
            fcntl.flock(os.open(path, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)
            atexit.register(_remove, path, os.getpid())
            return path
    return None


def _sweep(folder: str) -> None:
    """Remove directories that nobody holds any more. Young ones stay: theirs may just be about to be locked."""
    for left in Path(folder).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = left.lstat()
            if about.st_uid != os.geteuid() or time.time() - about.st_mtime < _YOUNG_S:
                continue
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)  # which follows no link
            finally:
                os.close(held)


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # forked workers inherit this handler
        shutil.rmtree(path, ignore_errors=True)
