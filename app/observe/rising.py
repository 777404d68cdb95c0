"""Feed a Counter with a figure that only rises while its source lives, and starts at nothing with a new one.

A pool counts its own connections, on the loop; what is seen of it is a figure from time to time. A figure may be
a little lower than one seen before (a look taken in between, or two looks that overtook each other): then nothing
is added, and what comes later counts only beyond the highest seen.

Runs on: worker.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from prometheus_client import Counter


class Rising:
    """One Counter, fed by any number of sources.

    Args:
        counter: Only this feeds it.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._highest: WeakKeyDictionary[object, dict[tuple[str, ...], float]] = WeakKeyDictionary()

    def take(self, source: object, figure: float | None, *labels: str) -> None:
        """Add what ``figure`` has risen by.

        Args:
            source: Whose figure it is; a new one's started at 0.
            figure: As it stands now; None: not known.
            labels: Of the counter.
        """
        counter = self._counter.labels(*labels) if labels else self._counter
        if figure is None:
            return
        with self._lock:
            highest = self._highest.setdefault(source, {})
            risen = figure - highest.get(labels, 0.0)
            if risen <= 0:
                return
            highest[labels] = figure
        counter.inc(risen)
