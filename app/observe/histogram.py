"""A Prometheus histogram that takes many values at once.

Context: one observation costs two writes into memory-mapped files under locks; an exchange makes four. Choice:
what was observed is gathered per bucket and added in one go. Price: tied to two attributes of prometheus_client's
own histogram, and to a test that holds both ways of observing against each other.

Runs on: worker.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import prometheus_client


class Histogram(prometheus_client.Histogram):
    """See ``observe_all``."""

    _upper_bounds: Any
    _buckets: Any
    _sum: Any

    def observe_all(self, values: Iterable[float]) -> None:
        """Observe every one of ``values``; cheaper than one by one where there are many."""
        counts: dict[int, int] = {}
        total = 0.0
        for value in values:
            index = bisect_left(self._upper_bounds, value)
            counts[index] = counts.get(index, 0) + 1
            total += value
        for index, count in counts.items():
            self._buckets[index].inc(count)
        self._sum.inc(total)
