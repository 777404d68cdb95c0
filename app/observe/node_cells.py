"""Share cells among the workers of one node, through a file in memory that the arbiter has made (B44).

    first frame   what the one worker that watches for alerts has found so far
    sections      one per worker: a frame that says who it is, then a frame for each of its cells

    section   free --claim--> held --worker ends, however--> free, its cells still there --claim--> gone on with

A section has one writer; nothing is locked while reading or writing. A frame has a checksum: one that is met
half-written is read again, and if it still is, taken as it was last time. What a worker that was killed had
counted stays where it is and leaves the windows by its age; whoever claims its section goes on with it. Sections
and the watch are held by open-file-description locks, which the kernel takes back from the dead, so a pid that is
used again means nothing. CLOCK_MONOTONIC is common to a node, so instants are too.

Context: whichever worker is asked has to answer for all of them, those that are gone included, without a service.
Choice: frames at fixed places, written with pwrite about once a second where they have changed.
Price: 178 KiB per section; a cell of more than 2,040 bytes gets coarser (real ones have under 900).

Runs on: worker; ``node_bytes`` in gunicorn's arbiter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from typing import Any, Final, NamedTuple

import orjson

VARIABLE: Final = "WORKER_PERFORMANCE_FILE"
"""Where the arbiter says which file it made; see ``app.store.board_file``."""
FRAMES: Final = 89
"""Of one section: its head's, and one per slot of ``cells``."""
_FRAME_BYTES: Final = 2048
_HEAD: Final = struct.Struct("<II")  # checksum and length of what follows
CELL_BYTES: Final = _FRAME_BYTES - _HEAD.size
_SECTION_BYTES: Final = FRAMES * _FRAME_BYTES
_LOCKS_AT: Final = 1 << 40
"""Bytes that are locked: this one for the watch, those behind it for the sections. Nothing is written there."""
_FLOCK: Final = struct.Struct("hhqqi4x")
_TRIES: Final = 3


def node_bytes(workers: int) -> int:
    """How large the file is: room for ``workers``, as many again that take over in a reload, and a few more."""
    return _FRAME_BYTES + (2 * workers + 2) * _SECTION_BYTES


class Section(NamedTuple):
    """What another worker says.

    Attributes:
        number: Its place.
        head: Of itself.
        cells: Payload of every cell, by slot, as it was written.
    """

    number: int
    head: dict[str, Any]
    cells: dict[int, bytes]


class NodeCells:
    """One process's access to the file.

    Args:
        path: The file, ``node_bytes`` long, zeros at first.

    Raises:
        OSError: It cannot be opened.

    Attributes:
        index: The claimed section; None where there is none.
        leads: This process is the one that watches.
    """

    def __init__(self, path: str) -> None:
        self.index: int | None = None
        self.leads = False
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._sections = (os.fstat(self._file).st_size - _FRAME_BYTES) // _SECTION_BYTES
        self._read: dict[tuple[int, int], bytes] = {}

    def claim(self) -> Section | None:
        """Take the first free section.

        Returns:
            What is in it, to go on with; None where all are taken.
        """
        self.index = next((index for index in range(self._sections) if self._lock(1 + index)), None)
        return self._section(self.index) if self.index is not None else None

    def write_head(self, head: dict[str, Any]) -> None:
        """Say who this is. OSError where there is no room."""
        self._write(0, orjson.dumps(head))

    def write_cell(self, slot: int, cell: bytes) -> None:
        """Put a cell, ``CELL_BYTES`` long at most, into its slot. OSError where there is no room."""
        self._write(1 + slot, cell)

    def others(self) -> list[Section]:
        """What all sections but this worker's own say, those of workers that are gone included."""
        found = (self._section(index) for index in range(self._sections) if index != self.index)
        return [section for section in found if section.head]

    def lead(self) -> bool:
        """Whether this process watches for alerts; tries to be the one."""
        self.leads = self.leads or self._lock(0)
        return self.leads

    def step_down(self) -> None:
        """Let another one watch."""
        if self.leads:
            self.leads = False
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK, 0))

    def write_watch(self, found: dict[str, Any]) -> None:
        """Note what the watch has found; only the one that leads. OSError where there is no room."""
        os.pwrite(self._file, _framed(orjson.dumps(found)), 0)

    def watch(self) -> dict[str, Any]:
        """What the watch has found; empty where there is nothing yet."""
        raw = self._frame(0)
        found: dict[str, Any] = orjson.loads(raw) if raw else {}
        return found

    def close(self) -> None:
        """Give up section and watch; what is written stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self.index, self.leads = -1, None, False

    # ------------------------------------------------------------------ frames
    def _lock(self, which: int) -> bool:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _record(fcntl.F_WRLCK, which))
            return True
        return False

    def _write(self, frame: int, payload: bytes) -> None:
        assert self.index is not None  # noqa: S101 - claimed before
        os.pwrite(self._file, _framed(payload), _place(self.index, frame))

    def _section(self, index: int) -> Section:
        raw = os.pread(self._file, _SECTION_BYTES, _place(index, 0))
        found: dict[int, bytes] = {}
        for frame in range(FRAMES):
            payload = _payload(raw, frame * _FRAME_BYTES)
            if payload is None:
                payload = self._frame(_place(index, frame))
            if payload is None:  # still being written: as it was
                payload = self._read.get((index, frame), b"")
            if payload:
                self._read[index, frame] = found[frame] = payload
        head: dict[str, Any] = orjson.loads(found.pop(0, b"{}"))
        return Section(index, head, {frame - 1: payload for frame, payload in found.items()})

    def _frame(self, place: int) -> bytes | None:
        for _ in range(_TRIES):
            found = _payload(os.pread(self._file, _FRAME_BYTES, place), 0)
            if found is not None:
                return found
        return None


def _place(index: int, frame: int) -> int:
    return _FRAME_BYTES + index * _SECTION_BYTES + frame * _FRAME_BYTES


def _record(kind: int, which: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _LOCKS_AT + which, 1, 0)


def _framed(payload: bytes) -> bytes:
    if len(payload) > CELL_BYTES:
        raise ValueError(f"{len(payload)} bytes do not fit into a frame of {CELL_BYTES}")
    return _HEAD.pack(zlib.crc32(payload), len(payload)) + payload


def _payload(raw: bytes, at: int) -> bytes | None:
    """What a frame holds, b"" where nothing was ever written; None where it is half-written."""
    if len(raw) < at + _HEAD.size:
        return b""
    checksum, length = _HEAD.unpack_from(raw, at)
    payload = raw[at + _HEAD.size : at + _HEAD.size + length]
    if length > CELL_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
        return None
    return payload
