"""Sort Records by what happened, so that each sort is counted in one go.

    observe(records)  any thread; puts them aside
    flush()           the keeper every quarter second, whoever is asked for figures, and the end of the worker

Context: a Record has some thirty fields, and what is done per Record and field is the dearest part of counting.
Choice: Records that agree in all that may be a label are counted together, column by column, and sorted once for
all who count. Price: one more name for a thing, the sort; and a quarter second.

Runs on: worker. Never on the loop thread: those who count have locks that are gevent's (facts 3).
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final, NamedTuple

from app.exchange import Record
from app.observe.failures import failure_of


class Sort(NamedTuple):
    """What Records of one sort have in common."""

    route: str
    model: str
    status: int
    slug: str
    provider: str
    stream_error: str
    client_left: bool
    fallback: bool


_FINE: Final = {"200"}
Sorted = Mapping[Sort, Sequence[Record]]
_SORT: Final[Callable[[Record], tuple[Any, ...]]] = attrgetter(*Sort._fields)


def sorts(records: Iterable[Record]) -> Sorted:
    """All of ``records``, by their sort; each sort's in the order they came."""
    found: defaultdict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[_SORT(record)].append(record)
    return {Sort._make(key): group for key, group in found.items()}


def failures(sort: Sort, group: Sequence[Record]) -> Mapping[str, int]:
    """How many of ``group`` failed, by type; in most groups there are none, and no Record is asked."""
    if not sort.slug and not sort.stream_error:
        outcomes = {record.attempts[-1].outcome if record.attempts else "" for record in group}
        if outcomes == _FINE:
            return {}
    found = Counter(map(failure_of, group))
    del found[""]
    return found


_all: Final[weakref.WeakSet[Gathered]] = weakref.WeakSet()


class Gathered:
    """Records that wait to be counted.

    Args:
        counters: Each is shown every Record once.

    Attributes:
        observe: Takes Records.
    """

    def __init__(self, counters: Sequence[Callable[[Sorted], None]]) -> None:
        self._counters = counters
        self._waiting: deque[Record] = deque()
        self.observe: Final[Callable[[Sequence[Record]], None]] = self._waiting.extend
        _all.add(self)

    def flush(self) -> None:
        """Have all counted that wait."""
        records = []
        with suppress(IndexError):  # another thread had the last one
            while True:
                records.append(self._waiting.popleft())
        if records:
            found = sorts(records)
            for count in self._counters:
                count(found)


def _forget_all() -> None:
    """In a child: what waits is the parent's to count."""
    for gathered in list(_all):
        gathered._waiting.clear()


os.register_at_fork(after_in_child=_forget_all)
