"""Say what this process takes of the machine: memory and file descriptors, from /proc.

Runs on: worker.
"""

from __future__ import annotations

import os
from pathlib import Path

_SELF = Path("/proc/self")


def resident_bytes(folder: Path = _SELF) -> int | None:
    """Resident memory; None where there is no /proc."""
    try:
        pages = (folder / "statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_fds(folder: Path = _SELF) -> int | None:
    """Open file descriptors; None where there is no /proc. The one that is opened to look is left out."""
    try:
        return sum(1 for _ in (folder / "fd").iterdir()) - 1
    except OSError:
        return None
