"""Prepare the directory through which the workers of one gunicorn share their metrics (B41).

Runs on: start-up, in gunicorn's arbiter, before anything imports prometheus_client.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_OWNER = "PROMETHEUS_MULTIPROC_OWNER"


def share(environ: MutableMapping[str, str]) -> str:
    """Take ``PROMETHEUS_MULTIPROC_DIR`` and empty it of an earlier run's files; where it is unset, make one.

    A reload in the same process leaves the files alone. A directory made here goes away with this process.

    Args:
        environ: The process environment; both variables are set in it.

    Returns:
        The directory.
    """
    me = str(os.getpid())
    given = environ.get(_VARIABLE)
    if environ.get(_OWNER) == me and given is not None:
        return given
    environ[_OWNER] = me
    if given is None:
        environ[_VARIABLE] = made = tempfile.mkdtemp(prefix="penstock-metrics-")
        atexit.register(_remove, made, os.getpid())
        return made
    Path(given).mkdir(parents=True, exist_ok=True)
    for file in Path(given).glob("*.db"):
        file.unlink()
    return given


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # forked workers inherit this handler
        shutil.rmtree(directory, ignore_errors=True)
