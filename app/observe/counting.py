"""Count finished exchanges, for Prometheus.

    count(found)      any thread: Records that have been sorted
    limit_models(n)   as the settings say, once

What had not been gathered and counted when a worker was killed (a quarter second at most) is not in its counters.

Runs on: worker. Never on the loop thread: Prometheus' locks are gevent's (facts 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from app.exchange import Attempt, Record
from app.observe import metrics
from app.observe.folding import TYPES, Fold, reason_label, status_label
from app.observe.groups import Sort, Sorted, failures
from app.observe.histogram import Histogram

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

_REQUEST_BYTES: Final = attrgetter("request_bytes")
_RESPONSE_BYTES: Final = attrgetter("response_bytes")
_TOTAL_MS: Final = attrgetter("total_ms")
_ATTEMPTS: Final = attrgetter("attempts")
_QUEUE_MS: Final = attrgetter("queue_ms")
_COST: Final = attrgetter("cost_micro_usd")


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

    def add(self, records: Iterable[Record]) -> None:
        """Of more of them; those that name the same figures are added up figure by figure."""
        shapes: defaultdict[tuple[str, ...], list[Record]] = defaultdict(list)
        for record in records:
            shapes[tuple(record.tokens)].append(record)
        for names, alike in shapes.items():
            columns = zip(*[record.tokens.values() for record in alike], strict=True)
            totals = {name: sum(counts) for name, counts in zip(names, columns, strict=True)}
            self.tokens.update(totals)
            if totals.get(_WRITTEN):
                self.tokens[_WRITTEN_5M] += sum(_unsaid(record.tokens) for record in alike)
            self._price(alike)

    def _price(self, records: Sequence[Record]) -> None:
        costs = list(map(_COST, records))
        if None in costs:
            self.unpriced += sum(
                record.cost_micro_usd is None and any(record.tokens.values()) for record in records
            )
        self.cost_micro_usd += sum(filter(None, costs))

    def publish(self, model: str) -> None:
        """Into the metrics."""
        for name, count in self.tokens.items():
            if not count:
                continue
            if name in _KINDS:
                metrics.TOKENS.labels(_KINDS[name], model).inc(count)
            elif name.startswith(_TOOL):
                tool = _tool(name.removeprefix(_TOOL).removesuffix("_requests"))
                metrics.SERVER_TOOL_USES.labels(tool, model).inc(count)
        if self.cost_micro_usd:
            metrics.COST_USD.labels(model).inc(self.cost_micro_usd / 1e6)
        if self.unpriced:
            metrics.UNPRICED.labels(model).inc(self.unpriced)


def _unsaid(tokens: Mapping[str, int]) -> int:
    """Cache writes of which the answer does not say how long they are kept: they count as 5 minutes."""
    return max(0, tokens.get(_WRITTEN, 0) - tokens.get(_WRITTEN_5M, 0) - tokens.get(_WRITTEN_1H, 0))


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

    def add(self, sort: Sort, group: Sequence[Record]) -> None:
        """More of one sort."""
        model, count = _model(sort.model), len(group)
        self.requests[sort.route, model, sort.status, sort.slug] += count
        for kind, failed in failures(sort, group).items():
            self.failures[sort.route, _type(kind)] += failed
        route = self.routes[sort.route]
        route.request_bytes += sum(map(_REQUEST_BYTES, group))
        route.response_bytes += sum(map(_RESPONSE_BYTES, group))
        route.total += map(_TOTAL_MS, group)
        if sort.slug == "queue_full":
            self.drops += count
        if sort.client_left:
            route.departures += count
        if sort.fallback:
            self.fallbacks += count
        self._add_journeys(sort.provider, group)
        self._add_heads(route, group)
        if used := [record for record in group if record.tokens]:
            self.usage[model].add(used)
            route.partial += sum(not record.usage_complete for record in used)

    def _add_heads(self, route: _Route, group: Sequence[Record]) -> None:
        for record in group:
            if record.upstream_head_ms is None:
                continue
            route.upstream.append(record.upstream_head_ms)
            if record.gateway_ms is not None:
                route.added.append(record.gateway_ms)
            if record.ttfb_ms is not None:
                route.first_byte.append(record.ttfb_ms)
            if record.first_event_ms is not None:
                route.first_event.append(record.first_event_ms)
                if record.gaps:
                    route.pause(record.gaps, record.gaps_ms)

    def _add_journeys(self, provider: str, group: Sequence[Record]) -> None:
        waits = [queue_ms for queue_ms in map(_QUEUE_MS, group) if queue_ms is not None]
        if waits:
            self.waits[provider] += waits
        journeys: list[tuple[Attempt, ...]] = list(filter(None, map(_ATTEMPTS, group)))
        if journeys:
            self.attempts[provider] += map(len, journeys)
        for attempts in journeys:
            for attempt in attempts:
                if attempt.connect_ms:
                    self.connects[attempt.provider].append(attempt.connect_ms)
            if len(attempts) > 1:
                for attempt in attempts[:-1]:
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


def count(found: Sorted) -> None:
    """Count these."""
    made = _Sum()
    for sort, group in found.items():
        made.add(sort, group)
    made.publish()
