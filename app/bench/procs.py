"""What Linux tells of processes: children, CPU time, memory, and who holds the other end of a connection.

Runs on: start-up.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def children(pid: int, proc: Path = _PROC) -> list[int]:
    """Pids of the children of ``pid``, whichever of its threads started them; none if it is gone."""
    found = []
    for path in sorted(proc.glob(f"{pid}/task/*/children")):
        try:
            found += [int(word) for word in path.read_text(encoding="ascii").split()]
        except OSError:
            continue
    return found


def tree(pid: int, proc: Path = _PROC) -> list[int]:
    """``pid`` and all its descendants, parents first."""
    found = [pid]
    for one in found:  # grows meanwhile
        found += [child for child in children(one, proc) if child not in found]
    return found


def _clock_s(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond; the numbers in ``stat`` are in ticks of 10 ms.

    clock_getcpuclockid(3): Linux makes the clock's number of the pid.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def cpu_s(pids: Iterable[int], proc: Path = _PROC, clock_s: Callable[[int], float] = _clock_s) -> float:
    """CPU seconds of ``pids``, in user and system mode, with what children of theirs took that have been reaped.

    Raises:
        OSError: One of them is gone; what it took since would be missing.
    """
    ticks, found_s = 0, 0.0
    for pid in pids:
        fields = proc.joinpath(str(pid), "stat").read_text(encoding="utf-8", errors="replace")
        ticks += sum(int(word) for word in fields.rpartition(")")[2].split()[13:15])
        found_s += clock_s(pid)
    return found_s + ticks / os.sysconf("SC_CLK_TCK")


def pss_bytes(pids: Iterable[int], proc: Path = _PROC) -> int:
    """Memory of ``pids``, what they share with others counted in equal parts.

    Raises:
        OSError: One of them is gone, or belongs to somebody else.
    """
    found_bytes = 0
    for pid in pids:
        for line in proc.joinpath(str(pid), "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                found_bytes += int(line.split()[1]) * 1024
    return found_bytes


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
    with suppress(OSError), os.scandir(folder) as entries:  # closed meanwhile
        for entry in entries:
            found.add(str(Path(entry.path).readlink()))
    return found


def inode_of(table: str, local_port: int, remote_port: int) -> int:
    """The inode of a connection in the text of ``/proc/net/tcp``; 0 if it is not there or not accepted."""
    ends = (f":{local_port:04X}", f":{remote_port:04X}")
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[1].endswith(ends[0]) and words[2].endswith(ends[1]):
            return int(words[9])
    return 0
