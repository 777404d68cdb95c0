"""Gather what finished in cells of time: how many exchanges, what failed, how long each endpoint took.

    10s    20 cells of 1 s          each window has a ring of its own, twice as long as itself, so that it can be
    1m     24 cells of 5 s          held against the one before it; whatever is added goes into the newest cell of
    5m     20 cells of 30 s         each of the four
    1h     24 cells of 5 min

Times are counted in bins whose bounds grow by 2 % (``ddsketch``'s logarithmic mapping), so that a quantile is
within 1 % of the exact one, cells can be added to each other, and a time costs one number however many there are.

Pure.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from math import ceil, log, log1p
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from ddsketch import LogarithmicMapping
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.store import DenseStore

from app.observe.folding import OTHER, TYPES, Fold
from app.observe.groups import Sorted, failures

ACCURACY: Final = 0.01
LEAST_MS: Final = 0.001
MOST_MS: Final = 1e8
"""Times beyond these bounds count as the bound: a microsecond, and a day and more."""
ENDPOINTS: Final = 24
"""Names that stand for themselves in one process; others are ``other``."""

_MAPPING: Final = LogarithmicMapping(ACCURACY)
_LEAST_KEY: Final = _MAPPING.key(LEAST_MS)
_BINS_PER_DOUBLING: Final = 1 / log1p(2 * ACCURACY / (1 - ACCURACY)) * log(2)
_GATEWAY_MS: Final = attrgetter("gateway_ms")


class Level(NamedTuple):
    """One window and the ring it is made of.

    Attributes:
        name: As it is shown.
        window_s: Length of the window.
        cell_s: Length of one cell.
        first: Number of its first slot among those of all levels.
    """

    name: str
    window_s: int
    cell_s: int
    first: int

    @property
    def cells(self) -> int:
        """Slots of its ring: two windows."""
        return 2 * self.window_s // self.cell_s

    def tick(self, now: float) -> int:
        """Number of the cell that ``now`` is in."""
        return int(now // self.cell_s)

    def slot(self, tick: int) -> int:
        """Where the cell of that number is kept."""
        return self.first + tick % self.cells


LEVELS: Final = (
    Level("10s", 10, 1, 0),
    Level("1m", 60, 5, 20),
    Level("5m", 300, 30, 44),
    Level("1h", 3600, 300, 64),
)
SLOTS: Final = 88
_VERSION: Final = 1
"""Of what ``encode`` makes; a reload may bring workers of another."""


class Series:
    """What one endpoint did.

    Attributes:
        requests: How many ended.
        failures: How many of them failed, by type.
        bins: How many of those of which the time is known took so long, by the sketch's key.
    """

    __slots__ = ("bins", "failures", "requests")

    def __init__(
        self, requests: int = 0, failures: dict[str, int] | None = None, bins: dict[int, int] | None = None
    ) -> None:
        self.requests = requests
        self.failures: dict[str, int] = {} if failures is None else failures
        self.bins: dict[int, int] = {} if bins is None else bins

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values())

    def add(self, other: Series) -> None:
        """What ``other`` did, too."""
        self.requests += other.requests
        _add(self.failures, other.failures)
        _add(self.bins, other.bins)

    def quantiles(self, *wanted: float) -> list[float | None]:
        """Each of ``wanted`` in milliseconds, within 1 %; None where no time is known."""
        store = DenseStore()
        for key in sorted(self.bins):
            store.add(key, self.bins[key])
        sketch = BaseDDSketch(_MAPPING, store, DenseStore(), 0.0)
        return [sketch.get_quantile_value(one) for one in wanted]


_Key = TypeVar("_Key", int, str)


def _add(to: dict[_Key, int], counts: Mapping[_Key, int]) -> None:
    get = to.get
    for name, count in counts.items():
        to[name] = get(name, 0) + count


class Cell:
    """What ended within one span of time.

    Attributes:
        exchanges: Of the gateway, by route.
        tracked: Of the application around it, as it told, by endpoint.
    """

    __slots__ = ("exchanges", "tracked")

    def __init__(self) -> None:
        self.exchanges: dict[str, Series] = {}
        self.tracked: dict[str, Series] = {}

    def add(self, other: Cell) -> None:
        """What ``other`` holds, too."""
        for mine, theirs in ((self.exchanges, other.exchanges), (self.tracked, other.tracked)):
            for name, series in theirs.items():
                found = mine.get(name)
                if found is None:
                    found = mine[name] = Series()
                found.add(series)


class Tracked(NamedTuple):
    """One piece of an application's own work. ``error`` is its type, "" for none."""

    endpoint: str
    ms: float
    error: str


class Gathering:
    """Makes a cell of a batch; keeps the names few."""

    def __init__(self) -> None:
        self._route, self._endpoint, self._type = Fold(ENDPOINTS), Fold(ENDPOINTS), Fold(TYPES)

    def cell(self, found: Iterable[Sorted], tracked: Iterable[Tracked] = ()) -> Cell:
        """What these amount to."""
        made = Cell()
        for sort, group in chain.from_iterable(one.items() for one in found):
            series = self._series(made.exchanges, self._route(sort.route))
            series.requests += len(group)
            for kind, count in failures(sort, group).items():
                _add(series.failures, {self._type(kind): count})
            _add(series.bins, bins([ms for ms in map(_GATEWAY_MS, group) if ms is not None]))
        for endpoint, ms, error in tracked:
            series = self._series(made.tracked, self._endpoint(endpoint))
            series.requests += 1
            if error:
                _add(series.failures, {self._type(error): 1})
            _add(series.bins, bins([ms]))
        return made

    def _series(self, into: dict[str, Series], name: str) -> Series:
        series = into.get(name)
        if series is None:
            series = into[name] = Series()
        return series


def bins(times_ms: Iterable[float]) -> Counter[int]:
    """How many times fall into each bin: the sketch's own keys, which it would take four times as long over."""
    return Counter(
        [
            ceil(log(ms if ms < MOST_MS else MOST_MS, 2) * _BINS_PER_DOUBLING) if ms > LEAST_MS else _LEAST_KEY
            for ms in times_ms
        ]
    )


class Rings:
    """The cells of one process, by slot.

    Attributes:
        cells: Number and cell of each slot that has been used.
    """

    def __init__(self) -> None:
        self.cells: dict[int, tuple[int, Cell]] = {}
        self._changed: set[int] = set()

    def add(self, batch: Cell, now: float) -> None:
        """``batch`` ended just before ``now``."""
        for level in LEVELS:
            tick = level.tick(now)
            slot = level.slot(tick)
            kept = self.cells.get(slot)
            if kept is None or kept[0] != tick:
                kept = self.cells[slot] = (tick, Cell())
            kept[1].add(batch)
            self._changed.add(slot)

    def take_changed(self) -> list[int]:
        """The slots that have changed since this was asked last."""
        changed = sorted(self._changed)
        self._changed.clear()
        return changed


def encode(tick: int, cell: Cell, limit_bytes: int) -> bytes:
    """A cell for others to read.

    Where it does not fit, neighbouring bins of it become one, again and again: quantiles get coarser, counts stay
    right. (No cell of real traffic comes near: 1,000 bins take 3 KiB.)

    Args:
        tick: Its number.
        cell: What it holds.
        limit_bytes: Length it may have.
    """
    coarse = 1
    while True:
        plain = [_VERSION, tick, _plain(cell.exchanges, coarse), _plain(cell.tracked, coarse)]
        made = zlib.compress(orjson.dumps(plain), 1)
        if len(made) <= limit_bytes:
            return made
        if coarse > 1 << 12:  # bins are one by now: it is the names
            return encode(tick, _folded(cell), limit_bytes)
        coarse *= 2


def _plain(series: Mapping[str, Series], coarse: int) -> dict[str, list[Any]]:
    return {name: [one.requests, one.failures, *_columns(one.bins, coarse)] for name, one in series.items()}


def _columns(found: Mapping[int, int], coarse: int) -> tuple[list[int], list[int]]:
    """Distances of the keys from each other, which compress well, and the counts."""
    if coarse > 1:
        joined: Counter[int] = Counter()
        for key, count in found.items():
            joined[key // coarse * coarse + coarse // 2] += count
        found = joined
    keys = sorted(found)
    return [key - before for key, before in zip(keys, [0, *keys], strict=False)], [found[key] for key in keys]


def _folded(cell: Cell) -> Cell:
    """The same under one name."""
    made = Cell()
    for mine, theirs in ((made.exchanges, cell.exchanges), (made.tracked, cell.tracked)):
        for series in theirs.values():
            one = mine.setdefault(OTHER, Series())
            one.add(Series(series.requests, {OTHER: series.failed} if series.failed else {}, series.bins))
    return made


def decode(data: bytes) -> tuple[int, Cell] | None:
    """Number and content of a cell that ``encode`` made; None where one of another version did."""
    version, *plain = orjson.loads(zlib.decompress(data))
    if version != _VERSION:
        return None
    tick, exchanges, tracked = plain
    cell = Cell()
    cell.exchanges, cell.tracked = _series(exchanges), _series(tracked)
    return tick, cell


def _series(plain: Mapping[str, list[Any]]) -> dict[str, Series]:
    found = {}
    for name, (requests, failed, steps, counts) in plain.items():
        key, filled = 0, {}
        for step, count in zip(steps, counts, strict=True):
            key += step
            filled[key] = count
        found[name] = Series(requests, failed, filled)
    return found
