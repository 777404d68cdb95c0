"""Write lines on stdout: as few writes as possible, no line torn by another worker's, lost ones counted.

All workers of a server write to one stdout. A file takes a write of any size in one piece; a pipe (a container's,
a log router's) only up to PIPE_BUF bytes (4096 on Linux, pipe(7)), and may split a larger one when it is full. So
a pipe gets several writes, cut between lines. A line longer than PIPE_BUF cannot be kept whole by anybody.

A pipe that nobody reads is full after 64 KiB, and a write to it would hold up the worker. So it is asked first
whether it takes one: if not, lines wait for its reader, 4 MiB at most; of more the oldest are lost and counted.

Runs on: worker.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from io import RawIOBase
from os import fstat
from typing import Any

_WHOLE_BYTES = 1 << 20
_BACKLOG_BYTES = 4 << 20


class Stdout:
    """The process's stdout.

    Args:
        poll: Makes a ``select.poll``; the standard library's own, which under gevent is not what that name says.

    Attributes:
        lost: Lines that could not be written.
    """

    def __init__(self, poll: Callable[[], Any] = select.poll) -> None:
        sink: Any = sys.stdout.buffer if sys.stdout is not None else _Closed()
        self._sink = sink.raw if isinstance(getattr(sink, "raw", None), RawIOBase) else sink
        self._poll: Any = None
        self._most_bytes = _WHOLE_BYTES
        if _is_shared_pipe(self._sink):
            self._most_bytes = select.PIPE_BUF
            self._poll = poll()
            self._poll.register(self._sink.fileno(), select.POLLOUT)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._torn = False
        self.lost = 0

    @property
    def waiting_bytes(self) -> int:
        """Of lines that wait for the reader of a pipe."""
        return self._waiting_bytes

    def write(self, lines: bytes = b"") -> None:
        """Write whole lines, behind those that wait; never raises for what stdout does, and never waits for it."""
        for piece in pieces(lines, self._most_bytes):
            self._waiting.append(piece)
            self._waiting_bytes += len(piece)
        while self._waiting and (self._poll is None or self._poll.poll(0)):
            piece = self._next()
            left = self._put(b"\n" + piece if self._torn else piece)
            if left:
                self.lost += min(left, piece.count(b"\n"))
        while self._waiting_bytes > _BACKLOG_BYTES:
            self.lost += self._next().count(b"\n")

    def end(self, wait_s: float) -> None:
        """Write what waits, if its reader takes it by then; what it does not take is lost."""
        until = time.monotonic() + wait_s
        self.write()
        while self._waiting and time.monotonic() < until:
            os.sched_yield()  # not a sleep: in a signal's handler under gevent nobody may wait
            self.write()
        while self._waiting:
            self.lost += self._next().count(b"\n")

    def forget(self) -> None:
        """In a child: what waits is its parent's to write."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def _next(self) -> bytes:
        piece = self._waiting.popleft()
        self._waiting_bytes -= len(piece)
        return piece

    def _put(self, piece: bytes) -> int:
        """Write it, as far as that goes; how many line ends are left over."""
        rest = memoryview(piece)
        try:
            while rest:
                written = self._sink.write(rest)
                if not written:  # it would have to wait, and must not
                    break
                rest = rest[written:]
            self._sink.flush()
        except (OSError, ValueError):  # its reader is gone, or the disk is full: the exchange is not to blame
            pass
        done = len(piece) - len(rest)
        if done:
            self._torn = piece[done - 1 : done] != b"\n"  # then the next line starts on a new one
        return bytes(rest).count(b"\n")


class _Closed:
    """Stands for a stdout that was closed before the process began: every line is lost, and counted."""

    def write(self, data: object) -> int:
        del data
        return 0

    def flush(self) -> None:
        """Nothing waits."""


def _is_shared_pipe(sink: Any) -> bool:
    try:
        mode = fstat(sink.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # no file at all, as under a test
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def pieces(lines: bytes, most_bytes: int) -> Iterator[bytes]:
    """Whole lines in pieces of at most so many bytes; a line that is longer is one of its own."""
    begin = 0
    while len(lines) - begin > most_bytes:
        end = lines.rfind(b"\n", begin, begin + most_bytes) + 1 or lines.find(b"\n", begin) + 1
        if not end:
            break
        yield lines[begin:end]
        begin = end
    if begin < len(lines):
        yield lines[begin:] if begin else lines
