"""Say what the log tells of one exchange, how severe it is, and write that as a line of JSON (B40).

Pure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Final

import orjson

from app.errors import CallerLimited, GatewayError
from app.exchange import Attempt, Record
from app.observe.failures import failure_of

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS: Final = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_NAMES: Final = {number: name for name, number in LEVELS.items()}
_OWN_FAULT: Final = GatewayError.slug
_LIMIT: Final = CallerLimited.slug


def level_of(record: Record) -> int:
    """How severe it is.

    ``ERROR``: the gateway's own fault. ``WARNING``: every other failure (``app.observe.failures``), as of the
    upstream, for want of room or in mid-stream, and a caller beyond its limit. ``INFO``: all else, a client's
    faulty request and its departure too.
    """
    kind = failure_of(record)
    if not kind:
        return WARNING if record.slug == _LIMIT else INFO
    return ERROR if kind == _OWN_FAULT else WARNING


def fields(record: Record) -> dict[str, object]:
    """What the line of one exchange holds; no bodies, no secrets, no query.

    Times in ms to the microsecond. ``connect_ms`` is the last attempt's. What only some exchanges have is told of
    those only: ``gaps`` and ``gaps_ms`` of event streams, ``stream_error`` of those that ended in an error event,
    ``trace`` and ``trace_parent`` where there are spans.
    """
    attempts = record.attempts
    tried = [_attempt(attempt) for attempt in attempts]
    found: dict[str, object] = {
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
        "router_ms": _ms(record.router_ms),
        "queue_ms": _ms(record.queue_ms),
        "connect_ms": tried[-1]["connect_ms"] if tried else None,
        "upstream_head_ms": _ms(record.upstream_head_ms),
        "ttfb_ms": _ms(record.ttfb_ms),
        "first_event_ms": _ms(record.first_event_ms),
        "total_ms": _ms(record.total_ms),
        "gateway_ms": _ms(record.gateway_ms),
        "attempts": tried,
        "provider": record.provider,
        "credential": record.credential,
        "caller": record.caller,
        "tokens": record.tokens,
        "usage_complete": record.usage_complete,
        "cost_micro_usd": record.cost_micro_usd,
        "client_left": record.client_left,
        "fallback": record.fallback,
    }
    if record.gaps:
        found["gaps"], found["gaps_ms"] = record.gaps, _ms(record.gaps_ms)
    if record.stream_error:
        found["stream_error"] = record.stream_error
    if record.trace:
        found["trace"], found["trace_parent"] = record.trace, record.trace_parent
    return found


def _attempt(attempt: Attempt) -> dict[str, object]:
    outcome, ms, connection, provider, credential, waited_ms, connect_ms = attempt
    return {
        "outcome": outcome,
        "ms": int(ms * 1000.0 + 0.5) / 1000.0,
        "waited_ms": int(waited_ms * 1000.0 + 0.5) / 1000.0,
        "connect_ms": int(connect_ms * 1000.0 + 0.5) / 1000.0,
        "provider": provider,
        "credential": credential,
        "connection": connection,
    }


def _ms(value: float | None) -> float | None:
    """To the microsecond; ``round`` takes three times as long."""
    return value if value is None else int(value * 1000.0 + 0.5) / 1000.0


class Clock:
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


def named(level: int) -> str:
    """Its name."""
    return _NAMES[level]


def line(told: Mapping[str, object]) -> bytes:
    """One line of JSON, newline included.

    What orjson refuses (half of a surrogate pair from a strange path, an integer over 64 bits, an object that
    only has a ``repr``) is written by the standard library, escaped.
    """
    try:
        return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(told, default=repr).encode() + b"\n"
