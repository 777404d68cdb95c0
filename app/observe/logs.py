"""Write one JSON line per exchange on stdout, and a line for each event of the bridge and the pools (B40).

structlog: renders key-value events to JSON with processors, no handler tree to configure under gunicorn, and
leaves the standard ``logging`` of the surrounding application alone. orjson: a line costs a third of json's time.

Runs on: worker. Never on the loop thread: its locks are gevent's (facts 3).
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import orjson
import structlog

from app.exchange import Record

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
        "credential_benched",
        "shared_state_degraded",
        "caller_limits_degraded",
        "caller_counters_unavailable",
        "board_unavailable",
        "board_full",
        "board_names_too_long",
        "redis_certificate_unverified",
    }
)


def make_logger(level: str, style: str) -> structlog.typing.FilteringBoundLogger:
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


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class ExchangeLog:
    """Writes Records and events.

    Args:
        logger: Where to.
    """

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._logger = logger

    def __call__(self, record: Record) -> None:
        """One line for one exchange; no bodies, no secrets, no query."""
        self._logger.info(
            "exchange",
            request_id=record.request_id,
            upstream_request_id=record.upstream_request_id,
            route=record.route,
            method=record.method,
            path=record.path,
            model=record.model,
            status=record.status,
            slug=record.slug,
            cause=record.cause,
            stream=record.stream,
            http_version=record.http_version,
            request_bytes=record.request_bytes,
            response_bytes=record.response_bytes,
            queue_ms=_ms(record.queue_ms),
            upstream_head_ms=_ms(record.upstream_head_ms),
            ttfb_ms=_ms(record.ttfb_ms),
            total_ms=_ms(record.total_ms),
            gateway_ms=_ms(record.gateway_ms),
            attempts=[
                {
                    "outcome": a.outcome,
                    "ms": _ms(a.ms),
                    "waited_ms": _ms(a.waited_ms),
                    "provider": a.provider,
                    "credential": a.credential,
                    "connection": a.connection,
                }
                for a in record.attempts
            ],
            provider=record.provider,
            credential=record.credential,
            caller=record.caller,
            tokens=record.tokens,
            client_left=record.client_left,
            fallback=record.fallback,
        )

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
            if name.startswith("connection_"):
                self._logger.debug(name, **fields)
            else:
                self.event(name, **fields)
        return names
