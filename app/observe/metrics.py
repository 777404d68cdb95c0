"""Name what is counted for Prometheus (B41). ``counting`` counts the exchanges, ``exposition`` makes the text.

prometheus_client keeps one memory-mapped file per worker where ``PROMETHEUS_MULTIPROC_DIR`` is set (our
gunicorn.conf.py does), so that whichever worker is scraped answers for all of them: counters and histograms are
those of all workers there have been, gauges those of the workers there are.

Runs on: worker. Never on the loop thread: its locks are gevent's (facts 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter, Gauge, disable_created_metrics

from app.observe import reserved  # noqa: F401 - first of all: where metrics are kept
from app.observe.histogram import Histogram

disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series each, which no query of ours asks for

_GATEWAY_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_UPSTREAM_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ANSWER_S: Final = (0.005, 0.01, 0.025, *_UPSTREAM_S)
_WAIT_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CONNECT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TRIES: Final = (1, 2, 3, 4, 5, 7, 10)
_GAP_S: Final = tuple(2**power / 1000.0 for power in range(17))
"""Those of ``Record.gaps``: below 1 ms, below 2, below 4 … below 65.536 s."""


def _live(name: str, help_text: str, *labels: str) -> Gauge:
    """A gauge that is the sum over the workers alive."""
    return Gauge(name, help_text, labels, multiprocess_mode="livesum")


def _seconds(name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(name, help_text, labels, buckets=buckets)


# exchanges, read off their Records
REQUESTS = Counter("penstock_requests", "Finished exchanges.", ["route", "model", "status", "slug"])
FAILURES = Counter(
    "penstock_failures", "Of those, the ones that failed, by type as in performance.by_type.", ["route", "type"]
)
DEPARTURES = Counter("penstock_client_departures", "Clients that left before their answer was over.", ["route"])
REQUEST_BYTES = Counter("penstock_request_bytes", "Bytes of request bodies.", ["route"])
RESPONSE_BYTES = Counter("penstock_response_bytes", "Bytes of the upstream's answers, as handed out.", ["route"])
TOKENS = Counter(
    "penstock_tokens",
    "Tokens as the answers state them: input, output, cache_write_5m, cache_write_1h, cache_read.",
    ["kind", "model"],
)
SERVER_TOOL_USES = Counter("penstock_server_tool_uses", "Uses of the provider's own tools.", ["tool", "model"])
COST_USD = Counter("penstock_cost_usd", "Price of the tokens and tools used, in US dollars.", ["model"])
UNPRICED = Counter("penstock_unpriced", "Exchanges that used tokens for which there is no price.", ["model"])
USAGE_PARTIAL = Counter(
    "penstock_usage_partial", "Exchanges whose usage is what was stated until they broke off.", ["route"]
)
DROPS = Counter("penstock_drops", "Exchanges refused because the buffer was full.")
RETRIES = Counter(
    "penstock_retries", "Tries that another one followed, by what came of them.", ["provider", "reason"]
)
FALLBACKS = Counter("penstock_bridge_fallbacks", "Exchanges served by the fallback thread pool.")
GATEWAY = _seconds("penstock_gateway_seconds", "Time the gateway itself added.", _GATEWAY_S, "route")
UPSTREAM = _seconds(
    "penstock_upstream_head_seconds",
    "From handing the last try to the transport to the upstream's head.",
    _UPSTREAM_S,
    "route",
)
FIRST_BYTE = _seconds(
    "penstock_time_to_first_byte_seconds", "From receiving a request to its answer's head.", _ANSWER_S, "route"
)
FIRST_EVENT = _seconds(
    "penstock_time_to_first_event_seconds",
    "From receiving a request to the first piece of its event stream.",
    _ANSWER_S,
    "route",
)
EVENT_GAP = _seconds("penstock_event_gap_seconds", "Pauses between an event stream's pieces.", _GAP_S, "route")
REQUEST = _seconds(
    "penstock_request_seconds", "From receiving a request to the end of its answer.", _ANSWER_S, "route"
)
QUEUE_WAIT = _seconds("penstock_queue_wait_seconds", "Wait for a slot.", _WAIT_S, "provider")
ATTEMPTS = Histogram("penstock_attempts", "Tries per exchange that was sent.", ["provider"], buckets=_TRIES)
CONNECT = _seconds(
    "penstock_connect_seconds", "What tries spent on getting a new connection.", _CONNECT_S, "provider"
)

# connections
CONNECTIONS = _live("penstock_upstream_connections", "Open upstream connections.", "provider")
OPENED = Counter("penstock_upstream_connections_opened", "Upstream connections opened.", ["provider"])
HANDSHAKES = Counter("penstock_upstream_tls_handshakes", "TLS handshakes made with upstreams.", ["provider"])
REUSED = Counter("penstock_upstream_requests_reused", "Requests sent on an open connection.", ["provider"])

# traffic
IN_FLIGHT = _live("penstock_in_flight", "Exchanges under way.")
RUNNING = _live("penstock_slots_running", "Exchanges that hold a slot.", "provider")
CONCURRENCY = _live("penstock_slots_capacity", "Exchanges that may run at once.", "provider")
WAITING = _live("penstock_queue_depth", "Exchanges waiting for a slot.", "provider")
BUFFER = _live("penstock_queue_capacity", "Exchanges that may run and wait together.", "provider")
RETRIES_LEFT = _live("penstock_retry_budget_left", "Retries the budget would still allow.")
BREAKER = _live(
    "penstock_breaker_state", "Workers whose breaker of this provider is in this state.", "provider", "state"
)
CREDENTIAL = _live(
    "penstock_credential_state", "Workers to which this key is in this state.", "provider", "credential", "state"
)
CREDENTIAL_IN_FLIGHT = _live(
    "penstock_credential_in_flight", "Exchanges under way with this key.", "provider", "credential"
)

# the bridge, the workers
CROSSINGS = Counter("penstock_bridge_crossings", "Tasks handed to the loop.")
EVENTS = Counter("penstock_events", "Events of the bridge and the pools.", ["event"])
FALLBACK_POOL_ACTIVE = _live("penstock_fallback_pool_active", "Fallback threads with a crossing under way.")
LOOP_LAG = _seconds("penstock_loop_lag_seconds", "How late the background loop ran its half-second timer.", _LAG_S)
HUB_LAG = _seconds("penstock_hub_lag_seconds", "How late a quarter-second's sleep of the worker ended.", _LAG_S)
RESIDENT_BYTES = _live("penstock_resident_memory_bytes", "Resident memory of the workers.")
OPEN_FDS = _live("penstock_open_fds", "Open file descriptors of the workers.")
WORKERS = _live("penstock_workers", "Workers that have started and are alive.")
DEGRADED = _live("penstock_degraded", "Workers whose background loop cannot serve.")
DRAINING = _live("penstock_draining", "Workers that are shutting down.")
SHARED_STATE_DEGRADED = _live(
    "penstock_shared_state_degraded", "Workers that cannot reach Redis and go on with what they know themselves."
)
LOG_LINES_LOST = _live("penstock_log_lines_lost", "Log lines that could not be written.")
SPANS_LOST = _live("penstock_spans_lost", "Spans that did not get where they are exported to.")
BUILD_INFO = Gauge(
    "penstock_build_info", "1, labelled with the installed version.", ["version"], multiprocess_mode="livemax"
)

BREAKER_STATES = ("closed", "open", "half_open")
CREDENTIAL_STATES = ("healthy", "probation", "cooling", "benched", "open")


def set_state(gauge: Gauge, states: tuple[str, ...], now_in: str, *labels: str) -> None:
    """Of the ``states`` of one thing, it is in ``now_in``."""
    for state in states:
        gauge.labels(*labels, state).set(1 if state == now_in else 0)
