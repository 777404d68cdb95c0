"""Put into the metrics how this worker is: its bridge, pools and lags, what it takes of the machine (B37, B41).

What rises for good on the loop (connections opened, crossings …) is looked at from time to time, and what it has
risen by since is counted; the rest are gauges.

Runs on: worker.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final

from app.bridge.call import Bridge
from app.gateway.life import Life
from app.observe import metrics, process
from app.observe.rising import Rising
from app.upstream.dispatch import Traffic
from app.upstream.target import TargetStats

# One of each in a process, however many gateways are mounted there: they share a bridge.
_crossings: Final = Rising(metrics.CROSSINGS)
_opened: Final = Rising(metrics.OPENED)
_handshakes: Final = Rising(metrics.HANDSHAKES)
_reused: Final = Rising(metrics.REUSED)


def _version() -> str:
    """The installed one; a checkout that is not installed has none."""
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return ""


class Figures:
    """Of one worker."""

    def __init__(self) -> None:
        self._version = _version()

    def happened(self, event: str) -> None:
        """Something of which there is also a log line."""
        metrics.EVENTS.labels(event).inc()

    def overslept(self, late_s: float) -> None:
        """The keeper woke so much later than it wanted: so late ran whatever else waits for the hub."""
        metrics.HUB_LAG.observe(max(0.0, late_s))

    def worker(self, life: Life, lines_lost: int, *, degraded: bool, alone: bool) -> None:
        """How the process is.

        Args:
            life: Of this worker.
            lines_lost: Log lines that could not be written.
            degraded: The background loop cannot serve.
            alone: Other nodes cannot be told what this one learns.
        """
        metrics.BUILD_INFO.labels(self._version).set(1)
        metrics.WORKERS.set(1)
        metrics.IN_FLIGHT.set(life.in_flight)
        metrics.DRAINING.set(1 if life.draining else 0)
        metrics.DEGRADED.set(1 if degraded else 0)
        metrics.SHARED_STATE_DEGRADED.set(1 if alone else 0)
        metrics.LOG_LINES_LOST.set(lines_lost)
        resident, fds = process.resident_bytes(), process.open_fds()
        if resident is not None:
            metrics.RESIDENT_BYTES.set(resident)
        if fds is not None:
            metrics.OPEN_FDS.set(fds)

    def bridge(self, bridge: Bridge) -> None:
        """How the bridge is."""
        _crossings.take(bridge, bridge.crossings)
        metrics.FALLBACK_POOL_ACTIVE.set(bridge.pool_active)
        if late_s := bridge.main.late_s():
            metrics.LOOP_LAG.observe_all(late_s)

    def traffic(self, source: object, traffic: Traffic) -> None:
        """How the traffic is.

        Args:
            source: Whose it is: with another one its counts have begun at 0.
            traffic: As its loop sees it.
        """
        metrics.RETRIES_LEFT.set(traffic.retries_left)
        for target in traffic.targets:
            _target(source, target)


def _target(source: object, target: TargetStats) -> None:
    name, pool, slots = target.name, target.pool, target.slots
    if pool.open_connections is not None:
        metrics.CONNECTIONS.labels(name).set(pool.open_connections)
    _opened.take(source, pool.misses, name)
    _handshakes.take(source, pool.handshakes, name)
    _reused.take(source, pool.hits, name)
    metrics.RUNNING.labels(name).set(slots.running)
    metrics.WAITING.labels(name).set(slots.waiting)
    metrics.CONCURRENCY.labels(name).set(slots.concurrency)
    metrics.BUFFER.labels(name).set(slots.buffer_size)
    metrics.set_state(metrics.BREAKER, metrics.BREAKER_STATES, target.breaker, name)
    for one in target.credentials:
        metrics.set_state(metrics.CREDENTIAL, metrics.CREDENTIAL_STATES, one.state, name, one.label)
        metrics.CREDENTIAL_IN_FLIGHT.labels(name, one.label).set(one.in_flight)
