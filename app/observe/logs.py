"""Write one JSON line per exchange on stdout, and a line for each event of the bridge and the pools (B40).

structlog: renders key-value events to JSON with processors, no handler tree to configure under gunicorn, and
leaves the standard ``logging`` of the surrounding application alone. orjson: a line costs a third of json's time.

Runs on: worker. Never on the loop thread: its locks are gevent's (facts 3).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import orjson
import structlog

from app.exchange import Attempt, Record

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_WARNINGS = frozenset(
    {
        "loop_died",
        "loop_exception",
        "bridge_degraded",
        "task_failed",
        "transport_fallback",
        "warm_up_failed",
        "setting_without_effect",
        "breaker_opened",
        "connection_unresponsive",
        "credential_benched",
        "shared_state_degraded",
        "spans_lost",
        "caller_limits_degraded",
        "caller_counters_unavailable",
        "board_unavailable",
        "board_full",
        "board_names_too_long",
        "redis_certificate_unverified",
    }
)


def _make_logger(level: str, style: str) -> structlog.typing.FilteringBoundLogger:
    """A logger of its own: ``style`` ``json`` or ``console``, nothing below ``level``."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    chain: list[Any] = [structlog.processors.add_log_level, stamp]
    sink: Any
    if style == "json":
        chain.append(structlog.processors.JSONRenderer(serializer=orjson.dumps))
        sink = structlog.BytesLogger(sys.stdout.buffer)
    else:
        chain.append(structlog.dev.ConsoleRenderer(colors=False))
        sink = structlog.WriteLogger(sys.stdout)
    wrapper: Any = structlog.make_filtering_bound_logger(_LEVELS[level])
    made: structlog.typing.FilteringBoundLogger = wrapper(sink, chain, {})
    return made


def fields(record: Record) -> dict[str, object]:
    """What the line of one exchange holds; no bodies, no secrets, no query."""
    return {
        "request_id": record.request_id,
        "upstream_request_id": record.upstream_request_id,
        "route": record.route,
        "method": record.method,
        "path": record.path,
        "model": record.model,
        "status": record.status,
        "slug": record.slug,
        "cause": record.cause,
        "stream": record.stream,
        "http_version": record.http_version,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "queue_ms": _ms(record.queue_ms),
        "upstream_head_ms": _ms(record.upstream_head_ms),
        "ttfb_ms": _ms(record.ttfb_ms),
        "total_ms": _ms(record.total_ms),
        "gateway_ms": _ms(record.gateway_ms),
        "attempts": [_attempt(attempt) for attempt in record.attempts],
        "provider": record.provider,
        "credential": record.credential,
        "caller": record.caller,
        "tokens": record.tokens,
        "client_left": record.client_left,
        "fallback": record.fallback,
    }


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "outcome": attempt.outcome,
        "ms": round(attempt.ms, 3),
        "waited_ms": round(attempt.waited_ms, 3),
        "provider": attempt.provider,
        "credential": attempt.credential,
        "connection": attempt.connection,
    }


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class _Clock:
    """Wall time as ISO 8601 in UTC; the calendar is asked once a second."""

    def __init__(self) -> None:
        self._last = (-1, "")  # one value, so that threads never mix two seconds

    def text(self, now_s: float) -> str:
        """``2026-11-21T09:30:00.123456Z`` for seconds since the epoch."""
        second, text = self._last
        if second != int(now_s):
            second = int(now_s)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, text)
        return f"{text}.{int((now_s - second) * 1e6):06d}Z"


class ExchangeLog:
    """Writes Records and events.

    A Record's JSON line is made here and not by structlog's chain, which took twice the time of all the rest of
    it; a test holds the two against each other.

    Args:
        level: Least level that is written: ``debug``, ``info``, ``warning`` or ``error``.
        style: ``json`` or ``console``.

    Attributes:
        lost: Lines that could not be written.
    """

    def __init__(self, level: str, style: str) -> None:
        self._logger = _make_logger(level, style)
        self._tells = _LEVELS[level] <= _LEVELS["info"]
        self._sink = sys.stdout.buffer if style == "json" else None
        self._clock = _Clock()
        self.lost = 0

    def __call__(self, record: Record) -> None:
        """One line for one exchange."""
        if not self._tells:
            return
        line = fields(record)
        if self._sink is None:
            self._logger.info("exchange", **line)
            return
        line["event"], line["level"], line["time"] = "exchange", "info", self._clock.text(time.time())
        try:
            self._sink.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._sink.flush()
        except (OSError, ValueError):  # whoever read stdout is gone; the exchange is not to blame
            self.lost += 1

    def event(self, name: str, **fields: object) -> None:
        """One line for something that happened to this worker."""
        if name in _WARNINGS:
            self._logger.warning(name, **fields)
        else:
            self._logger.info(name, **fields)

    def drain(self, events: deque[dict[str, object]]) -> list[str]:
        """Write what the loop thread had to say; returns the names of the events."""
        names = []
        while events:
            fields = dict(events.popleft())
            name = str(fields.pop("event", "event"))
            names.append(name)
            if name.startswith("connection_") and name not in _WARNINGS:
                self._logger.debug(name, **fields)
            else:
                self.event(name, **fields)
        return names
