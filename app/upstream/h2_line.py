"""Who waits for a place on a connection that carries as many streams as it may, first come first served.

    waiting ──admit──> promised (counted as taken) ──its task goes on──> the place is its own
       └──dissolve: the connection takes no more──> turned away
A task that is cancelled in between gives its place to the next.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Line:
    """The line of one connection.

    Attributes:
        waiting: Those in it.
        promised: Places that were given to tasks which have not gone on yet.
    """

    __slots__ = ("_loop", "promised", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting: deque[asyncio.Future[bool]] = deque()
        self.promised = 0

    async def wait(self, passed_on: Callable[[], None]) -> bool:
        """Whether there is a place; ``passed_on`` is called when it was given in vain."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self.waiting.append(waiter)
        try:
            got = await waiter
        except asyncio.CancelledError:
            if waiter in self.waiting:
                self.waiting.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.result():
                self.promised -= 1
                passed_on()
            raise
        if got:
            self.promised -= 1
        return got

    def admit(self, places: int) -> None:
        """Let as many go on as there are ``places``, those already promised included."""
        while self.waiting and self.promised < places:
            waiter = self.waiting.popleft()
            if not waiter.done():
                self.promised += 1
                waiter.set_result(True)

    def dissolve(self) -> None:
        """Turn everybody away."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(False)
