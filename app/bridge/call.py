"""Open a crossing: start a task on the loop for a worker, hand its answer up, cancel it once when told.

Fallback: where the background loop must not or cannot serve (called on its own thread, dead, or silent for
``WEDGED_S``), the task runs on one of ``pool_size`` native threads, each with its own cached loop.

Runs on: worker (``Bridge``, the upper half of ``Crossing``) and loop (its lower half).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from app.bridge.loop import BackgroundLoop, Events
from app.bridge.stream import Down, Up
from app.bridge.wait import Bell, new_waiter, original
from app.errors import GatewayError, ProtocolBroken

WEDGED_S = 2.0
TICK_S = 0.4
STOP_S = 1.0

Make = Callable[["Crossing"], Coroutine[Any, Any, None]]


class Crossing:
    """One task on the loop, seen from both sides.

    The worker reads ``head()``, ``take()``, feeds ``upload`` and ends with ``close()``. The task gets this object
    and calls ``send_head`` once and ``await send(data)`` as bytes come.

    Attributes:
        upload: The pipe down, for bodies that are streamed.
        fallback: Served by the thread pool instead of the background loop.
        home: The loop that serves it.
    """

    __slots__ = ("_bell", "_closed", "_make", "_task", "fallback", "home", "up", "upload")

    def __init__(self, home: BackgroundLoop, make: Make, *, fallback: bool) -> None:
        self.home = home
        self.fallback = fallback
        self._make: Make | None = make
        self._bell = bell = Bell()  # a thing of its own: the pipes know it and not us, so that nothing is a cycle
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.up = Up(home.post, bell.ring)
        self.upload = Down(home.post, bell.ring)
        home.in_flight += 1

    @property
    def wakes(self) -> int:
        """Wake-ups of the worker so far."""
        return self._bell.rings

    # ------------------------------------------------------------------ worker
    def head(self, tick: Callable[[], None], timeout_s: float | None = None) -> object:
        """Wait for the head.

        Args:
            tick: Called about every ``TICK_S`` seconds of waiting; raises to give up.
            timeout_s: Raise TimeoutError after this many seconds without a head.

        Raises:
            GatewayError: What the task failed with.
            TimeoutError: No head within ``timeout_s``.
        """
        up = self.up
        self._sleep_until(up.headed, tick, timeout_s)
        head = up.head
        if head is None:
            raise up.error or ProtocolBroken("The task ended without an answer.")
        return head

    def take(self, tick: Callable[[], None], timeout_s: float | None = None) -> list[bytes]:
        """Wait for body bytes and take all that wait; an empty list is the end.

        Args:
            tick: As for ``head``.
            timeout_s: Raise TimeoutError after this many seconds without a byte.

        Raises:
            GatewayError: What the task failed with, after all bytes that came before.
            TimeoutError: Nothing came within ``timeout_s``.
        """
        up = self.up
        pieces = up.take()
        if not pieces:
            if not up.ended:
                self._sleep_until(up.readable, tick, timeout_s)
            pieces = up.take()  # once more at the end too: bytes may have come in front of it, after we looked
        if not pieces and up.error is not None:
            raise up.error
        return pieces

    def feed(self, data: bytes, tick: Callable[[], None], timeout_s: float) -> bool:
        """Hand one piece of an upload down; waits for room. False: an answer is there, stop sending.

        A piece larger than the room goes down in parts, so that never more than the limit waits.

        Raises:
            TimeoutError: The upstream took nothing for ``timeout_s`` seconds.
        """
        up, upload = self.up, self.upload
        start = 0
        while start < len(data):
            if not upload.room:
                upload.starved = True
                self._sleep_until(lambda: upload.room or up.ended or up.head is not None, tick, timeout_s)
                upload.starved = False
            if up.ended or up.head is not None:
                return False
            room = upload.room
            part = data if start == 0 and len(data) <= room else data[start : start + room]
            upload.put(part)
            start += len(part)
        return True

    def close(self) -> None:
        """Leave: cancel the task if it still runs. Safe to call more than once; cancels exactly once."""
        if self._closed:
            return
        self._closed = True
        self.home.in_flight -= 1
        if not self.up.ended:
            self.home.post(self._cancel)

    def _sleep_until(
        self, ready: Callable[[], object], tick: Callable[[], None], timeout_s: float | None = None
    ) -> None:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        wait = self._bell.wait
        while not ready():
            if not wait(ready, TICK_S if until is None else self._nap(until)):
                if ready():
                    return
                self._check(until, tick)

    @staticmethod
    def _nap(until: float) -> float:
        return max(0.0, min(TICK_S, until - time.monotonic()))

    def _check(self, until: float | None, tick: Callable[[], None]) -> None:
        if not self.home.alive:
            raise ProtocolBroken("The background loop died in the middle of this exchange.")
        tick()
        if until is not None and time.monotonic() >= until:
            raise TimeoutError

    # ------------------------------------------------------------------ loop
    def start(self) -> None:
        """Create the task (loop)."""
        loop = self.home.loop
        assert loop is not None  # noqa: S101 - we are on it
        self._task = loop.create_task(self._run())

    def send_head(self, head: object, *, hold: bool = False) -> None:
        """Hand up the head; with ``hold`` together with the whole of a short body (loop)."""
        self.up.send_head(head, hold=hold)

    @property
    def crowded(self) -> bool:
        """The worker is more than half a pipe behind (loop)."""
        return self.up.crowded

    async def send(self, data: bytes) -> float:
        """Hand up body bytes, waiting for credit; returns the seconds waited (loop)."""
        return await self.up.send(data)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def _run(self) -> None:
        make, self._make = self._make, None
        assert make is not None  # noqa: S101 - started once
        try:
            await make(self)
        except asyncio.CancelledError:
            self.up.finish(ProtocolBroken("The exchange was cancelled."))
        except GatewayError as exc:
            self.up.finish(exc)
        except Exception as exc:  # noqa: BLE001 - the rim: whatever a library raises ends this exchange only
            self.home.report({"event": "task_failed", "error": repr(exc)})
            failure = ProtocolBroken("The gateway failed inside this exchange.")
            failure.__cause__ = exc
            self.up.finish(failure)
        else:
            self.up.finish(None)
        self._task = None  # nor is that one a cycle: a task knows its coroutine, and that one knows us


class Bridge:
    """The background loop of this process, and the thread pool behind it.

    Attributes:
        events: What happened on the loop thread, as dicts, for the worker side to log and count.
        crossings: Crossings opened.
        fallbacks: Crossings served by the pool.
        degraded: Why the pool serves, or "".
    """

    def __init__(self, pool_size: int) -> None:
        self.events: Events = deque(maxlen=10_000)
        self.pid = os.getpid()
        self.main = BackgroundLoop("main", self.events)
        self.main.start()
        self.crossings = 0
        self.fallbacks = 0
        self.degraded = ""
        self.pool_size = pool_size
        self._pool: list[BackgroundLoop] = []
        self._lock = original("_thread", "allocate_lock")()

    @property
    def pool_active(self) -> int:
        """Pool threads that have a crossing under way."""
        return sum(1 for member in self._pool if member.in_flight > 0)

    def open(self, make: Make) -> Crossing:
        """Start ``make(crossing)`` as a task and return the worker's side of it."""
        home = self._choose()
        crossing = Crossing(home, make, fallback=home is not self.main)
        self.crossings += 1
        home.post(crossing.start)
        return crossing

    def call(self, read: Callable[[BackgroundLoop], Any], timeout_s: float = 1.0) -> Any:
        """Run ``read(loop)`` on the background loop's thread and return what it returns (a snapshot).

        Raises:
            TimeoutError: The loop did not answer within ``timeout_s``.
        """
        if self.main.here():
            return read(self.main)
        box: list[Any] = []
        waiter = new_waiter()

        def run() -> None:
            box.append(read(self.main))
            waiter.wake()

        self.main.post(run)
        until = time.monotonic() + timeout_s
        while not box:
            left = until - time.monotonic()
            if left <= 0 or not self.main.alive:
                raise TimeoutError("the background loop did not answer")
            waiter.wait(left)
        return box[0]

    def stop(self) -> None:
        """Stop all loops; their tasks are cancelled. Waits for their threads, for ``STOP_S`` at most.

        An interpreter that is finalized while a loop still fires its timers crashes.
        """
        loops = (self.main, *self._pool)
        for loop in loops:
            loop.stop()
        sleep, until = original("time", "sleep"), time.monotonic() + STOP_S
        while any(loop.alive and not loop.here() for loop in loops) and time.monotonic() < until:
            sleep(0.005)

    def check(self) -> str:
        """Why the background loop cannot serve, or "" (also noted in ``degraded`` and ``events``)."""
        reason = ""
        if not self.main.alive:
            reason = "loop_dead"
        elif time.monotonic() - self.main.last_beat > WEDGED_S:
            reason = "loop_wedged"
        if reason != self.degraded:
            self.degraded = reason
            self.events.append({"event": "bridge_degraded" if reason else "bridge_recovered", "reason": reason})
        return reason

    def _choose(self) -> BackgroundLoop:
        if not self.check() and not self.main.here():
            return self.main
        self.fallbacks += 1
        return self._pool_member()

    def _pool_member(self) -> BackgroundLoop:
        with self._lock:  # native: held for microseconds, never across a switch
            usable = [m for m in self._pool if m.alive and not m.here()]
            idle = [m for m in usable if m.in_flight == 0]
            if not idle and len(self._pool) < self.pool_size:
                member = BackgroundLoop(f"pool-{len(self._pool)}", self.events)
                member.start()
                self._pool.append(member)
                return member
        if not usable:
            raise ProtocolBroken("No loop of the bridge can serve this request.")
        return min(idle or usable, key=lambda member: member.in_flight)


_bridge: Bridge | None = None
_once = original("_thread", "allocate_lock")()


def get_bridge(pool_size: int = 4) -> Bridge:
    """This process's bridge; made at the first call, exactly once, anew after a fork.

    A native lock guards the making: nothing inside yields to another greenlet, so twenty first requests get one
    loop, not twenty.
    """
    global _bridge
    bridge = _bridge
    if bridge is not None and bridge.pid == os.getpid():
        return bridge
    with _once:
        if _bridge is None or _bridge.pid != os.getpid():
            _bridge = Bridge(pool_size)
        return _bridge
