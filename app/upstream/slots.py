"""Wait for one of the provider's slots (B36): what ``policy/waiting_room.py`` decides, with futures.

    enter --free--> held --release--> (gone)        the slot goes to whoever is next, at once
      |               ^
      |--QueueFull    |
      `--> waiting ---'--cancelled, also in the turn it was handed the slot--> (gone)   the same

A slot that is handed over is the next one's from that moment, before its task has run; nobody who comes in
between can take it. If the next one's task is cancelled before it runs, it passes the slot on.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import QueueFull
from app.policy.waiting_room import Full, WaitingRoom


@dataclass(frozen=True, slots=True)
class SlotStats:
    """One provider's slots in this worker.

    Attributes:
        concurrency: Slots; this worker's share.
        buffer_size: Exchanges that may hold or await one, in drop mode; this worker's share.
        running: Slots held now.
        waiting: Exchanges in line now.
        dropped: Exchanges refused since the start.
        admitted: Exchanges that got a slot since the start.
        waited: Exchanges that had to get in line since the start, those that gave up included.
        oldest_wait_s: How long the one that waits longest has waited; 0 when nobody does.
        drop: Whether a full room refuses.
    """

    concurrency: int
    buffer_size: int
    running: int
    waiting: int
    dropped: int
    admitted: int
    waited: int
    oldest_wait_s: float
    drop: bool


class Slot:
    """A place that is held until ``release``. Made by ``Slots.enter``.

    Attributes:
        waited_s: How long it was waited for.
    """

    __slots__ = ("_leave", "waited_s")

    def __init__(self, leave: Callable[[Slot], None]) -> None:
        self._leave = leave
        self.waited_s = 0.0

    def release(self) -> None:
        """Give it back. Only the first call counts: the room no longer knows it at the second."""
        self._leave(self)


class Slots:
    """The slots of one provider.

    Args:
        concurrency: Exchanges that run at a time.
        buffer_size: Exchanges that may run or wait; it binds in drop mode only.
        drop: Refuse what is beyond ``buffer_size``.
        clock: Monotonic seconds.
    """

    def __init__(
        self, concurrency: int, buffer_size: int, drop: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._room: WaitingRoom[Slot] = WaitingRoom(concurrency, buffer_size, drop)
        self._drop = drop
        self._clock = clock
        self._line: dict[Slot, tuple[asyncio.Future[None], float]] = {}  # who waits, since when; oldest first
        self._dropped = 0
        self._admitted = 0
        self._waited = 0

    def take(self) -> Slot | None:
        """Get a slot at once; None: that takes ``enter``."""
        slot = Slot(self._leave)
        if not self._room.admit(slot):
            return None
        self._admitted += 1
        return slot

    async def enter(self, caller: str) -> Slot:
        """Get a slot, after waiting for one if need be. Callers that wait are served in turn.

        The wait has no end of its own: cancel it at the exchange's deadline, or when the client has left.

        Raises:
            QueueFull: In drop mode, at once. Nothing was sent.
        """
        slot = Slot(self._leave)
        try:
            free = self._room.enter(slot, caller)
        except Full:
            self._dropped += 1
            raise QueueFull from None
        if not free:
            await self._wait(slot)
        self._admitted += 1
        return slot

    def resize(self, concurrency: int, buffer_size: int) -> None:
        """Take on another share. Nobody who holds a slot loses it; nobody who waits is sent away."""
        for slot in self._room.resize(concurrency, buffer_size):
            self._hand_over(slot)

    def stats(self, now: float) -> SlotStats:
        """The figures as of now."""
        room = self._room
        _, since = next(iter(self._line.values()), (None, now))
        return SlotStats(
            concurrency=room.concurrency,
            buffer_size=room.buffer_size,
            running=room.running,
            waiting=room.waiting,
            dropped=self._dropped,
            admitted=self._admitted,
            waited=self._waited,
            oldest_wait_s=max(0.0, now - since),
            drop=self._drop,
        )

    async def _wait(self, slot: Slot) -> None:
        since = self._clock()
        handed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[slot] = (handed, since)
        self._waited += 1
        try:
            await handed
        except BaseException:
            self._line.pop(slot, None)
            slot.release()  # gives up its place in line, or passes on the slot it was just handed
            raise
        slot.waited_s = self._clock() - since

    def _leave(self, slot: Slot) -> None:
        following = self._room.leave(slot)
        if following is not None:
            self._hand_over(following)

    def _hand_over(self, slot: Slot) -> None:
        handed, _ = self._line.pop(slot)
        if not handed.done():  # done: it was cancelled this turn; it passes the slot on when its task runs
            handed.set_result(None)
