"""Know how this worker is: its bridge, its connections, whether the upstream can be reached.

    ready --connect_failed--> unreachable --a connection succeeds--> ready
    ready --every target's breaker open, or all its keys benched--> unavailable --one usable--> ready
    ready --some of that, or Redis gone--> degraded (still serves)
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
from app.observe import counting, metrics
from app.observe.logs import ExchangeLog
from app.upstream.dispatch import Dispatcher, Traffic, warming
from app.upstream.target import TargetStats

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
        warm_slots: Exchanges for which connections are opened ahead.
        shared: Why other nodes cannot be told what this one learns, or "".
    """

    def __init__(
        self,
        bridge: Callable[[], Bridge],
        dispatcher: Callable[[Any], Dispatcher],
        life: Life,
        log: ExchangeLog,
        warm_slots: int,
        shared: Callable[[], str],
    ) -> None:
        self.bridge = bridge
        self.life = life
        self._dispatcher = dispatcher
        self._log = log
        self._warm_slots = warm_slots
        self._shared = shared
        self._unreachable = ""

    def observe(self, record: Record) -> None:
        """Learn from a finished exchange whether the upstream can be reached."""
        if record.slug == _CONNECT_FAILED:
            self._unreachable = _UNREACHABLE
        elif self._unreachable and record.upstream_head_ms is not None:
            self._unreachable = ""

    def warm_up(self) -> None:
        """Open the first upstream connections, in the background."""
        self.bridge().open(warming(self._dispatcher, self._warm_slots))

    def probe(self, timeout_s: float = 2.0) -> None:
        """Try the upstream again after it could not be reached; notes what came of it."""
        crossing = self.bridge().open(warming(self._dispatcher))
        try:
            if crossing.head(_never, timeout_s):
                self._unreachable = ""
        except (TimeoutError, GatewayError):
            return
        finally:
            crossing.close()

    def traffic(self) -> Traffic:
        """Slots, breakers, keys and pools of the background loop; nothing where the loop does not answer."""

        def read(loop: Any) -> Traffic:
            return self._dispatcher(loop).traffic()

        try:
            found: Traffic = self.bridge().call(read)
        except TimeoutError:
            return Traffic((), 0)
        return found

    def state(self, traffic: Traffic | None = None) -> dict[str, Any]:
        """What ``/ready`` says: ``status`` and why."""
        degraded = self.bridge().check()
        if self._unreachable and not self.life.draining:
            self.probe()
        traffic = self.traffic() if traffic is None else traffic
        reasons = _troubles(traffic)
        if self._log.lost:
            reasons.append(f"log: {self._log.lost} lines could not be written to stdout")
        status = "degraded" if degraded or reasons or self._shared() else "ready"
        if degraded:
            reasons.append(degraded)
        if self._shared():
            reasons.append(self._shared())
        if self._unreachable:
            reasons.append(self._unreachable)
        if self._unreachable or (traffic.targets and not any(target.usable for target in traffic.targets)):
            status = "unavailable"
        if self.life.draining:
            status = "draining"
            reasons.append("draining")
        return {
            "status": status,
            "reasons": reasons,
            "in_flight": self.life.in_flight,
            "upstreams": [
                {
                    "provider": target.name,
                    "transport": target.pool.transport,
                    "open_connections": target.pool.open_connections,
                    "handshakes": target.pool.handshakes,
                }
                for target in traffic.targets
            ],
        }

    def publish(self) -> None:
        """Bring this worker's gauges up to date and write out what the loop had to say."""
        counting.flush()
        bridge = self.bridge()
        degraded = bridge.check()
        for name in self._log.drain(bridge.events):
            metrics.EVENTS.labels(name).inc()
            if name == _WARM_UP_FAILED:
                self._unreachable = _UNREACHABLE
        metrics.LOG_LINES_LOST.set(self._log.lost)
        metrics.IN_FLIGHT.set(self.life.in_flight)
        metrics.DEGRADED.set(1 if degraded else 0)
        metrics.DRAINING.set(1 if self.life.draining else 0)
        metrics.SHARED_STATE_DEGRADED.set(1 if self._shared() else 0)
        traffic = self.traffic()
        metrics.RETRIES_LEFT.set(traffic.retries_left)
        for target in traffic.targets:
            _publish(target)


def _troubles(traffic: Traffic) -> list[str]:
    """What is wrong with the targets, for people."""
    found = []
    for target in traffic.targets:
        if target.breaker != "closed":
            found.append(f"{target.name}: the breaker is {target.breaker}")
        found += [
            f"{target.name}: credential {one.label} is {one.state}"
            for one in target.credentials
            if one.state in ("benched", "open") or (one.state == "cooling" and not target.usable)
        ]
    return found


def _publish(target: TargetStats) -> None:
    name, pool, slots = target.name, target.pool, target.slots
    metrics.CONNECTIONS.labels(name).set(pool.open_connections or 0)
    metrics.HANDSHAKES.labels(name).set(pool.handshakes or 0)
    metrics.OPENED.labels(name).set(pool.misses or 0)
    metrics.REUSED.labels(name).set(pool.hits or 0)
    metrics.RUNNING.labels(name).set(slots.running)
    metrics.WAITING.labels(name).set(slots.waiting)
    metrics.CONCURRENCY.labels(name).set(slots.concurrency)
    metrics.BUFFER.labels(name).set(slots.buffer_size)
    metrics.set_state(metrics.BREAKER, metrics.BREAKER_STATES, target.breaker, name)
    for one in target.credentials:
        metrics.set_state(metrics.CREDENTIAL, metrics.CREDENTIAL_STATES, one.state, name, one.label)
        metrics.CREDENTIAL_IN_FLIGHT.labels(name, one.label).set(one.in_flight)
