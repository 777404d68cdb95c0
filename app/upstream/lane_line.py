"""Who waits for a slot of a pool whose connections are all in use: first come, first served, kind by kind.

    standing ──serve: a slot is free──> granted
       ├──turn_away: its kind is no longer used──> None: asks again, as another kind
       ├──timeout_s──> TimeoutError
       └──dissolve: the pool is closed──> ConnectError
Who leaves in the same turn in which a slot was granted gives it back.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

import httpx

from app.upstream.lanes import Kind
from app.upstream.transport_lane import LiveLane

Entry = tuple[Kind, asyncio.Future[LiveLane | None]]


class LaneLine:
    """The line of one pool.

    Args:
        give: Takes back a slot that was granted in vain.

    Attributes:
        standing: Those in it, in their order.
    """

    def __init__(self, give: Callable[[LiveLane], None]) -> None:
        self._give = give
        self._dissolved = False
        self.standing: collections.deque[Entry] = collections.deque()

    async def stand(self, kind: Kind, timeout_s: float) -> LiveLane | None:
        """A slot; None: ask again.

        Raises:
            TimeoutError: None in time.
            httpx.ConnectError: The pool was closed.
        """
        waiter: asyncio.Future[LiveLane | None] = asyncio.get_running_loop().create_future()
        entry = (kind, waiter)
        self.standing.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            self._leave(entry)
            raise
        except asyncio.CancelledError:
            self._leave(entry)
            task = asyncio.current_task()
            if self._dissolved and task is not None and not task.cancelling():
                raise httpx.ConnectError("The pool is closed.") from None
            raise

    def _leave(self, entry: Entry) -> None:
        if entry in self.standing:
            self.standing.remove(entry)
        waiter = entry[1]
        lane = waiter.result() if waiter.done() and not waiter.cancelled() else None
        if lane is not None:
            self._give(lane)

    def serve(self, take: Callable[[Kind], LiveLane | None]) -> None:
        """Hand out what is free now."""
        blocked: set[Kind] = set()
        for entry in list(self.standing):
            kind, waiter = entry
            if waiter.done() or kind in blocked:
                continue
            lane = take(kind)
            if lane is None:
                blocked.add(kind)
                continue
            self.standing.remove(entry)
            waiter.set_result(lane)

    def turn_away(self, kind: Kind) -> None:
        """Nobody gets a slot of this kind any more."""
        for entry in [entry for entry in self.standing if entry[0] == kind]:
            self.standing.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)

    def dissolve(self) -> None:
        """The pool is closed."""
        self._dissolved = True
        for _, waiter in self.standing:
            waiter.cancel()
