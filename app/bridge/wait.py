"""Let a worker wait until the loop thread wakes it: a greenlet through its hub, a thread through a native lock.

The only module of the data plane that knows gevent. What gevent has patched is never used to cross between
native threads (a patched lock loses wake-ups there); the originals are fetched when they are needed, so that it
does not matter whether gevent patches before or after this module is imported.

Runs on: worker (``wait``) and loop (``wake``).
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

TICKER_S: Final = 0.1
COARSE_FROM_S: Final = 0.4
"""Waits as long as this end up to ``TICKER_S`` late, for less than a timer of their own costs."""


def original(module: str, name: str) -> Any:
    """The unpatched attribute ``module.name``, whether or not gevent has patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


_get_ident: Callable[[], int] = original("_thread", "get_ident")


class _NativeMark:
    """Names of native threads that belong to the bridge itself, by native identity."""

    def __init__(self) -> None:
        self._idents: set[int] = set()

    def add(self) -> None:
        self._idents.add(_get_ident())

    def discard(self) -> None:
        self._idents.discard(_get_ident())

    def here(self) -> bool:
        return _get_ident() in self._idents


native_threads = _NativeMark()


class Waiter(Protocol):
    """One worker's place to wait. Wake-ups may be spurious: the caller looks again at what it waits for."""

    def wait(self, timeout_s: float) -> bool:
        """Sleep until ``wake`` or for ``timeout_s`` seconds. True if woken."""

    def wake(self) -> None:
        """End the sleep, or the next one. From any thread."""


class ThreadWaiter:
    """Waits on a native lock; for plain threads and for the bridge's own ones."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = original("_thread", "allocate_lock")()
        self._lock.acquire()

    def wait(self, timeout_s: float) -> bool:
        return bool(self._lock.acquire(True, timeout_s))

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # already released: the wake-up is still to be taken
            return


class _Outbox:
    """One per hub: wake-ups from other threads gather here and cost one watcher event a batch.

    Those who wait for long share one ticker: a timer of its own for each costs more than its wait.
    """

    __slots__ = ("_armed", "_async", "_hub", "_ticker", "_ticking", "_woken", "getcurrent", "parked")

    def __init__(self, hub: Any) -> None:
        import gevent

        self.getcurrent = gevent.getcurrent
        self.parked: dict[GreenletWaiter, float] = {}
        self._hub = hub
        self._woken: deque[GreenletWaiter] = deque()
        self._armed = False
        self._async = hub.loop.async_()
        self._async.start(self._deliver)
        self._async.ref = False  # nobody waits yet: do not keep an idle hub alive
        self._ticker = hub.loop.timer(TICKER_S, TICKER_S, ref=False)
        self._ticking = False

    def wake(self, waiter: GreenletWaiter) -> None:
        self._woken.append(waiter)
        if not self._armed:
            self._armed = True
            self._async.send()

    def _deliver(self) -> None:
        self._armed = False  # before the pops: a wake-up that comes now arms again
        woken = self._woken
        while woken:
            woken.popleft().resume()

    def wait(self, waiter: GreenletWaiter, timeout_s: float) -> bool:
        """Switch to the hub until woken, or for about ``timeout_s`` (never less)."""
        parked = self.parked
        if not parked:
            self._async.ref = True  # a waiting greenlet keeps the hub alive: no LoopExit
        timer = None
        if timeout_s < COARSE_FROM_S:
            parked[waiter] = math.inf
            timer = self._hub.loop.timer(timeout_s)
            timer.start(waiter.expire)
        else:
            parked[waiter] = time.monotonic() + timeout_s
            if not self._ticking:
                self._ticking = True
                self._ticker.start(self._tick)
        try:
            return bool(self._hub.switch())
        finally:
            del parked[waiter]
            if not parked:
                self._async.ref = False
            if timer is not None:
                timer.stop()
                timer.close()

    def _tick(self) -> None:
        """Wake those whose time is up; with nobody left, stop."""
        if not self.parked:
            self._ticking = False
            self._ticker.stop()
            return
        now = time.monotonic()
        for waiter in [waiter for waiter, due in self.parked.items() if due <= now]:
            waiter.expire()


class GreenletWaiter:
    """Waits by switching to the hub; woken through the hub's async watcher."""

    __slots__ = ("_greenlet", "_outbox", "_pending")

    def __init__(self) -> None:
        import gevent

        hub = gevent.get_hub()
        outbox = getattr(hub, "penstock_outbox", None)
        if outbox is None:
            outbox = hub.penstock_outbox = _Outbox(hub)
        self._outbox: _Outbox = outbox
        self._greenlet: Any = None
        self._pending = False

    def wait(self, timeout_s: float) -> bool:
        if self._pending:
            self._pending = False
            return True
        outbox = self._outbox
        self._greenlet = outbox.getcurrent()
        try:
            return outbox.wait(self, timeout_s)
        finally:
            self._greenlet = None

    def wake(self) -> None:
        self._outbox.wake(self)

    def resume(self) -> None:
        """In the hub: switch to the waiting greenlet, or remember that it was woken."""
        if self._greenlet is None:
            self._pending = True
        else:
            self._switch(True)

    def expire(self) -> None:
        """In the hub: the wait has lasted long enough."""
        self._switch(False)

    def _switch(self, woken: bool) -> None:
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.switch(woken)


class Bell:
    """A worker's place to wait for something, and what the loop rings when that may be there.

    No wake-up is lost: the worker says that it is about to sleep, then looks once more; whoever rings has made its
    change before it looks whether somebody sleeps.

    Attributes:
        rings: Sleeps that were ended.
    """

    __slots__ = ("_parked", "_waiter", "rings")

    def __init__(self) -> None:
        self._waiter: Waiter | None = None
        self._parked = False
        self.rings = 0

    def wait(self, ready: Callable[[], object], timeout_s: float) -> bool:
        """Sleep unless ``ready()``; False if the time passed without a ring (worker)."""
        waiter = self._waiter
        if waiter is None:
            waiter = self._waiter = new_waiter()
        self._parked = True
        woken = bool(ready()) or waiter.wait(timeout_s)
        self._parked = False
        return woken

    def ring(self) -> None:
        """Wake the sleeper, if there is one (loop)."""
        if self._parked:
            self._parked = False
            self.rings += 1
            waiter = self._waiter
            assert waiter is not None  # noqa: S101 - nobody is parked without one
            waiter.wake()


def _greenlets_here() -> bool:
    """Whether a greenlet is running: gevent has patched threads, and this one is not the bridge's own."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading") and not native_threads.here()


def at_leisure(work: Callable[[], None]) -> bool:
    """Run ``work`` when this greenlet's hub has run what is ready now; False where there is no hub to do it.

    Waking a native thread earlier makes the two fight for the interpreter: the other one gets it at this one's
    next system call, and each turn of that kind costs two wake-ups by the kernel.
    """
    if not _greenlets_here():
        return False
    loop = sys.modules["gevent"].get_hub().loop
    if loop is None or not loop.default:  # this process is ending; or a thread whose hub may never run again
        return False
    loop.run_callback(work)
    return True


def new_waiter() -> Waiter:
    """A waiter for whoever is running: a greenlet where gevent has patched threads, else a native thread."""
    return GreenletWaiter() if _greenlets_here() else ThreadWaiter()
