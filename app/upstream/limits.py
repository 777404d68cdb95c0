"""End tasks that take too long: many deadlines, one timer.

    begin ──in time──> end
      └──its instant passes──> struck: its task is cancelled ──> end says whether it was this alone

A timer for each exchange costs more than all else that is known of time here, and hardly any ever fires. So there
is one for all of them, set for the earliest instant there was when it was set; when it fires it looks at each.
Moving an instant to a later one is an assignment.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

_LATE_S = 0.001
"""Timers go by the millisecond: one that fired too early would have to be set again and again."""


class Limit:
    """The deadline of one task.

    Attributes:
        at: The instant (monotonic s). Whoever sets it to one before ``Limits.next_at`` calls ``Limits.arm``.
        struck: It has passed, and the task was cancelled for it.
    """

    __slots__ = ("at", "struck", "task")

    def __init__(self, task: asyncio.Task[Any], at: float) -> None:
        self.task = task
        self.at = at
        self.struck = False


class Limits:
    """The deadlines of one loop's tasks.

    Attributes:
        next_at: When the timer fires; infinite while there is none.
    """

    __slots__ = ("_open", "_timer", "next_at")

    def __init__(self) -> None:
        self._open: set[Limit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.next_at = math.inf

    def begin(self, at: float) -> Limit:
        """Cancel this task at that instant, unless ``end`` comes first."""
        task = asyncio.current_task(asyncio.get_running_loop())
        assert task is not None  # noqa: S101 - called from a coroutine
        limit = Limit(task, at)
        self._open.add(limit)
        if at < self.next_at:
            self.arm(at)
        return limit

    def end(self, limit: Limit) -> bool:
        """It is over; a second call changes nothing.

        Returns:
            The task was cancelled for its deadline, and by nobody else: its CancelledError ends here.
        """
        self._open.discard(limit)
        if not limit.struck:
            return False
        limit.struck = False
        return limit.task.uncancel() == 0

    def arm(self, at: float) -> None:
        """Look at all of them at that instant, which is before ``next_at``."""
        if self._timer is not None:
            self._timer.cancel()
        self.next_at = at
        delay_s = max(0.0, at - time.monotonic()) + _LATE_S
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self.next_at = math.inf
        now, next_at = time.monotonic(), math.inf
        for limit in list(self._open):
            if limit.at <= now:
                self._open.discard(limit)
                limit.struck = True
                limit.task.cancel()
            elif limit.at < next_at:
                next_at = limit.at
        if next_at < math.inf:
            self.arm(next_at)
