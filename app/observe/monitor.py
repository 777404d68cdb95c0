"""Monitor the performance of a node: windows over all workers, trends, alerts (B44).

    from app.observe.monitor import get_performance_monitor, track_request, get_current_metrics

    observe(found)    any thread; puts aside Records that have been sorted
    pump()            the keeper every quarter second: adds up what waits; once a second writes what has changed to
                      the file the workers share; every five seconds, in one worker of the node, looks at the rules
    snapshot()        what all workers have seen, JSON-ready

Without a shared file (another server than gunicorn with our configuration) each process knows only itself, and
``scope`` says so.

Runs on: worker. Never on the loop thread: its locks are gevent's (facts 3).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, overload

from app.observe import alerts, process, windows
from app.observe.cells import LEVELS, Gathering, Tracked
from app.observe.groups import Sorted
from app.observe.growth import Growth
from app.observe.node_rings import Look, NodeRings
from app.observe.tracking import Timed, tracked
from app.observe.watch import Callback, Watch

EVALUATE_S: float = 5.0
_WRITE_S: Final = 1.0
_FRESH_S: Final = 1.0
_BACKLOG: Final = 10_000
"""Pieces of work that wait to be added up where no keeper runs."""
_MINUTE: Final = LEVELS[1]

Tell = Callable[[dict[str, object]], None]


def _no_one(event: dict[str, object]) -> None:
    """Nobody listens."""


def _alone() -> None:
    """There is no file."""


def _not_draining() -> bool:
    return False


def _nothing() -> None:
    """There is nothing more to come."""


class Setup(NamedTuple):
    """How a monitor works.

    Attributes:
        enabled: It does.
        path: Gives the file that the node's workers share, or None. Asked in the worker: an application
            that is loaded ahead of it is there before the file.
        tell: Takes events.
        draining: This worker is about to end: another one watches.
        settle: Has the Records made and sorted that are still to come; asked before anybody is shown anything.
    """

    enabled: bool = True
    path: Callable[[], str | None] = _alone
    tell: Tell = _no_one
    draining: Callable[[], bool] = _not_draining
    settle: Callable[[], None] = _nothing


class PerformanceMonitor:
    """One per process; ``get_performance_monitor`` has it.

    Args:
        clock: Monotonic seconds, the same for all workers.

    Attributes:
        observe: Takes Records that have been sorted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._setup = Setup()
        self._found: deque[Sorted] = deque()
        self._tracked: deque[Tracked] = deque()
        self.observe: Callable[[Sorted], None] = self._found.append
        self._watch = Watch((), _no_one)
        self._node: NodeRings | None = None
        self._reset()

    def _reset(self) -> None:
        """As new: at first, and in a child, which is another worker."""
        self._lock = threading.Lock()
        self._found.clear()
        self._tracked.clear()
        self._gathering = Gathering()
        if self._node is not None:
            self._node.close()
        self._node = None
        self._growth = Growth(self._clock())
        self._write_at = self._evaluate_at = 0.0
        self._shown: tuple[float, dict[str, Any]] | None = None
        self._watch.reset()

    # ------------------------------------------------------------------ for whoever puts it in
    def configure(self, setup: Setup, watch: Watch) -> None:
        """Work like this from now on, and count from the beginning; callbacks stay.

        Args:
            setup: How.
            watch: What is watched.
        """
        watch.callbacks[:0] = self._watch.callbacks
        self._watch.stop()
        self._setup, self._watch = setup, watch
        self._reset()

    def pump(self) -> None:
        """Do what was put off."""
        now = self._clock()
        with self._lock:
            node = self._take(now)
            if now >= self._write_at:
                self._write_at = now + _WRITE_S
                node.write(now)
            due = now >= self._evaluate_at
            if due:
                self._evaluate_at = now + EVALUATE_S
        if due:
            self._evaluate(node, now)
        elif self._watch.unwritten and node.file is not None and node.file.leads:
            self._watch.unwritten = False
            node.write_watch(self._watch.written())

    def stop(self) -> None:
        """Write what is left. Waits for nothing: whoever ends a worker may be in a signal's handler."""
        self._watch.stop()
        if not self._lock.acquire(blocking=False):
            return
        try:
            now = self._clock()
            self._take(now).write(now)
        finally:
            self._lock.release()

    @property
    def troubles(self) -> list[str]:
        """What does not work, for people."""
        node = self._node
        if not self._setup.enabled or node is None:
            return []
        return [reason for reason in (node.trouble, self._watched(node).get("trouble")) if reason]

    # ------------------------------------------------------------------ for applications
    def on_alert(self, callback: Callback) -> None:
        """Have ``callback(alert)`` called at every alert (``app.observe.alerts.Alert``), in a thread of its own.

        One worker of the node watches, and in that one it is called: once per alert. What it raises is logged.
        """
        self._watch.callbacks.append(callback)

    def track(self, one: Tracked) -> None:
        """Count one piece of the application's own work."""
        if not self._setup.enabled:
            return
        self._tracked.append(one)
        if len(self._tracked) >= _BACKLOG:
            self.pump()

    def snapshot(self) -> dict[str, Any]:
        """Everything: windows with trends, memory, alerts."""
        if not self._setup.enabled:
            return {"enabled": False}
        self._setup.settle()
        now = self._clock()
        with self._lock:
            node = self._take(now)
            found = node.look(now)
            watched = self._watched(node)
            return {
                "enabled": True,
                "scope": "process" if node.file is None else "node",
                "workers": found.workers,
                "windows": windows.summary(found.cells, now, found.born_at),
                "memory_growth_mb": found.growth_mb,
                "alerts": [_shown(rule, watched) for rule in self._watch.rules],
            }

    def view(self) -> dict[str, Any]:
        """The same, at most a second old: it may be asked often. Not to be changed."""
        now, shown = self._clock(), self._shown
        if shown is None or now - shown[0] >= _FRESH_S:
            shown = self._shown = (now, self.snapshot())
        return shown[1]

    # ------------------------------------------------------------------ inside
    def _take(self, now: float) -> NodeRings:
        """Add up what waits; the file is opened at the first time, so never in gunicorn's arbiter."""
        node = self._node
        if node is None:
            node = self._node = NodeRings(self._setup.path(), now, self._setup.tell)
        if self._found or self._tracked:
            found = [self._found.popleft() for _ in range(len(self._found))]
            own = [self._tracked.popleft() for _ in range(len(self._tracked))]
            node.rings.add(self._gathering.cell(found, own), now)
        return node

    def _watched(self, node: NodeRings) -> dict[str, Any]:
        """Where the alerts stand, as the one that watches says."""
        if node.file is None or node.file.leads:
            return self._watch.written()
        return node.file.watch()

    def _evaluate(self, node: NodeRings, now: float) -> None:
        """Look at the rules, if this is the worker that does."""
        resident = process.resident_bytes()
        if resident is not None:
            node.growth_mb = self._growth.take(now, resident)
        if self._watch.rules and self._leads(node):
            with self._lock:
                values = _values(node.look(now), now)
            self._watch.unwritten = False
            self._watch.evaluate(values, time.time())
            node.write_watch(self._watch.written())

    def _leads(self, node: NodeRings) -> bool:
        """Whether this worker watches; it begins to where nobody else does, and ceases to before it ends."""
        file, draining = node.file, self._setup.draining()
        if file is None:
            return not draining
        if draining:
            if file.leads:
                self._watch.step_down()
                file.step_down()
            return False
        if file.leads:
            return True
        if file.lead():
            self._watch.take_over(file.watch())
        return file.leads


def _values(found: Look, now: float) -> dict[str, float | None]:
    """What the rules are held against: the last minute of all workers."""
    minute = windows.window(_MINUTE, found.cells, now, found.born_at)
    timed = sum(minute.total.bins.values()) >= windows.ENOUGH
    lived = minute.span_s >= _MINUTE.window_s - _MINUTE.cell_s
    return {
        "p95_latency_ms": minute.p95_ms if timed else None,
        "p99_latency_ms": minute.p99_ms if timed else None,
        "error_rate": minute.error_rate if minute.total.requests >= windows.ENOUGH else None,
        "memory_growth_mb": found.growth_mb,
        "requests_per_second_min": minute.per_second if lived else None,
    }


def _shown(rule: alerts.Rule, watched: dict[str, Any]) -> dict[str, Any]:
    state = watched.get("states", {}).get(rule.name, {})
    return {
        "rule": rule.name,
        "threshold": rule.threshold,
        "window_s": rule.window_s,
        "state": state.get("phase", alerts.OK),
        "since": state.get("since", 0.0),
        "value": state.get("value"),
    }


_monitor: Final = PerformanceMonitor()
os.register_at_fork(after_in_child=_monitor._reset)


def get_performance_monitor() -> PerformanceMonitor:
    """This process's monitor; the gateways mounted in it share it."""
    return _monitor


@overload
def track_request(endpoint: str) -> Timed: ...


@overload
def track_request(
    endpoint: str, duration_ms: float, status: int = 200, error: str | BaseException | None = None
) -> None: ...


def track_request(
    endpoint: str, duration_ms: float | None = None, status: int = 200, error: str | BaseException | None = None
) -> Timed | None:
    """Count a piece of the application's own work, next to the gateway's exchanges.

        track_request("report", 12.5)                        one that took 12.5 ms
        track_request("report", 12.5, status=503)            one that failed; so does error="…" or an exception
        with track_request("report") as it: …                timed; may set it.status, it.error
        @track_request("report")                             every call of a function

    It is shown in every window under ``tracked``, by endpoint. It does not mix with what the gateway measures of
    its exchanges, which are counted without this, and raises no alerts.

    Args:
        endpoint: Name; the first 24 of a process stand for themselves, others are ``other``.
        duration_ms: How long it took; None: it is yet to be timed.
        status: HTTP status; 500 and above is a failure.
        error: Type of a failure, or the exception.

    Returns:
        None, or what times it where no ``duration_ms`` was given.

    Raises:
        ValueError: ``duration_ms`` is no length of time.
    """
    if duration_ms is None:
        return Timed(endpoint, _monitor.track)
    _monitor.track(tracked(endpoint, duration_ms, status, error))
    return None


def get_current_metrics() -> dict[str, Any]:
    """What the node has seen, JSON-ready: ``windows`` by name (10s, 1m, 5m, 1h) with trends, and ``alerts``.

    ``{"enabled": False}`` where ``ENABLE_PERFORMANCE_MONITOR`` is off.
    """
    return _monitor.snapshot()
