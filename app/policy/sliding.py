"""Count events of the last few seconds, in ten buckets: two counts that slide together.

The window moves in steps of a tenth of its length, so it reaches back between nine tenths and the whole of it.
Ten integers a count, no event is kept, and a step costs at most ten additions however long nothing happened.

Pure.
"""

from __future__ import annotations

import math

BUCKETS = 10


class Sliding:
    """How many events there were lately, and how many of them were marked (a call that failed, a retry).

    The clock may stand still. An instant before the newest bucket is counted in the newest.

    Attributes:
        total: Events in the window, as of the last ``turn`` or ``add``.
        marked: Marked ones in the window, as of then; events and marks are counted apart, so a mark may outlive
            the event it belongs to.
    """

    __slots__ = ("_at", "_marks", "_number", "_totals", "_until", "_width_s", "marked", "total")

    def __init__(self, window_s: float) -> None:
        self._width_s = window_s / BUCKETS
        self._totals = [0] * BUCKETS
        self._marks = [0] * BUCKETS
        self._number = 0
        self._at = 0
        self._until = -math.inf
        self.total = 0
        self.marked = 0

    def add(self, now: float, total: int, marked: int) -> None:
        """Count ``total`` events and ``marked`` marks at the instant ``now`` (monotonic seconds)."""
        if now >= self._until:
            self._step(now)
        at = self._at
        self._totals[at] += total
        self.total += total
        if marked:
            self._marks[at] += marked
            self.marked += marked

    def turn(self, now: float) -> None:
        """Let go what has left the window by ``now``, so that ``total`` and ``marked`` are as of then."""
        if now >= self._until:
            self._step(now)

    def clear(self) -> None:
        """Forget everything."""
        self._totals = [0] * BUCKETS
        self._marks = [0] * BUCKETS
        self.total = 0
        self.marked = 0

    def _step(self, now: float) -> None:
        number = math.floor(now / self._width_s)
        for passed in range(min(number - self._number, BUCKETS)):
            at = (number - passed) % BUCKETS
            self.total -= self._totals[at]
            self.marked -= self._marks[at]
            self._totals[at] = 0
            self._marks[at] = 0
        self._number = number
        self._at = number % BUCKETS
        self._until = (number + 1) * self._width_s
