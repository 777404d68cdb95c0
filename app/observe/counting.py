"""Count finished exchanges: kept as they come, added up a few times a second.

    observe(record)   any thread; one append
    flush()           the keeper every quarter second, whoever is scraped, and the end of the worker

What a worker had not added up yet when it was killed (a quarter second at most) is not in its counters.

Runs on: worker. Never on the loop thread: Prometheus' locks are gevent's (facts 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Final

from app.exchange import Record
from app.observe import metrics

_waiting: Final[deque[Record]] = deque()
observe: Final = _waiting.append
"""Take one Record to be counted."""


class _Sum:
    """Records added up, before they go into what is shared among workers."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int, str]] = Counter()
        self.departures: Counter[str] = Counter()
        self.retries: Counter[tuple[str, str]] = Counter()
        self.added: defaultdict[str, list[float]] = defaultdict(list)
        self.upstream: defaultdict[str, list[float]] = defaultdict(list)
        self.waits: defaultdict[str, list[float]] = defaultdict(list)
        self.attempts: defaultdict[str, list[float]] = defaultdict(list)
        self.drops = 0
        self.fallbacks = 0

    def add(self, record: Record) -> None:
        """One more."""
        self.requests[record.route, record.status, record.slug] += 1
        self.drops += record.slug == "queue_full"
        self.fallbacks += record.fallback
        if record.queue_ms is not None:
            self._add_journey(record)
        if record.gateway_ms is not None and record.upstream_head_ms is not None:
            self.added[record.route].append(record.gateway_ms / 1000.0)
            self.upstream[record.route].append(record.upstream_head_ms / 1000.0)
        if record.client_left:
            self.departures[record.route] += 1

    def _add_journey(self, record: Record) -> None:
        self.waits[record.provider].append((record.queue_ms or 0.0) / 1000.0)
        if record.attempts:
            self.attempts[record.provider].append(len(record.attempts))
            for attempt in record.attempts[:-1]:
                self.retries[attempt.provider, attempt.outcome] += 1

    def publish(self) -> None:
        """Into the metrics."""
        for (route, status, slug), count in self.requests.items():
            metrics.REQUESTS.labels(route, str(status), slug).inc(count)
        for route, count in self.departures.items():
            metrics.DEPARTURES.labels(route).inc(count)
        for labels, count in self.retries.items():
            metrics.RETRIES.labels(*labels).inc(count)
        metrics.DROPS.inc(self.drops)
        metrics.FALLBACKS.inc(self.fallbacks)
        for histogram, values in (
            (metrics.ADDED, self.added),
            (metrics.UPSTREAM, self.upstream),
            (metrics.QUEUE_WAIT, self.waits),
            (metrics.ATTEMPTS, self.attempts),
        ):
            for label, observed in values.items():
                histogram.labels(label).observe_all(observed)


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
