"""Let a worker wait until the loop thread wakes it: a greenlet through its hub, a thread through a native lock.

The only module of the data plane that knows gevent. What gevent has patched is never used to cross between
native threads (a patched lock loses wake-ups there); the originals are fetched when they are needed, so that it
does not matter whether gevent patches before or after this module is imported.

Runs on: worker (``wait``) and loop (``wake``).
"""

from __future__ import annotations

import importlib
import sys
from collections import deque
from typing import Any, Protocol


def original(module: str, name: str) -> Any:
    """The unpatched attribute ``module.name``, whether or not gevent has patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


class _NativeMark:
    """Names of native threads that belong to the bridge itself, by native identity."""

    def __init__(self) -> None:
        self._idents: set[int] = set()

    def add(self) -> None:
        self._idents.add(original("_thread", "get_ident")())

    def discard(self) -> None:
        self._idents.discard(original("_thread", "get_ident")())

    def here(self) -> bool:
        return original("_thread", "get_ident")() in self._idents


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
    """One per hub: wake-ups from other threads gather here and cost one watcher event a batch."""

    __slots__ = ("_armed", "_async", "_parked", "_woken")

    def __init__(self, hub: Any) -> None:
        self._woken: deque[GreenletWaiter] = deque()
        self._armed = False
        self._parked = 0
        self._async = hub.loop.async_()
        self._async.start(self._deliver)
        self._async.ref = False  # nobody waits yet: do not keep an idle hub alive

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

    def park(self) -> None:
        self._parked += 1
        if self._parked == 1:
            self._async.ref = True  # a waiting greenlet keeps the hub alive: no LoopExit

    def unpark(self) -> None:
        self._parked -= 1
        if self._parked == 0:
            self._async.ref = False


class GreenletWaiter:
    """Waits by switching to the hub; woken through the hub's async watcher."""

    __slots__ = ("_greenlet", "_hub", "_outbox", "_pending")

    def __init__(self) -> None:
        import gevent

        self._hub = gevent.get_hub()
        outbox = getattr(self._hub, "penstock_outbox", None)
        if outbox is None:
            outbox = self._hub.penstock_outbox = _Outbox(self._hub)
        self._outbox: _Outbox = outbox
        self._greenlet: Any = None
        self._pending = False

    def wait(self, timeout_s: float) -> bool:
        if self._pending:
            self._pending = False
            return True
        import gevent

        timer = self._hub.loop.timer(timeout_s)
        self._greenlet = gevent.getcurrent()
        self._outbox.park()
        timer.start(self._switch, False)
        try:
            return bool(self._hub.switch())
        finally:
            self._greenlet = None
            self._outbox.unpark()
            timer.stop()
            timer.close()

    def wake(self) -> None:
        self._outbox.wake(self)

    def resume(self) -> None:
        """In the hub: switch to the waiting greenlet, or remember that it was woken."""
        if self._greenlet is None:
            self._pending = True
        else:
            self._switch(True)

    def _switch(self, woken: bool) -> None:
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.switch(woken)


def new_waiter() -> Waiter:
    """A waiter for whoever is running: a greenlet where gevent has patched threads, else a native thread."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading") or native_threads.here():
        return ThreadWaiter()
    return GreenletWaiter()
