"""Run one event loop in one native thread, and let any thread post work to it.

    new --start()--> running --stop()--> stopped
                        |  anything raised through the loop
                        +--------------> dead          (``alive`` is False, an event says why)

The loop is cached in the native thread-local of its thread and carries the pid that made it, so a forked child
never uses its parent's. It is uvloop's where that installs (its DNS runs in libuv's own threads); else asyncio's
on the unpatched selector, with DNS in a native thread, since gevent's patched ones cost twice the CPU and hang.

Nothing here logs or counts: what there is to say is appended to ``events`` and reported by the worker side.

Runs on: loop (all but ``start``, ``post`` and ``stop``).
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from app.bridge.wait import at_leisure, native_threads, original

Events = deque[dict[str, object]]

BEAT_S = 0.5
_BEATS = 120
START_TIMEOUT_S = 10.0


def _native_local() -> Any:
    global _tls
    if _tls is None:
        _tls = original("_thread", "_local")()
    return _tls


_tls: Any = None


class _PlainLoop(asyncio.SelectorEventLoop):
    """asyncio's loop without executor threads: names are looked up in a native thread of their own."""

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        future = self.create_future()
        lookup = original("socket", "getaddrinfo")

        def settle(result: Any, error: OSError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def resolve() -> None:
            try:
                found, error = lookup(host, port, **kwargs), None
            except OSError as exc:
                found, error = None, exc
            self.call_soon_threadsafe(settle, found, error)

        original("_thread", "start_new_thread")(resolve, ())
        return await future


def new_loop() -> asyncio.AbstractEventLoop:
    """A fresh loop that uses nothing gevent has patched."""
    try:
        import uvloop
    except ImportError:
        selector = original("selectors", "DefaultSelector")()
        return _PlainLoop(selector if isinstance(selector, selectors.BaseSelector) else None)
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def loop_of_this_thread() -> asyncio.AbstractEventLoop:
    """The loop cached for this native thread in this process; made at the first call."""
    local = _native_local()
    cached: tuple[int, asyncio.AbstractEventLoop] | None = getattr(local, "loop", None)
    if cached is None or cached[0] != os.getpid() or cached[1].is_closed():
        cached = local.loop = (os.getpid(), new_loop())
    return cached[1]


class BackgroundLoop:
    """One event loop in one native thread.

    Attributes:
        name: For events.
        pid: Process that made it.
        alive: The thread runs its loop.
        last_beat: Instant (monotonic s) at which the loop last ran its own timer.
        beats: By how many seconds each of its last beats was late; whoever reads one takes it out.
        local: State owned by the loop thread; touch it only there.
        wakeups: How often posted work woke the loop (one per batch).
    """

    def __init__(self, name: str, events: Events) -> None:
        self.name = name
        self.pid = os.getpid()
        self.alive = False
        self.last_beat = 0.0
        self._beat_due = 0.0
        self.beats: deque[float] = deque(maxlen=_BEATS)
        self.local: dict[str, Any] = {}
        self.wakeups = 0
        self.in_flight = 0
        self.events = events
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._armed = False
        self._ident = 0
        self._get_ident: Callable[[], int] = original("_thread", "get_ident")
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread and wait until its loop runs. Blocks the caller for about a millisecond.

        Raises:
            RuntimeError: The thread did not come up within ten seconds.
        """
        ready = original("_thread", "allocate_lock")()
        ready.acquire()
        original("_thread", "start_new_thread")(self._main, (ready,))
        if not ready.acquire(True, START_TIMEOUT_S):
            raise RuntimeError(f"the {self.name} loop did not start within {START_TIMEOUT_S:g} s")

    def post(self, work: Callable[..., object], *args: Any) -> None:
        """Run ``work(*args)`` on the loop thread soon. From any thread; in order; one wake-up a batch."""
        self._inbox.append((work, args))
        if not self._armed:
            self._armed = True
            if not at_leisure(self._signal):
                self._signal()

    def _signal(self) -> None:
        """Wake the loop (any thread)."""
        assert self.loop is not None  # noqa: S101 - start() came first
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # closed in the meantime: ``alive`` says so to whoever waits
            self.alive = False

    def here(self) -> bool:
        """True on the loop's own thread."""
        return self._get_ident() == self._ident

    def report(self, event: dict[str, object]) -> None:
        """Say something: the worker side logs and counts it (any thread)."""
        self.events.append(event)

    def late_s(self) -> list[float]:
        """By how many seconds its beats since the last call were late; the last minute's at most (any thread)."""
        beats, found = self.beats, []
        while True:
            try:
                found.append(beats.popleft())
            except IndexError:  # all of them; or another thread had the last one
                return found

    def stop(self) -> None:
        """Stop the loop; pending tasks are cancelled."""
        if self.alive and self.loop is not None:
            self._inbox.append((self._stop, ()))
            self._signal()  # at once: whoever stops may never come to leisure again

    def _drain(self) -> None:
        self._armed = False  # before the pops: work posted from now on wakes again
        self.wakeups += 1
        inbox = self._inbox
        try:
            while inbox:
                work, args = inbox.popleft()
                work(*args)
        finally:
            if inbox:  # one piece of work failed: the loop reports it, and the rest is not left behind
                self._armed = True
                assert self.loop is not None  # noqa: S101
                self.loop.call_soon(self._drain)

    def _beat(self) -> None:
        self.last_beat = now = time.monotonic()
        self.beats.append(max(0.0, now - self._beat_due))
        self._beat_due = now + BEAT_S
        assert self.loop is not None  # noqa: S101
        self.loop.call_later(BEAT_S, self._beat)

    def _stop(self) -> None:
        assert self.loop is not None  # noqa: S101
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_later(0.05, self.loop.stop)

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.events.append(
            {
                "event": "loop_exception",
                "loop": self.name,
                "message": str(context.get("message", "")),
                "error": repr(error) if error is not None else "",
            }
        )

    def _main(self, ready: Any) -> None:
        native_threads.add()
        self._ident = self._get_ident()
        self.loop = loop = loop_of_this_thread()
        loop.set_exception_handler(self._on_exception)
        self.alive = True
        self._beat_due = time.monotonic()
        loop.call_soon(self._beat)
        loop.call_soon(ready.release)
        try:
            loop.run_forever()
        except BaseException as exc:  # noqa: BLE001 - the other rim: say why the thread ends
            self.events.append({"event": "loop_died", "loop": self.name, "error": repr(exc)})
        finally:
            self.alive = False
            native_threads.discard()
