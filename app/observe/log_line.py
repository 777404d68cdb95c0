"""Say what the log tells of one exchange, how severe it is, and write that as a line of JSON (B40).

Pure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from app.errors import CallerLimited, GatewayError
from app.exchange import Attempt, Record
from app.observe.failures import failure_of

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS: Final = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_NAMES: Final = {number: name for name, number in LEVELS.items()}
_ROUND: Final = 1.5 * 2**52
"""Added to a float and taken off again it leaves a whole number, in half the time of ``int``."""
_ENCODER: Final = msgspec.json.Encoder()
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


class Try(msgspec.Struct, frozen=True, gc=False):
    """One attempt as the line tells of it; times in ms to the microsecond."""

    outcome: str
    ms: float
    waited_ms: float
    connect_ms: float
    provider: str
    credential: str
    connection: str


class Line(msgspec.Struct, frozen=True, gc=False):
    """What the line of one exchange holds; no bodies, no secrets, no query.

    Times in ms to the microsecond. ``connect_ms`` is the last attempt's. What only some exchanges have is told of
    those only: ``gaps`` and ``gaps_ms`` of event streams, ``stream_error`` of those that ended in an error event,
    ``trace`` and ``trace_parent`` where there are spans.
    """

    request_id: str
    upstream_request_id: str
    route: str
    method: str
    path: str
    model: str
    status: int
    slug: str
    cause: str
    stream: bool
    http_version: str
    request_bytes: int
    response_bytes: int
    router_ms: float | None
    queue_ms: float | None
    connect_ms: float | None
    upstream_head_ms: float | None
    ttfb_ms: float | None
    first_event_ms: float | None
    total_ms: float
    gateway_ms: float | None
    attempts: list[Try]
    provider: str
    credential: str
    caller: str
    tokens: Mapping[str, int]
    usage_complete: bool
    cost_micro_usd: int | None
    client_left: bool
    fallback: bool
    event: str
    level: str
    time: str
    gaps: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    gaps_ms: float | msgspec.UnsetType = msgspec.UNSET
    stream_error: str | msgspec.UnsetType = msgspec.UNSET
    trace: str | msgspec.UnsetType = msgspec.UNSET
    trace_parent: str | msgspec.UnsetType = msgspec.UNSET


_FRAME: Final = ("event", "level", "time")


def told(record: Record, level: int, time_text: str) -> Line:
    """The line of one exchange."""
    tried = [_try(attempt) for attempt in record.attempts]
    at, waited, head, first, event = (
        record.router_ms, record.queue_ms, record.upstream_head_ms, record.ttfb_ms, record.first_event_ms
    )  # fmt: skip
    own = record.gateway_ms
    return Line(  # in order: by name they would take twenty times as long
        record.request_id,
        record.upstream_request_id,
        record.route,
        record.method,
        record.path,
        record.model,
        record.status,
        record.slug,
        record.cause,
        record.stream,
        record.http_version,
        record.request_bytes,
        record.response_bytes,
        at if at is None else (at * 1e3 + _ROUND - _ROUND) / 1e3,
        waited if waited is None else (waited * 1e3 + _ROUND - _ROUND) / 1e3,
        tried[-1].connect_ms if tried else None,
        head if head is None else (head * 1e3 + _ROUND - _ROUND) / 1e3,
        first if first is None else (first * 1e3 + _ROUND - _ROUND) / 1e3,
        event if event is None else (event * 1e3 + _ROUND - _ROUND) / 1e3,
        (record.total_ms * 1e3 + _ROUND - _ROUND) / 1e3,
        own if own is None else (own * 1e3 + _ROUND - _ROUND) / 1e3,
        tried,
        record.provider,
        record.credential,
        record.caller,
        record.tokens,
        record.usage_complete,
        record.cost_micro_usd,
        record.client_left,
        record.fallback,
        "exchange",
        _NAMES[level],
        time_text,
        record.gaps or msgspec.UNSET,
        (record.gaps_ms * 1e3 + _ROUND - _ROUND) / 1e3 if record.gaps else msgspec.UNSET,
        record.stream_error or msgspec.UNSET,
        record.trace or msgspec.UNSET,
        record.trace_parent if record.trace else msgspec.UNSET,
    )


def _try(attempt: Attempt) -> Try:
    outcome, ms, connection, provider, credential, waited_ms, connect_ms = attempt
    return Try(
        outcome,
        (ms * 1e3 + _ROUND - _ROUND) / 1e3,
        (waited_ms * 1e3 + _ROUND - _ROUND) / 1e3 if waited_ms else 0.0,
        (connect_ms * 1e3 + _ROUND - _ROUND) / 1e3 if connect_ms else 0.0,
        provider,
        credential,
        connection,
    )


def fields(record: Record) -> dict[str, Any]:
    """What the line holds of the exchange, JSON-ready."""
    found: dict[str, Any] = msgspec.to_builtins(told(record, INFO, ""))
    for name in _FRAME:
        del found[name]
    return found


class Clock:
    """Wall time as ISO 8601 in UTC; the calendar is asked once a second."""

    def __init__(self) -> None:
        self._last = (-1, "")  # one value, so that threads never mix two seconds

    def text(self, now_s: float) -> str:
        """``2026-11-21T09:30:00.123456Z`` for seconds since the epoch."""
        second, text = self._last
        if not 0.0 <= now_s - second < 1.0:
            second = int(now_s)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, text)
        return f"{text}.{int((now_s - second) * 1e6):06}Z"


def named(level: int) -> str:
    """Its name."""
    return _NAMES[level]


def line(facts: Mapping[str, object]) -> bytes:
    """One line of JSON, newline included.

    What orjson refuses (half of a surrogate pair from a strange path, an integer over 64 bits, an object that
    only has a ``repr``) is written by the standard library, escaped.
    """
    try:
        return orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(facts, default=repr).encode() + b"\n"


def lines(of: Sequence[Line]) -> bytes:
    """The lines of several exchanges, newlines included; msgspec writes them all in one go."""
    try:
        return _ENCODER.encode_lines(of)
    except UnicodeEncodeError:
        return b"".join([line(msgspec.to_builtins(one)) for one in of])
