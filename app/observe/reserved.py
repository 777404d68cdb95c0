"""Keep this worker's metrics in files whose space is taken before they are mapped; without it, in its own memory.

Context: prometheus_client maps sparse files, and a write to a page for which the disk has no room is SIGBUS: a
full directory would kill every worker as it starts. Choice: ``posix_fallocate`` first, at the start and as a file
grows; where that fails the worker goes on in memory of its own, and ``metrics_dir.troubles`` says so. Price: tied
to attributes of prometheus_client's own class. What a file held until then stays in it, but for live gauges: those
would tell of a worker as it once was.

Imported for its effect before any metric is made. Nothing is tried again: a worker that is alone stays alone.

Runs on: worker.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import prometheus_client.values
from prometheus_client.mmap_dict import MmapedDict

from app import metrics_dir
from app.settings import environment

_FIRST_BYTES: Final = 1 << 16  # as prometheus_client's own
_UNUSABLE: Final = (OSError, ValueError, RuntimeError, struct.error)  # the latter: rubbish of a reused pid


class ReservedDict(MmapedDict):
    """See prometheus_client's own, in whose place it stands.

    Args:
        filename: Is made where it is missing.
        read_mode: Nothing is made or reserved.
    """

    _f: Any
    _m: Any
    _capacity: int
    _used: int

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self._path = filename
        self._f = None
        if read_mode:
            super().__init__(filename, True)  # type: ignore[no-untyped-call]
            return
        try:
            _reserve(filename, _FIRST_BYTES, os.O_CREAT)
            super().__init__(filename)  # type: ignore[no-untyped-call]
        except _UNUSABLE as error:
            if self._f is not None:
                self._f.close()
            self._positions: dict[str, int] = {}
            self._used, self._capacity = 8, _FIRST_BYTES
            self._alone(struct.pack("i", 8).ljust(_FIRST_BYTES, b"\0"), error)
        else:
            _mapped.add(self)

    @property
    def missed(self) -> bool:
        """It is mapped, and its file is not where others would look for it."""
        if self._f is None:
            return False
        try:
            return not os.path.samestat(Path(self._path).stat(), os.fstat(self._f.fileno()))
        except OSError:
            return True

    def _init_value(self, key: str) -> None:
        text = len(key.encode())
        entry = 4 + text + (8 - (text + 4) % 8) + 16
        while self._used + entry > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self) -> None:
        wanted = self._capacity * 2
        if self._f is None:
            self._m.extend(bytes(self._capacity))
            self._capacity = wanted
            return
        try:
            _reserve(self._path, wanted)
            self._m = mmap.mmap(self._f.fileno(), wanted)
        except (OSError, ValueError) as error:  # ValueError: another, shorter file has taken its place
            held = self._m[:]
            self._m.close()
            self._f.close()
            self._alone(held, error)
        else:
            self._capacity = wanted

    def _alone(self, held: bytes, error: Exception) -> None:
        """Go on with what there is, seen by nobody else."""
        self._f, self._m = None, bytearray(held)
        folder, name = os.path.split(self._path)
        if name.startswith("gauge_live"):
            with contextlib.suppress(OSError):
                Path(self._path).unlink()
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        metrics_dir.trouble(f"{folder}: {why}; this worker counts for itself")

    def close(self) -> None:
        """Its memory, if it has no file, goes with it."""
        if self._f is not None:
            super().close()  # type: ignore[no-untyped-call]


class Unshared:
    """Tells once of each reason why others do not see what this worker counts.

    Args:
        tell: Takes an event.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None]) -> None:
        self._tell = tell
        self._told = 0

    @property
    def troubles(self) -> list[str]:
        """Why, for people; never shorter than before."""
        if any(one.missed for one in list(_mapped)):
            metrics_dir.trouble("this worker's files are gone; nobody else sees what it counts")
        return [f"metrics are not shared: {one}" for one in metrics_dir.troubles]

    def pump(self) -> None:
        """Look, and tell what is new."""
        found = self.troubles
        for reason in found[self._told :]:
            self._tell({"event": "metrics_not_shared", "reason": reason})
        self._told = len(found)


def _reserve(path: str, size: int, flags: int = 0) -> None:
    """Open the file and take space for all of it; an empty one does not stay behind."""
    file = os.open(path, os.O_RDWR | flags, 0o666)  # not to append: the C library's own way would refuse that
    try:
        before = os.fstat(file).st_size
        try:
            os.posix_fallocate(file, 0, max(before, size))
        except OSError:
            if before:
                os.ftruncate(file, before)
            else:
                Path(path).unlink(missing_ok=True)  # empty, it would be a fault to whoever reads
            raise
    finally:
        os.close(file)


_mapped: WeakSet[ReservedDict] = WeakSet()
if metrics_dir.VARIABLE in environment():
    prometheus_client.values.MmapedDict = ReservedDict  # type: ignore[attr-defined]
