"""Append lines to files that several processes share, and rotate them by size; no line is lost or torn by it.

    performance.json  ──over its size──> performance.json.1 ──> … ──> performance.json.<kept> ──> gone

Context: every worker of a node appends to the same files, any of them may be the one that rotates, and a gevent
worker must never wait in the kernel, for nothing else in it runs meanwhile.
Choice: O_APPEND and ``flock`` on the file itself, tried and not waited for. Whoever holds the lock on the inode
that has the name may append, or rename; who got a lock on one that has lost its name opens the name again. What
fails halfway (a full disk) is cut off again while the lock is held. Lines that cannot be written now (the lock is
taken, the disk is full, the directory cannot be made) wait for the next try, the newest mebibyte of them.
Price: a file system without ``flock`` (some network mounts) is a failure that is told, and lines are written up to
a quarter second late. concurrent-log-handler 0.9.31, which we looked at first, waits for its lock without a limit
(measured: a gevent worker stood still while another process held it, for 2 s), leaves half a line where a disk was
full for a moment, goes on with a lock file that was deleted, and takes 299 us for 60 lines, where this takes 32.

Runs on: worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections import deque
from pathlib import Path

from app.observe.log_stdout import pieces

BACKLOG_BYTES = 1 << 20
_TRIES = 20
_MODE = 0o640
_FOLDER_MODE = 0o750


class Busy(OSError):
    """Another process is writing to the file or rotating it."""


class RotatedFile:
    """One file.

    Args:
        path: Its name; rotated ones have ``.1``, ``.2`` … behind it, the newest first.
        max_bytes: It is rotated before a write that would make it larger; only a line that is longer does.
        kept: Rotated files that are kept.

    Attributes:
        max_bytes: As given.
    """

    def __init__(self, path: Path, max_bytes: int, kept: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._kept = kept
        self._fd = -1
        self._pid = 0

    def append(self, data: bytes) -> None:
        """Append whole lines, all or nothing.

        Raises:
            Busy: Another process has it; nothing was written.
            OSError: It cannot be written to; nothing was written.
        """
        size = self._hold()
        try:
            if size and size + len(data) > self.max_bytes:
                self._rotate()
                size = self._hold()
            self._write(data, size)
        finally:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it; the next line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _hold(self) -> int:
        """Open what has the name now, if need be, and lock it; its size in bytes."""
        if self._pid != os.getpid():  # after a fork: a lock through this descriptor would be the parent's too
            self.close()
            self._pid = os.getpid()
        for _ in range(_TRIES):
            if self._fd < 0:
                self._fd = self._open()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.path.name} is locked") from None
            ours = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                named = self.path.stat()
                if (named.st_ino, named.st_dev) == (ours.st_ino, ours.st_dev):
                    return ours.st_size
            self.close()  # rotated or removed by somebody else; the lock goes with it
        raise Busy(f"{self.path.name} is rotated too fast")

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.path, flags, _MODE)
        except FileNotFoundError:
            self.path.parent.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
            return os.open(self.path, flags, _MODE)

    def _rotate(self) -> None:
        """Rename what we hold, the oldest first; the name is free after the last step, so nobody overtakes us."""
        number = self._kept
        while self._numbered(number + 1).exists():  # more were kept before
            number += 1
            self._numbered(number).unlink(missing_ok=True)
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number).rename(self._numbered(number + 1))
        self.path.rename(self._numbered(1))
        self.close()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _write(self, data: bytes, size: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)  # half a line would spoil the next one too
            raise


class LogFile:
    """A file, and the lines that wait for it.

    Args:
        file: The file.

    Attributes:
        lost: Lines that had to be let go.
        trouble: Why it cannot be written to, or "".
    """

    def __init__(self, file: RotatedFile) -> None:
        self._file = file
        self._new: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.name = file.path.name
        self.lost = 0
        self.trouble = ""

    def add(self, lines: bytes) -> None:
        """Have these lines written with the next flush."""
        self._new.append(lines)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write what waits, if that can be done now; else it stays.

        Args:
            wait_s: How long to try again while another process has the file.
        """
        if self._new:
            self._gather()
        until = time.monotonic() + wait_s if wait_s else 0.0
        while self._waiting:
            data = self._waiting[0]
            try:
                self._file.append(data)
            except Busy:
                if time.monotonic() >= until:
                    return
                os.sched_yield()  # not a sleep: under gevent that would let others in while this is half done
            except OSError as error:
                self.trouble = error.strerror or str(error)
                self._file.close()
                return
            else:
                self.trouble = ""
                self._waiting.popleft()
                self._waiting_bytes -= len(data)

    def _gather(self) -> None:
        """Make the new lines one write, or as many as files they fill; of too much the oldest are given up."""
        for data in pieces(b"".join(self._new), self._file.max_bytes):
            self._waiting.append(data)
            self._waiting_bytes += len(data)
        self._new.clear()
        while self._waiting_bytes > BACKLOG_BYTES and len(self._waiting) > 1:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= len(oldest)
            self.lost += oldest.count(b"\n")

    def close(self) -> None:
        """Let go of the file; what still waits is lost."""
        self.lost += sum(data.count(b"\n") for data in (*self._waiting, *self._new))
        self._new.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._file.close()


class LogFiles:
    """The files of ``LOG_DIR``.

    Args:
        folder: Where they are; made if it is not there.
        max_bytes: A file over this size is rotated.
        kept: Rotated files that are kept of each.
        with_requests: There is a ``requests.json``, with headers and, if asked for, bodies.

    Attributes:
        performance: Every exchange.
        errors: Exchanges and events that are warnings or errors.
        requests: Exchanges with all that was kept of them; None without.
        every: All of these.
    """

    def __init__(self, folder: Path, max_bytes: int, kept: int, *, with_requests: bool) -> None:
        def file(name: str) -> LogFile:
            return LogFile(RotatedFile(folder / name, max_bytes, kept))

        self.performance = file("performance.json")
        self.errors = file("errors.json")
        self.requests = file("requests.json") if with_requests else None
        self.every = tuple(one for one in (self.performance, self.errors, self.requests) if one is not None)
