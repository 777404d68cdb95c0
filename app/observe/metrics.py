"""Name what is counted for Prometheus, over all workers of the node (B41); ``counting`` counts the exchanges.

prometheus_client keeps one memory-mapped file per worker where ``PROMETHEUS_MULTIPROC_DIR`` is set (our
gunicorn.conf.py does), so that whichever worker is scraped answers for all of them.

Runs on: worker. Never on the loop thread: its locks are gevent's (facts 3).
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.observe.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ADDED_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_WAIT_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UPSTREAM_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

REQUESTS = Counter("penstock_requests", "Exchanges by route, status and slug.", ["route", "status", "slug"])
ADDED = Histogram(
    "penstock_gateway_seconds", "Time the gateway itself added.", ["route"], buckets=_ADDED_BUCKETS_S
)
UPSTREAM = Histogram(
    "penstock_upstream_head_seconds",
    "From handing a request to the transport to the upstream's head.",
    ["route"],
    buckets=_UPSTREAM_BUCKETS_S,
)
DEPARTURES = Counter("penstock_client_departures", "Clients that left before their answer was over.", ["route"])
FALLBACKS = Counter("penstock_bridge_fallbacks", "Exchanges served by the fallback thread pool.")
EVENTS = Counter("penstock_events", "Events of the bridge and the pools.", ["event"])
IN_FLIGHT = Gauge("penstock_in_flight", "Exchanges under way.", multiprocess_mode="livesum")
CONNECTIONS = Gauge(
    "penstock_upstream_connections", "Open upstream connections.", ["provider"], multiprocess_mode="livesum"
)
HANDSHAKES = Gauge(
    "penstock_upstream_tls_handshakes", "TLS handshakes made since start.", ["provider"], multiprocess_mode="sum"
)
OPENED = Gauge(
    "penstock_upstream_connections_opened",
    "Connections opened since start.",
    ["provider"],
    multiprocess_mode="sum",
)
REUSED = Gauge(
    "penstock_upstream_requests_reused",
    "Requests sent on an open connection.",
    ["provider"],
    multiprocess_mode="sum",
)
RUNNING = Gauge("penstock_slots_running", "Exchanges that hold a slot.", ["provider"], multiprocess_mode="livesum")
WAITING = Gauge("penstock_queue_depth", "Exchanges waiting for a slot.", ["provider"], multiprocess_mode="livesum")
CONCURRENCY = Gauge(
    "penstock_slots_capacity", "Exchanges that may run at once.", ["provider"], multiprocess_mode="livesum"
)
BUFFER = Gauge(
    "penstock_queue_capacity",
    "Exchanges that may run and wait together.",
    ["provider"],
    multiprocess_mode="livesum",
)
QUEUE_WAIT = Histogram("penstock_queue_wait_seconds", "Wait for a slot.", ["provider"], buckets=_WAIT_BUCKETS_S)
DROPS = Counter("penstock_drops", "Exchanges refused because the buffer was full.")
ATTEMPTS = Histogram(
    "penstock_attempts", "Tries per exchange that was sent.", ["provider"], buckets=(1, 2, 3, 4, 5, 7, 10)
)
RETRIES = Counter(
    "penstock_retries", "Tries that another one followed, by what came of them.", ["provider", "reason"]
)
RETRIES_LEFT = Gauge(
    "penstock_retry_budget_left", "Retries the budget would still allow.", multiprocess_mode="livesum"
)
BREAKER = Gauge(
    "penstock_breaker_state",
    "Workers whose breaker of this provider is in this state.",
    ["provider", "state"],
    multiprocess_mode="livesum",
)
CREDENTIAL = Gauge(
    "penstock_credential_state",
    "Workers to which this key is in this state.",
    ["provider", "credential", "state"],
    multiprocess_mode="livesum",
)
CREDENTIAL_IN_FLIGHT = Gauge(
    "penstock_credential_in_flight",
    "Exchanges under way with this key.",
    ["provider", "credential"],
    multiprocess_mode="livesum",
)
SHARED_STATE_DEGRADED = Gauge(
    "penstock_shared_state_degraded",
    "Workers that cannot reach Redis and go on with what they know themselves.",
    multiprocess_mode="livesum",
)
LOG_LINES_LOST = Gauge(
    "penstock_log_lines_lost", "Log lines that could not be written to stdout.", multiprocess_mode="livesum"
)
DEGRADED = Gauge("penstock_degraded", "Workers whose background loop cannot serve.", multiprocess_mode="livesum")
DRAINING = Gauge("penstock_draining", "Workers that are shutting down.", multiprocess_mode="livesum")

BREAKER_STATES = ("closed", "open", "half_open")
CREDENTIAL_STATES = ("healthy", "probation", "cooling", "benched", "open")


def set_state(gauge: Gauge, states: tuple[str, ...], now_in: str, *labels: str) -> None:
    """Of the ``states`` of one thing, it is in ``now_in``."""
    for state in states:
        gauge.labels(*labels, state).set(1 if state == now_in else 0)


def exposition(multiprocess: bool) -> bytes:
    """The text to scrape; of all workers if ``multiprocess``."""
    if not multiprocess:
        return bytes(generate_latest(REGISTRY))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))


def forget(pid: int) -> None:
    """Drop the live gauges of a worker that is gone; in gunicorn's arbiter."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
