"""Say what the last 10 s, minute, 5 minutes and hour were like, and whether that is better than before.

A window ends now and begins with a cell's begin, so it is up to one cell (a tenth of it) shorter than its name;
rates are over the time it really covers. The one before it is as many cells, right before.

    latency      p95 by 25 % and 1 ms or more above the window before: degrading; by 20 % and 1 ms below: improving
    error rate   by 0.01 or more above: degrading; below: improving
    trend        degrading if one of them is, else improving if one is, else steady; unknown where one of the two
                 windows has fewer than 20 exchanges

``latency_ms`` is what the gateway added (``Record.gateway_ms``); of ``tracked`` it is what the application said.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from app.observe.cells import LEVELS, Cell, Level, Series

ENOUGH: Final = 20
"""Exchanges from which on a share or a quantile says something."""
WORSE_RATIO: Final = 1.25
BETTER_RATIO: Final = 0.8
LEAST_CHANGE_MS: Final = 1.0
ERROR_RATE_CHANGE: Final = 0.01
_SHORTEST_S: Final = 1.0

Cells = Mapping[int, tuple[int, Cell]]
"""Of one process: number and content by slot."""


class Window(NamedTuple):
    """What one stretch of time was like.

    Attributes:
        span_s: How much of it was lived through; 0 where nothing was.
        cell: All that ended in it.
        total: The exchanges among that.
        p50_ms: Of what the gateway added; None where nothing is known.
        p95_ms: The same.
        p99_ms: The same.
    """

    span_s: float
    cell: Cell
    total: Series
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @property
    def per_second(self) -> float:
        """Exchanges."""
        return self.total.requests / max(self.span_s, _SHORTEST_S)

    @property
    def error_rate(self) -> float | None:
        """Share of the exchanges that failed; None where there were none."""
        return _rate(self.total)


def _rate(series: Series) -> float | None:
    return series.failed / series.requests if series.requests else None


def window(level: Level, sources: Iterable[Cells], now: float, born_at: float, back: int = 0) -> Window:
    """One window over all ``sources``.

    Args:
        level: Which.
        sources: The cells of every process.
        now: Instant it ends at.
        born_at: Since when there is anything to count.
        back: 0 for the one that ends now, 1 for the one before it.
    """
    length = level.cells // 2
    last = level.tick(now) - back * length
    whole = Cell()
    for cells in sources:
        for slot in range(level.first, level.first + level.cells):
            kept = cells.get(slot)
            if kept is not None and last - length < kept[0] <= last:
                whole.add(kept[1])
    total = Series()
    for series in whole.exchanges.values():
        total.add(series)
    begins_at, ends_at = (last - length + 1) * level.cell_s, min(now, (last + 1) * level.cell_s)
    span_s = max(0.0, ends_at - max(begins_at, born_at))
    return Window(span_s, whole, total, *total.quantiles(0.5, 0.95, 0.99))


def trend(current: Window, before: Window) -> dict[str, Any]:
    """``current`` held against the window of the same length before it, JSON-ready.

    ``p95_ratio`` and ``requests_per_second_ratio`` are current over before, ``error_rate_change`` is the
    difference; None where there is nothing to compare. ``word`` as the module says.
    """
    ratio = change = None
    words = []
    if current.p95_ms is not None and before.p95_ms:
        ratio = current.p95_ms / before.p95_ms
        differs = abs(current.p95_ms - before.p95_ms) >= LEAST_CHANGE_MS
        words.append((differs and ratio >= WORSE_RATIO, differs and ratio <= BETTER_RATIO))
    if current.error_rate is not None and before.error_rate is not None:
        change = round(current.error_rate - before.error_rate, 6)
        words.append((change >= ERROR_RATE_CHANGE, change <= -ERROR_RATE_CHANGE))
    word = "unknown"
    if min(current.total.requests, before.total.requests) >= ENOUGH:
        word = "degrading" if any(w for w, _ in words) else "improving" if any(b for _, b in words) else "steady"
    per_second = before.per_second
    return {
        "word": word,
        "p95_ratio": _rounded(ratio),
        "error_rate_change": change,
        "requests_per_second_ratio": _rounded(current.per_second / per_second) if per_second else None,
    }


def summary(sources: Sequence[Cells], now: float, born_at: float) -> dict[str, Any]:
    """Every window with its trend, by name, JSON-ready."""
    found = {}
    for level in LEVELS:
        current, before = (window(level, sources, now, born_at, back) for back in (0, 1))
        found[level.name] = {**_told(current), "trend": trend(current, before)}
    return found


def _told(found: Window) -> dict[str, Any]:
    total = found.total
    return {
        "span_s": round(found.span_s, 3),
        "requests": total.requests,
        "requests_per_second": _rounded(found.per_second),
        "errors": total.failed,
        "error_rate": _rounded(found.error_rate),
        "latency_ms": _latency(found.p50_ms, found.p95_ms, found.p99_ms),
        "by_endpoint": _endpoints(found.cell.exchanges),
        "by_type": {
            name: {"errors": count, "error_rate": _rounded(count / total.requests)}
            for name, count in Counter(total.failures).most_common()
        },
        "tracked": _endpoints(found.cell.tracked),
    }


def _endpoints(found: Mapping[str, Series]) -> dict[str, Any]:
    """The busiest first."""
    return {
        name: {
            "requests": series.requests,
            "errors": series.failed,
            "error_rate": _rounded(_rate(series)),
            "latency_ms": _latency(*series.quantiles(0.5, 0.95, 0.99)),
        }
        for name, series in sorted(found.items(), key=lambda one: -one[1].requests)
    }


def _latency(p50: float | None, p95: float | None, p99: float | None) -> dict[str, float | None]:
    return {"p50": _rounded(p50), "p95": _rounded(p95), "p99": _rounded(p99)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
