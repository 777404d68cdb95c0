"""Count finished exchanges: kept as they come, added up a few times a second.

    observe(record)   any thread; one append
    flush()           the keeper every quarter second, whoever is scraped, and the end of the worker
    limit_models(n)   as the settings say, once

What a worker had not added up yet when it was killed (a quarter second at most) is not in its counters.

Runs on: worker. Never on the loop thread: Prometheus' locks are gevent's (facts 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Final

from app.exchange import Attempt, Record
from app.observe import metrics
from app.observe.failures import failure_of
from app.observe.folding import TYPES, Fold, reason_label, status_label
from app.observe.histogram import Histogram

_waiting: Final[deque[Record]] = deque()
observe: Final = _waiting.append
"""Take one Record to be counted."""

_model: Final = Fold(50)
_tool: Final = Fold(20)
_type: Final = Fold(TYPES)

_KINDS: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_input_tokens": "cache_read",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write_5m",
    "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h",
}
_WRITTEN: Final = "cache_creation_input_tokens"
_WRITTEN_5M: Final = "cache_creation.ephemeral_5m_input_tokens"
_WRITTEN_1H: Final = "cache_creation.ephemeral_1h_input_tokens"
_TOOL: Final = "server_tool_use."
_MS: Final = 1000.0


def limit_models(limit: int) -> None:
    """So many models are counted under their own name in this worker (``METRICS_MODELS``)."""
    _model.limit = limit


class _Route:
    """What the exchanges of one route add up to; lists are of milliseconds."""

    __slots__ = (
        "added",
        "departures",
        "first_byte",
        "first_event",
        "gaps",
        "gaps_ms",
        "partial",
        "request_bytes",
        "response_bytes",
        "total",
        "upstream",
    )

    def __init__(self) -> None:
        self.departures = self.partial = self.request_bytes = self.response_bytes = 0
        self.added: list[float] = []
        self.upstream: list[float] = []
        self.first_byte: list[float] = []
        self.first_event: list[float] = []
        self.total: list[float] = []
        self.gaps: list[int] = []
        self.gaps_ms = 0.0

    def pause(self, gaps: Sequence[int], gaps_ms: float) -> None:
        """Pauses of one more event stream."""
        mine = self.gaps
        if len(gaps) > len(mine):
            mine += [0] * (len(gaps) - len(mine))
        for index, count in enumerate(gaps):
            mine[index] += count
        self.gaps_ms += gaps_ms

    def publish(self, route: str) -> None:
        """Into the metrics."""
        metrics.REQUEST_BYTES.labels(route).inc(self.request_bytes)
        metrics.RESPONSE_BYTES.labels(route).inc(self.response_bytes)
        if self.departures:
            metrics.DEPARTURES.labels(route).inc(self.departures)
        if self.partial:
            metrics.USAGE_PARTIAL.labels(route).inc(self.partial)
        for histogram, times_ms in (
            (metrics.REQUEST, self.total),
            (metrics.GATEWAY, self.added),
            (metrics.UPSTREAM, self.upstream),
            (metrics.FIRST_BYTE, self.first_byte),
            (metrics.FIRST_EVENT, self.first_event),
        ):
            if times_ms:
                histogram.labels(route).observe_all(times_ms, _MS)
        if self.gaps:
            metrics.EVENT_GAP.labels(route).add(self.gaps, self.gaps_ms / _MS)


class _Usage:
    """What the exchanges of one model used."""

    __slots__ = ("cost_micro_usd", "tokens", "unpriced")

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.cost_micro_usd = 0
        self.unpriced = 0

    def add(self, tokens: Mapping[str, int], cost_micro_usd: int | None) -> None:
        """Of one more. Cache writes of which the answer does not say how long they are kept count as 5 minutes."""
        mine = self.tokens
        for name, count in tokens.items():
            if count:
                mine[name] += count
        if written := tokens.get(_WRITTEN):
            unsaid = written - tokens.get(_WRITTEN_5M, 0) - tokens.get(_WRITTEN_1H, 0)
            if unsaid > 0:
                mine[_WRITTEN_5M] += unsaid
        if cost_micro_usd is not None:
            self.cost_micro_usd += cost_micro_usd
        elif any(tokens.values()):
            self.unpriced += 1

    def publish(self, model: str) -> None:
        """Into the metrics."""
        for name, count in self.tokens.items():
            if name in _KINDS:
                metrics.TOKENS.labels(_KINDS[name], model).inc(count)
            elif name.startswith(_TOOL):
                tool = _tool(name.removeprefix(_TOOL).removesuffix("_requests"))
                metrics.SERVER_TOOL_USES.labels(tool, model).inc(count)
        if self.cost_micro_usd:
            metrics.COST_USD.labels(model).inc(self.cost_micro_usd / 1e6)
        if self.unpriced:
            metrics.UNPRICED.labels(model).inc(self.unpriced)


class _Sum:
    """Records added up, before they go into what is shared among workers."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.routes: defaultdict[str, _Route] = defaultdict(_Route)
        self.usage: defaultdict[str, _Usage] = defaultdict(_Usage)
        self.retries: Counter[tuple[str, str]] = Counter()
        self.waits: defaultdict[str, list[float]] = defaultdict(list)
        self.attempts: defaultdict[str, list[float]] = defaultdict(list)
        self.connects: defaultdict[str, list[float]] = defaultdict(list)
        self.drops = 0
        self.fallbacks = 0

    def add(self, record: Record) -> None:
        """One more."""
        model = _model(record.model)
        self.requests[record.route, model, record.status, record.slug] += 1
        if kind := failure_of(record):
            self.failures[record.route, _type(kind)] += 1
        route = self.routes[record.route]
        route.request_bytes += record.request_bytes
        route.response_bytes += record.response_bytes
        route.total.append(record.total_ms)
        self.drops += record.slug == "queue_full"
        route.departures += record.client_left
        self.fallbacks += record.fallback
        if record.queue_ms is not None:
            self._add_journey(record, record.queue_ms)
        if record.upstream_head_ms is not None:
            self._add_head(record, route, record.upstream_head_ms)
        if record.tokens:
            self.usage[model].add(record.tokens, record.cost_micro_usd)
            route.partial += not record.usage_complete

    def _add_head(self, record: Record, route: _Route, upstream_ms: float) -> None:
        route.upstream.append(upstream_ms)
        if record.gateway_ms is not None:
            route.added.append(record.gateway_ms)
        if record.ttfb_ms is not None:
            route.first_byte.append(record.ttfb_ms)
        if record.first_event_ms is not None:
            route.first_event.append(record.first_event_ms)
            if record.gaps:
                route.pause(record.gaps, record.gaps_ms)

    def _add_journey(self, record: Record, queue_ms: float) -> None:
        self.waits[record.provider].append(queue_ms)
        attempts = record.attempts
        if not attempts:
            return
        self.attempts[record.provider].append(len(attempts))
        for attempt in attempts:
            if attempt.connect_ms:
                self.connects[attempt.provider].append(attempt.connect_ms)
        if len(attempts) > 1:
            self._add_retries(attempts[:-1])

    def _add_retries(self, in_vain: tuple[Attempt, ...]) -> None:
        for attempt in in_vain:
            self.retries[attempt.provider, attempt.outcome] += 1

    def publish(self) -> None:
        """Into the metrics."""
        for (route, model, status, slug), count in self.requests.items():
            metrics.REQUESTS.labels(route, model, status_label(status), slug).inc(count)
        for (route, kind), count in self.failures.items():
            metrics.FAILURES.labels(route, kind).inc(count)
        for name, figures in self.routes.items():
            figures.publish(name)
        for name, used in self.usage.items():
            used.publish(name)
        for (provider, outcome), count in self.retries.items():
            metrics.RETRIES.labels(provider, reason_label(outcome)).inc(count)
        metrics.DROPS.inc(self.drops)
        metrics.FALLBACKS.inc(self.fallbacks)
        _publish(metrics.QUEUE_WAIT, self.waits, _MS)
        _publish(metrics.CONNECT, self.connects, _MS)
        _publish(metrics.ATTEMPTS, self.attempts, 1.0)


def _publish(histogram: Histogram, found: Mapping[str, list[float]], per_unit: float) -> None:
    for label, values in found.items():
        histogram.labels(label).observe_all(values, per_unit)


def flush() -> None:
    """Count all that waits. From any thread; each Record is counted once."""
    if not _waiting:
        return
    found = _Sum()
    while True:
        try:
            record = _waiting.popleft()
        except IndexError:  # another thread had the last one
            break
        found.add(record)
    found.publish()
