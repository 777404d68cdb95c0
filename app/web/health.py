"""Know how this worker is: its bridge, its connections, whether the upstream can be reached.

    ready --connect_failed--> unreachable --a connection succeeds--> ready
    any   --SIGTERM---------> draining
    any   --bridge check----> degraded (still serves, through the thread pool)

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.bridge.call import Bridge
from app.errors import GatewayError
from app.exchange import Record
from app.gateway.life import Life
from app.observe import metrics
from app.observe.logs import ExchangeLog
from app.upstream.dispatch import Dispatcher, warming
from app.upstream.pool import PoolStats

_CONNECT_FAILED = "connect_failed"
_WARM_UP_FAILED = "warm_up_failed"
_UNREACHABLE = "the upstream cannot be reached"


def _never() -> None:
    """Nothing ends this wait but its own time."""


class Health:
    """One per process.

    Args:
        bridge: Gives the process's bridge.
        dispatcher: Gives a loop's dispatcher; called on that loop.
        life: State of this worker.
        log: Where events go.
        origin: Of the upstream.
        provider: Its name, for labels.
    """

    def __init__(
        self,
        bridge: Callable[[], Bridge],
        dispatcher: Callable[[Any], Dispatcher],
        life: Life,
        log: ExchangeLog,
        origin: str,
        provider: str,
    ) -> None:
        self.bridge = bridge
        self.life = life
        self._dispatcher = dispatcher
        self._log = log
        self._origin = origin
        self._provider = provider
        self._unreachable = ""

    def observe(self, record: Record) -> None:
        """Learn from a finished exchange whether the upstream can be reached."""
        if record.slug == _CONNECT_FAILED:
            self._unreachable = _UNREACHABLE
        elif self._unreachable and record.upstream_head_ms is not None:
            self._unreachable = ""

    def warm_up(self) -> None:
        """Open the first upstream connection, in the background."""
        self.bridge().open(warming(self._dispatcher, self._origin))

    def probe(self, timeout_s: float = 2.0) -> None:
        """Try the upstream again after it could not be reached; notes what came of it."""
        crossing = self.bridge().open(warming(self._dispatcher, self._origin))
        try:
            if crossing.head(_never, timeout_s):
                self._unreachable = ""
        except (TimeoutError, GatewayError):
            return
        finally:
            crossing.close()

    def stats(self) -> tuple[PoolStats, ...]:
        """Connection statistics of the background loop's pools; empty where the loop does not answer."""

        def read(loop: Any) -> tuple[PoolStats, ...]:
            return self._dispatcher(loop).stats()

        try:
            found: tuple[PoolStats, ...] = self.bridge().call(read)
        except TimeoutError:
            return ()
        return found

    def state(self) -> dict[str, Any]:
        """What ``/ready`` says: ``status`` and why."""
        reasons = []
        bridge = self.bridge()
        degraded = bridge.check()
        if self._unreachable and not self.life.draining:
            self.probe()
        status = "ready"
        if degraded:
            status = "degraded"
            reasons.append(degraded)
        if self._unreachable:
            status = "unavailable"
            reasons.append(self._unreachable)
        if self.life.draining:
            status = "draining"
            reasons.append("draining")
        return {
            "status": status,
            "reasons": reasons,
            "in_flight": self.life.in_flight,
            "upstreams": [
                {"transport": s.transport, "open_connections": s.open_connections, "handshakes": s.handshakes}
                for s in self.stats()
            ],
        }

    def publish(self) -> None:
        """Bring this worker's gauges up to date and write out what the loop had to say."""
        bridge = self.bridge()
        degraded = bridge.check()
        for name in self._log.drain(bridge.events):
            metrics.EVENTS.labels(name).inc()
            if name == _WARM_UP_FAILED:
                self._unreachable = _UNREACHABLE
        metrics.IN_FLIGHT.set(self.life.in_flight)
        metrics.DEGRADED.set(1 if degraded else 0)
        metrics.DRAINING.set(1 if self.life.draining else 0)
        stats = self.stats()
        metrics.CONNECTIONS.labels(self._provider).set(sum(s.open_connections or 0 for s in stats))
        metrics.HANDSHAKES.labels(self._provider).set(sum(s.handshakes or 0 for s in stats))
        metrics.OPENED.labels(self._provider).set(sum(s.misses or 0 for s in stats))
        metrics.REUSED.labels(self._provider).set(sum(s.hits or 0 for s in stats))
