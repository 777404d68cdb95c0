"""What Linux tells of processes: children, memory, and who holds the other end of a connection.

Runs on: start-up.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def children(pid: int, proc: Path = _PROC) -> list[int]:
    """Pids of the children of ``pid``; none if it is gone."""
    try:
        text = proc.joinpath(str(pid), "task", str(pid), "children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def allow_files(wanted: int) -> bool:
    """Raises the limit of open files of this process and its children to come; False if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return True
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def rss_bytes(pid: int, proc: Path = _PROC) -> int:
    """Resident memory.

    Raises:
        OSError: It is gone.
    """
    pages = proc.joinpath(str(pid), "statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def holder(pids: Iterable[int], server_port: int, client_port: int, proc: Path = _PROC) -> int | None:
    """Which of ``pids`` holds the server's end of a TCP connection over IPv4; None if none does (yet)."""
    inode = inode_of(proc.joinpath("net", "tcp").read_text(encoding="ascii"), server_port, client_port)
    if not inode:
        return None
    wanted = f"socket:[{inode}]"
    return next((pid for pid in pids if wanted in _links(proc / str(pid) / "fd")), None)


def _links(folder: Path) -> set[str]:
    """What the file descriptors of a process lead to."""
    found = set()
    try:
        for entry in os.scandir(folder):
            found.add(str(Path(entry.path).readlink()))
    except OSError:
        return found  # closed meanwhile
    return found


def inode_of(table: str, local_port: int, remote_port: int) -> int:
    """The inode of a connection in the text of ``/proc/net/tcp``; 0 if it is not there or not accepted."""
    ends = (f":{local_port:04X}", f":{remote_port:04X}")
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[1].endswith(ends[0]) and words[2].endswith(ends[1]):
            return int(words[9])
    return 0
