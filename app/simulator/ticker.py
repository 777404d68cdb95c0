"""Timers on a grid of one millisecond: all that are due together run together, so their writes share a flush.

Runs on: simulator loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Callback = Callable[[], None]


class Timer:
    """A pending call; ``cancel`` is cheap and final."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """The call will not be made."""
        self.callback = None


class Ticker:
    """Schedules calls; one loop timer for each millisecond in which something is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, tuple[asyncio.TimerHandle, deque[Timer]]] = {}

    def now(self) -> float:
        """The loop's clock in seconds."""
        return self._loop.time()

    def at(self, when_s: float, callback: Callback) -> Timer:
        """Calls ``callback`` at loop time ``when_s``, at most a millisecond late by design."""
        timer = Timer(callback)
        slot = int(when_s * 1000) + 1
        entry = self._slots.get(slot)
        if entry is None:
            entry = (self._loop.call_at(slot / 1000, self._due, slot), deque())
            self._slots[slot] = entry
        entry[1].append(timer)
        return timer

    def after(self, delay_s: float, callback: Callback) -> Timer:
        """Calls ``callback`` after ``delay_s`` seconds; 0 or less: in the next turn of the loop."""
        if delay_s > 0:
            return self.at(self._loop.time() + delay_s, callback)
        timer = Timer(callback)
        self._loop.call_soon(self._run, deque((timer,)))
        return timer

    def close(self) -> None:
        """Cancels everything."""
        for handle, timers in self._slots.values():
            handle.cancel()
            timers.clear()
        self._slots.clear()

    def _due(self, slot: int) -> None:
        """Runs what is due in ``slot``."""
        self._run(self._slots.pop(slot)[1])

    def _run(self, timers: deque[Timer]) -> None:
        """Runs all of ``timers``; one that raises does not take the others with it."""
        try:
            while timers:
                callback = timers.popleft().callback
                if callback is not None:
                    callback()
        finally:
            if timers:
                self._loop.call_soon(self._run, timers)
