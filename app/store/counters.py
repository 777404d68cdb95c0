"""Count what callers take, for all workers of one node, in a file that all of them have mapped into memory.

    head      mark, number of slots, number of rows ever used, one flag per row
    slots     a table by digest of the key: key, when it runs out, window, count in it, count in the window before
    places    per slot one number per worker: how much of it this worker has under way

    row       free --claim--> held --worker ends, however--> left --found by another--> cleared, free
    slot      empty --write--> in force --its time passes--> stale --write of any key that comes by--> in force

A slot is read and written inside a section that one worker at a time is in, so check and count are one step and
limits hold over all workers exactly. Of the places a worker changes its own row only; a row whose worker is gone
is known by its lock, which the kernel takes back from the dead, and counts until somebody looks (``reap``).
Where there is no room left, the slot that runs out first gives way: its key starts anew.

Context: limits per gateway key have to hold for a node without a service to run, at the price of microseconds.
Choice: open-file-description locks on bytes beyond the end of the file. They exclude other instances in the same
    process too, are not given up when somebody else in it closes the file, and do not outlive their worker;
    threads are kept apart by a lock beside them. The section is entered without letting go of the interpreter:
    beside a busy loop thread ``fcntl.fcntl`` cost 600 us a section (each of its two calls may wait for the
    interpreter for a switch interval), a call that keeps it 2 us. Only where the section is taken does the wait
    let go.
Price: at most 64 workers at once on one node; a worker that is frozen inside its section holds up the others.

Runs on: worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple

VARIABLE: Final = "WORKER_COUNTERS_FILE"
"""Where the arbiter says which file it made; see ``board_file``."""
ROWS: Final = 64
_MARK: Final = b"penstock-counts1"
_HEAD: Final = struct.Struct("<16sII40x")  # then a flag per row
_ROWS_AT: Final = 20
_FLAGS_AT: Final = _HEAD.size
_SLOTS_AT: Final = _FLAGS_AT + ROWS
_SLOT: Final = struct.Struct("<16sdqQQ")
_PLACES_BYTES: Final = 4 * ROWS
_EMPTY: Final = bytes(16)
_FEWEST: Final = 256
_PER_CALLER: Final = 8
"""Slots for each caller: three in use, and room that keeps searches short."""
_FLOCK: Final = struct.Struct("hhqqi4x")
_LOCKS_AT: Final = 1 << 40
"""Bytes that are locked: this one for the section, those behind it for the rows. Nothing is ever written there."""

Tell = Callable[[dict[str, object]], None]


def counters_bytes(callers: int) -> int:
    """How large the file for so many callers is: 76 KiB for up to 32 of them, 2.4 KiB for each one more."""
    return _SLOTS_AT + max(_FEWEST, _PER_CALLER * callers) * (_SLOT.size + _PLACES_BYTES)


class Entry(NamedTuple):
    """What a slot says. All zeros where there is nothing in force."""

    ends_at: float = 0.0
    window: int = 0
    current: int = 0
    previous: int = 0


_NOTHING: Final = Entry()
_mapped: weakref.WeakSet[NodeCounters] = weakref.WeakSet()


class NodeCounters:
    """One process's access to the counters. Used as ``with counters:``; everything below happens in there.

    Args:
        path: The file; made if it is missing, and laid out if it holds zeros. None: this process counts alone.
        callers: How many there are, for the size of a file that has to be made.
        tell: Takes the event ``caller_counters_unavailable``, once.

    Attributes:
        fault: Why this process counts alone although there is a path, or "".
        row: Its row in the file.
    """

    def __init__(self, path: str | None, callers: int, tell: Tell | None = None) -> None:
        self.fault = ""
        self.row = 0
        self._path = path
        self._callers = callers
        self._tell = tell
        self._libc = ctypes.PyDLL(None)
        self._wanted = ctypes.create_string_buffer(_record(fcntl.F_WRLCK, 0), _FLOCK.size)
        self._given = ctypes.create_string_buffer(_record(fcntl.F_UNLCK, 0), _FLOCK.size)
        self._reset()
        with self:
            _mapped.add(self)

    def _reset(self) -> None:
        self._threads = threading.Lock()
        self._file = -1
        self._buffer: mmap.mmap | bytearray | None = None
        self._known: dict[str, tuple[bytes, int]] = {}
        self._slots = 0

    # ------------------------------------------------------------------ section
    def __enter__(self) -> NodeCounters:
        """Wait until no other worker and no other thread is inside."""
        self._threads.acquire()
        try:
            if self._buffer is None:
                self._open()
            if self._file >= 0 and self._libc.fcntl(self._file, fcntl.F_OFD_SETLK, self._wanted) < 0:
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, _record(fcntl.F_WRLCK, 0))
        except BaseException:
            self._threads.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            self._libc.fcntl(self._file, fcntl.F_OFD_SETLK, self._given)
        self._threads.release()

    # ------------------------------------------------------------------ windows
    def read(self, key: str, now: float) -> Entry:
        """What is counted under ``key``."""
        index = self._find(key)
        if index < 0:
            return _NOTHING
        _, ends_at, *counts = _SLOT.unpack_from(self._memory, _SLOTS_AT + index * _SLOT.size)
        return Entry(ends_at, *counts) if ends_at > now else _NOTHING

    def write(self, key: str, entry: Entry) -> None:
        """Put ``entry`` in the place of what is counted under ``key``. One that has ended is free again."""
        index = self._make(key)
        _SLOT.pack_into(self._memory, _SLOTS_AT + index * _SLOT.size, self._known[key][0], *entry)

    # ------------------------------------------------------------------ places
    def running(self, key: str) -> int:
        """How much of ``key`` all workers have under way, those included that are gone and not yet cleared."""
        index = self._find(key)
        return sum(self._places[index * ROWS : index * ROWS + self._rows()]) if index >= 0 else 0

    def enter(self, key: str, keep_until: float) -> None:
        """This worker has one more of ``key`` under way. Its slot is nobody else's before ``keep_until``."""
        index = self._make(key)
        (ends_at,) = struct.unpack_from("<d", self._memory, _SLOTS_AT + index * _SLOT.size + 16)
        if ends_at < keep_until:
            _SLOT.pack_into(self._memory, _SLOTS_AT + index * _SLOT.size, self._known[key][0], keep_until, 0, 0, 0)
        self._places[index * ROWS + self.row] += 1

    def leave(self, key: str) -> None:
        """This worker has one less of ``key`` under way."""
        index = self._find(key)
        if index >= 0 and self._places[index * ROWS + self.row]:
            self._places[index * ROWS + self.row] -= 1

    def reap(self) -> bool:
        """Clear the rows of workers that are gone. True if there was one."""
        found = False
        for row in range(self._rows()):
            if row != self.row and self._memory[_FLAGS_AT + row] and self._lock(row):
                self._clear(row, held=False)
                self._unlock(row)
                found = True
        return found

    def close(self) -> None:
        """Give the row back. Whatever is still counted after that is counted by this process alone."""
        with self:
            if self._file >= 0:
                self._clear(self.row, held=False)
        with self._threads:
            self._let_go()
            self._path = None

    # ------------------------------------------------------------------ file
    def _open(self) -> None:
        """Map the file and claim a row; where that fails, count alone."""
        try:
            if self._path is not None and not self.fault:
                self._map(self._path)
        except (OSError, ValueError) as error:
            self._let_go()
            self.fault = str(error)
            if self._tell is not None:
                self._tell({"event": "caller_counters_unavailable", "error": self.fault})
        if self._buffer is None:
            self.row = 0
            self._lay_out(bytearray(counters_bytes(self._callers)))

    def _map(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, _record(fcntl.F_WRLCK, 0))
        try:
            if os.fstat(self._file).st_size == 0:  # taken at once: a page without room would kill its writer
                os.posix_fallocate(self._file, 0, counters_bytes(self._callers))
            self._lay_out(mmap.mmap(self._file, 0))
            free = (row for row in range(ROWS) if self._lock(row))
            row = next(free, None)
            if row is None:
                raise ValueError(f"{path}: all {ROWS} rows are taken by other workers")
            self.row = row
            self._clear(row, held=True)
            if row >= self._rows():
                struct.pack_into("<I", self._memory, _ROWS_AT, row + 1)
        finally:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK, 0))

    def _lay_out(self, buffer: mmap.mmap | bytearray) -> None:
        """Take ``buffer`` for the counters, after writing a head where there are only zeros."""
        slots = (len(buffer) - _SLOTS_AT) // (_SLOT.size + _PLACES_BYTES)
        if slots < _FEWEST:
            raise ValueError(f"the counters' file has {len(buffer)} bytes; {counters_bytes(0)} are the least")
        if bytes(buffer[: _HEAD.size]) == bytes(_HEAD.size):
            alone = int(isinstance(buffer, bytearray))
            _HEAD.pack_into(buffer, 0, _MARK, slots, alone)
        mark, there, _ = _HEAD.unpack_from(buffer)
        if (mark, there) != (_MARK, slots):
            raise ValueError("the counters' file is not one of this version")
        start = _SLOTS_AT + slots * _SLOT.size
        self._buffer = self._memory = buffer
        self._slots = slots
        self._places = memoryview(buffer)[start : start + slots * _PLACES_BYTES].cast("I")

    def _let_go(self) -> None:
        """Close the file, and with it the locks; the counts of this process stay out of it from now on."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if isinstance(self._buffer, mmap.mmap):
            self._places.release()
            self._buffer.close()
        self._buffer, self._known = None, {}

    def _forked(self) -> None:
        """A child is another worker: it opens the file for itself, and claims a row, when it first counts."""
        with contextlib.suppress(BufferError):  # a thread of the parent was looking; then they live on with us
            self._let_go()  # or the parent's locks would live as long as this process; the mapping holds them too
        self._reset()

    def _lock(self, row: int) -> bool:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _record(fcntl.F_WRLCK, 1 + row))
            return True
        return False

    def _unlock(self, row: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK, 1 + row))

    def _rows(self) -> int:
        rows: int = struct.unpack_from("<I", self._memory, _ROWS_AT)[0]
        return rows

    def _clear(self, row: int, *, held: bool) -> None:
        """Nothing of ``row`` is under way any more."""
        for place in range(row, self._slots * ROWS, ROWS):
            if self._places[place]:
                self._places[place] = 0
        self._memory[_FLAGS_AT + row] = held

    # ------------------------------------------------------------------ table
    def _digest(self, key: str) -> tuple[bytes, int]:
        """The digest of ``key`` and the slot where it was last, or where to begin to look."""
        known = self._known.get(key)
        if known is None:
            digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
            if len(self._known) > self._slots:
                self._known.clear()
            known = self._known[key] = (digest, int.from_bytes(digest[:8], "little") % self._slots)
        return known

    def _find(self, key: str) -> int:
        """The slot of ``key``, or -1."""
        digest, index = self._digest(key)
        start = _SLOTS_AT + index * _SLOT.size
        if self._memory[start : start + 16] == digest:
            return index
        found, _ = self._search(key, digest)
        return found

    def _make(self, key: str) -> int:
        """The slot of ``key``, made if there is none."""
        index = self._find(key)
        if index < 0:
            digest, _ = self._known[key]
            _, index = self._search(key, digest)
            for place in range(index * ROWS, (index + 1) * ROWS):
                self._places[place] = 0
            _SLOT.pack_into(self._memory, _SLOTS_AT + index * _SLOT.size, digest, 0.0, 0, 0, 0)
            self._known[key] = (digest, index)
        return index

    def _search(self, key: str, digest: bytes) -> tuple[int, int]:
        """Look from the key's first slot on: where it is, or -1 and where it would go.

        That is an empty slot, else one that has ended, else the one that ends first: all of them the earliest end.
        """
        start = int.from_bytes(digest[:8], "little") % self._slots
        place, place_ends_at = start, float("inf")
        for step in range(self._slots):
            index = (start + step) % self._slots
            there, ends_at = struct.unpack_from("<16sd", self._memory, _SLOTS_AT + index * _SLOT.size)
            if there == digest:
                self._known[key] = (digest, index)
                return index, index
            if ends_at < place_ends_at:
                place, place_ends_at = index, ends_at
            if there == _EMPTY:
                break
        return -1, place


def _record(kind: int, which: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _LOCKS_AT + which, 1, 0)


def _after_fork() -> None:
    for counters in list(_mapped):
        counters._forked()


os.register_at_fork(after_in_child=_after_fork)
