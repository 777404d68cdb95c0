"""Share facts among the workers of one node through a file that all of them have mapped into memory (B34-B36).

    head      mark, number of sections, slots per section
    marks     per section: number of its newest record (8 bytes each)
    sections  one per worker, SLOTS records each: checksum, kind, number, said at, until, names

A section has one writer, so nothing is locked while reading or writing. The writer puts the record in place, then
raises its section's mark; a reader compares all marks with those it saw last, which is one comparison of bytes
when there is nothing new, and looks only into sections that moved. A record it meets half-written fails its
checksum and is looked for again at the next call. CLOCK_MONOTONIC is common to a node, so instants are too.

    section   free --claim--> held --worker ends, however--> free (its facts stay until a others replace them)

Context: what one worker learns (a key is cooling, a breaker is open) has to reach the others of its node in under
    a second, without a service to run, and from the loop thread, which must not wait for anything.
Choice: mapped memory, claimed by an open-file-description lock, which the kernel takes back when the worker dies.
    A section is a table of the newest record per provider, credential and kind, not a ring: a key that cools every
    other second would push a bench of an hour out of any ring before a new worker could read it.
Price: names are bounded (96 bytes for both), and so are kinds of news per worker (127); the oldest gives way.

Runs on: loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from app.store.facts import KINDS, Fact, Key, in_force

SECTIONS: Final = 64
SLOTS: Final = 127
NAMES_BYTES: Final = 96
_MARK: Final = b"penstock-board\0\1"
_HEAD: Final = struct.Struct("<16sII40x")
_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<IBBBxQdd")  # then the names, filled up with zeros
_RECORD_BYTES: Final = _RECORD.size + NAMES_BYTES
_SECTION_BYTES: Final = SLOTS * _RECORD_BYTES
_FLOCK: Final = struct.Struct("hhqqi4x")
_PATIENCE: Final = 8
"""So often a record that should be there is looked for before it is given up."""

Tell = Callable[[dict[str, object]], None]


def board_bytes(size: int = SECTIONS) -> int:
    """How large the file of a board with ``size`` sections is; with 64 just under 1 MiB."""
    return _HEAD.size + size * (_NUMBER.size + _SECTION_BYTES)


class _Said(NamedTuple):
    at: float
    number: int
    fact: Fact


def _encoded(number: int, said_at: float, fact: Fact) -> bytes | None:
    """The record, or None if its names are too long."""
    provider = fact.provider.encode("utf-8", "surrogateescape")
    credential = fact.credential.encode("utf-8", "surrogateescape")
    if len(provider) + len(credential) > NAMES_BYTES:
        return None
    kind = KINDS.index(fact.kind)
    record = _RECORD.pack(0, kind, len(provider), len(credential), number, said_at, fact.until_at)
    rest = record[4:] + (provider + credential).ljust(NAMES_BYTES, b"\0")
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _decoded(raw: bytes) -> _Said | None:
    """What a record says, or None if it is empty, half-written or broken."""
    checksum, kind, first, second, number, said_at, until_at = _RECORD.unpack_from(raw)
    if zlib.crc32(raw[4:]) != checksum or kind >= len(KINDS):
        return None
    names = raw[_RECORD.size :]
    provider = names[:first].decode("utf-8", "surrogateescape")
    credential = names[first : first + second].decode("utf-8", "surrogateescape")
    return _Said(said_at, number, Fact(KINDS[kind], provider, credential, until_at))


class Board:
    """One worker's access to the board.

    Args:
        path: The file, ``board_bytes(size)`` long, zeros at first; ``board_file.share`` makes it.
        size: Number of sections.
        tell: Takes events: ``board_unavailable``, ``board_full``, ``board_names_too_long``, each once.
        clock: Monotonic seconds, the same for all workers.

    Attributes:
        index: The claimed section; None while there is none (all taken, or no usable file). Then ``news`` still
            brings what others say, and ``publish`` tries again to claim one.
    """

    def __init__(
        self,
        path: str,
        size: int = SECTIONS,
        *,
        tell: Tell | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index: int | None = None
        self._size = size
        self._clock = clock
        self._tell = tell
        self._told: set[str] = set()
        self._marks_end = _HEAD.size + size * _NUMBER.size
        self._seen = bytearray(size * _NUMBER.size)
        self._tries: dict[int, int] = {}
        self._waiting: list[_Said] = []
        self._table: dict[Key, tuple[int, Fact]] = {}  # what this section says, oldest first, and in which slot
        self._number = 0
        self._fresh = True
        self._file = -1
        self._map: mmap.mmap | None = None
        try:
            self._open(path)
        except (OSError, ValueError) as error:
            self.close()
            self._say("board_unavailable", error=str(error))

    def publish(self, fact: Fact) -> bool:
        """Tell the other workers; replaces what this one said of the same kind before.

        Returns:
            False where nobody can be told.
        """
        if self._map is None or (self.index is None and not self._claim()):
            return False
        now = self._clock()
        raw = _encoded(self._number + 1, now, fact)
        if raw is None:
            self._say("board_names_too_long", provider=fact.provider, credential=fact.credential)
            return False
        assert self.index is not None  # noqa: S101 - claimed above
        slot = self._slot(fact.key, now)
        self._table[fact.key] = (slot, fact)
        self._number += 1
        start = self._start(self.index) + slot * _RECORD_BYTES
        self._map[start : start + _RECORD_BYTES] = raw
        self._raise_mark(self.index)  # after the record: whoever sees the mark finds it
        return True

    def news(self) -> list[Fact]:
        """What other workers said since the last call, oldest first; at the first call what still holds."""
        if self._map is None:
            return []
        marks = self._map[_HEAD.size : self._marks_end]
        if marks == self._seen and not self._waiting:
            self._fresh = False
            return []
        found, self._waiting = self._waiting, []
        for index, (mark, seen) in enumerate(zip(_numbers(marks), _numbers(self._seen), strict=True)):
            if mark != seen:
                found += self._unread(index, mark, seen)
        found.sort(key=lambda said: (said.at, said.number))
        now = self._clock()
        if self._fresh:
            self._fresh = False
            return in_force((said.fact for said in found), now)
        return [said.fact for said in found if said.fact.holds(now) or said.fact.kind in ("restored", "closed")]

    def close(self) -> None:
        """Give the section back; what it says stays there for the others."""
        self.index = None
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._file >= 0:
            os.close(self._file)  # and with it the lock
            self._file = -1

    def _say(self, event: str, **fields: object) -> None:
        if self._tell is not None and event not in self._told:
            self._told.add(event)
            self._tell({"event": event, **fields})

    def _open(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._file, board_bytes(self._size))
        head = _HEAD.pack(_MARK, self._size, SLOTS)
        if self._map[: _HEAD.size] == bytes(_HEAD.size):
            self._map[: _HEAD.size] = head  # two at once write the same
        if self._map[: _HEAD.size] != head:
            raise ValueError(f"{path} is not a board of this version with {self._size} sections")
        self._claim()

    def _claim(self) -> bool:
        """Take the first free section, and over what its last worker said."""
        assert self._map is not None  # noqa: S101
        free = (index for index in range(self._size) if self._lock(index))
        self.index = next(free, None)
        if self.index is None:
            self._say("board_full", sections=self._size)
            return False
        place = self.index * _NUMBER.size
        (seen,) = _NUMBER.unpack_from(self._seen, place)
        (mark,) = _NUMBER.unpack_from(self._map, _HEAD.size + place)
        there = sorted(self._records(self.index), key=lambda one: one[1].number)
        self._table = {said.fact.key: (slot, said.fact) for slot, said in there}
        self._waiting += [said for _, said in there if said.number > seen]
        self._number = max([mark, *(said.number for _, said in there)])
        self._raise_mark(self.index)
        return True

    def _lock(self, index: int) -> bool:
        """Lock byte ``index`` for as long as the file is open here; the data itself is locked for nobody."""
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, index, 1, 0)
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, wanted)
            return True
        return False

    def _start(self, index: int) -> int:
        return self._marks_end + index * _SECTION_BYTES

    def _raise_mark(self, index: int) -> None:
        assert self._map is not None  # noqa: S101
        place = index * _NUMBER.size
        self._map[_HEAD.size + place : _HEAD.size + place + _NUMBER.size] = _NUMBER.pack(self._number)
        _NUMBER.pack_into(self._seen, place, self._number)  # our own words are no news

    def _records(self, index: int, after: int = 0) -> Iterator[tuple[int, _Said]]:
        """The readable records of a section whose number is above ``after``, with their slots."""
        assert self._map is not None  # noqa: S101
        start = self._start(index)
        section = self._map[start : start + _SECTION_BYTES]
        for slot in range(SLOTS):
            begin = slot * _RECORD_BYTES
            if _NUMBER.unpack_from(section, begin + 8)[0] > after:
                said = _decoded(section[begin : begin + _RECORD_BYTES])
                if said is not None:
                    yield slot, said

    def _unread(self, index: int, mark: int, seen: int) -> list[_Said]:
        """What a section says between two marks. Its last word has to be among it, or it is asked again."""
        found = [said for _, said in self._records(index, seen) if said.number <= mark]
        newest = max((said.number for said in found), default=seen)
        tries = self._tries.pop(index, 0)
        if newest < mark and tries < _PATIENCE:
            self._tries[index] = tries + 1
            mark = newest
        _NUMBER.pack_into(self._seen, index * _NUMBER.size, mark)
        return found

    def _slot(self, key: Key, now: float) -> int:
        """Where to write ``key``: its own place, a free one, or that of what ran out, else of the oldest."""
        before = self._table.pop(key, None)
        if before is not None:
            return before[0]
        if len(self._table) < SLOTS:
            used = {slot for slot, _ in self._table.values()}
            return next(slot for slot in range(SLOTS) if slot not in used)
        ended = (one for one, (_, fact) in self._table.items() if not fact.holds(now))
        return self._table.pop(next(ended, next(iter(self._table))))[0]


def _numbers(raw: bytes | bytearray) -> tuple[int, ...]:
    return struct.unpack(f"<{len(raw) // _NUMBER.size}Q", raw)
