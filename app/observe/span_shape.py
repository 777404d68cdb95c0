"""Shape a finished exchange's Record into one ended span, named and described as the conventions ask.

Context: the GenAI conventions describe the call of a model as its caller sees it, tries and waits included; the
HTTP ones describe servers. An exchange is both, and has one span. Choice: kind ``CLIENT`` and the GenAI names, as
those conventions ask for Anthropic; a 4xx leaves the status unset, as for an HTTP server, since whose mistake it
was the caller's span says. Price: a service map draws the gateway's calls, not who called it.

Sources: OpenTelemetry semantic conventions for GenAI spans, and for Anthropic (2026, in development):
``gen_ai.usage.input_tokens`` is what was read in all, Anthropic's ``input_tokens`` plus both kinds of cached ones.
No bodies, no query, no secrets.

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from app.exchange import Attempt, Record
from app.wire import trace

Value = str | int | float | bool
Sampled = Callable[[SpanContext | None, int, str], bool]
"""Whether a span is kept: of its parent's context, its trace id and its name."""

_OPERATIONS: Final[Mapping[str, str]] = {"messages": "chat", "complete": "text_completion"}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_CACHED: Final = (
    ("cache_read_input_tokens", "gen_ai.usage.cache_read.input_tokens"),
    ("cache_creation_input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
)
# What is said where there is something to say, as it stands in the Record.
_PLAIN: Final = tuple(
    (field, f"penstock.{field}")
    for field in (
        "upstream_request_id",
        "slug",
        "stream_error",
        "credential",
        "caller",
        "provider",
        "queue_ms",
        "gateway_ms",
        "ttfb_ms",
        "router_ms",
        "cost_micro_usd",
        "client_left",
        "fallback",
    )
)
_SERVER_ERROR = 500
_CLIENT_ERROR = 400
_UNSET: Final = Status(StatusCode.UNSET)


class Shape:
    """Makes spans.

    Args:
        vendor: ``gen_ai.provider.name``.
        addresses: Host and port of every target, by its name.
        resource: Who makes them.
        scope: By which means.
        sampled: Asked for each.
    """

    def __init__(
        self,
        vendor: str,
        addresses: Mapping[str, tuple[str, int]],
        resource: Resource,
        scope: InstrumentationScope,
        sampled: Sampled,
    ) -> None:
        self._vendor = vendor
        self._addresses = addresses
        self._resource = resource
        self._scope = scope
        self._sampled = sampled
        limits = SpanLimits()
        self._most = limits.max_span_attributes
        self._longest = limits.max_span_attribute_length

    def span(self, record: Record, now_s: float) -> ReadableSpan | None:
        """The span of one exchange, ended; None where it is not sampled.

        Args:
            record: With its place in its trace.
            now_s: Seconds since the epoch, for a Record that does not say when it ended.
        """
        own = record.trace
        if not own:
            return None
        trace_id, own_flags = int(own[3:35], 16), int(own[53:55], 16)  # as app.wire.trace writes it
        parent = None
        if record.trace_parent:  # which is valid, and has its ids in the same places
            parent = SpanContext(trace_id, int(record.trace_parent[36:52], 16), True, TraceFlags(own_flags))
        name = _name(record)
        if not self._sampled(parent, trace_id, name):
            return None
        flags = TraceFlags((own_flags & trace.RANDOM) | trace.SAMPLED)
        ended_s = record.at or now_s
        began_s = ended_s - record.total_ms / 1000.0
        return ReadableSpan(
            name,
            SpanContext(trace_id, int(own[36:52], 16), is_remote=False, trace_flags=flags),
            parent,
            self._resource,
            self._bounded(self.attributes(record)),
            _tries(record, began_s),
            (),
            SpanKind.CLIENT,
            status=_status(record),
            start_time=_ns(began_s),
            end_time=_ns(ended_s),
            instrumentation_scope=self._scope,
        )

    def attributes(self, record: Record) -> dict[str, Value]:
        """What is known of one exchange, by the conventions' names and under ``penstock.``."""
        found: dict[str, Value] = {
            "gen_ai.provider.name": self._vendor,
            "http.request.method": record.method if record.method in _METHODS else "_OTHER",
            "http.response.status_code": record.status,
            "url.path": record.path,
            "penstock.route": record.route,
            "penstock.request_id": record.request_id,
            "penstock.attempts": len(record.attempts),
        }
        if record.model:
            found["gen_ai.request.model"] = record.model
        operation = _OPERATIONS.get(record.route)
        if operation is not None:
            found["gen_ai.operation.name"] = operation
            if record.stream:
                found["gen_ai.request.stream"] = True
            if record.first_event_ms is not None:
                found["gen_ai.response.time_to_first_chunk"] = record.first_event_ms / 1000.0
        address = self._addresses.get(record.provider)
        if address is not None:
            found["server.address"], found["server.port"] = address
        if record.tokens:
            _add_usage(found, record.tokens)
        if error := _error(record):
            found["error.type"] = error
        for field, name in _PLAIN:
            value = getattr(record, field)
            if value:
                found[name] = value
        return found

    def _bounded(self, found: dict[str, Value]) -> dict[str, Value]:
        """Within what ``OTEL_SPAN_ATTRIBUTE_*`` and ``OTEL_ATTRIBUTE_*`` allow."""
        if self._most is not None and len(found) > self._most:
            found = dict(islice(found.items(), self._most))
        if (longest := self._longest) is not None:
            found = {name: value[:longest] if isinstance(value, str) else value for name, value in found.items()}
        return found


def _name(record: Record) -> str:
    operation = _OPERATIONS.get(record.route)
    if operation is not None:
        return f"{operation} {record.model}" if record.model else operation
    return f"{record.method if record.method in _METHODS else 'HTTP'} {record.route}"


def _add_usage(found: dict[str, Value], tokens: Mapping[str, int]) -> None:
    cached = 0
    for told, name in _CACHED:
        if told in tokens:
            found[name] = tokens[told]
            cached += tokens[told]
    if "input_tokens" in tokens:
        found["gen_ai.usage.input_tokens"] = tokens["input_tokens"] + cached
    if "output_tokens" in tokens:
        found["gen_ai.usage.output_tokens"] = tokens["output_tokens"]


def _error(record: Record) -> str:
    """What the gateway or the upstream could not do: a 5xx, an answer that broke off, or ended in an error event.

    Departures are none, unless it is after such an event.
    """
    if record.stream_error:
        return record.stream_error
    if record.client_left:
        return ""
    failed = record.status >= _SERVER_ERROR or (bool(record.slug) and record.status < _CLIENT_ERROR)
    return (record.slug or str(record.status)) if failed else ""


def _status(record: Record) -> Status:
    error = _error(record)
    if not error:
        return _UNSET
    return Status(StatusCode.ERROR, f"status {error}" if error.isdecimal() else error)


def _tries(record: Record, began_s: float) -> tuple[Event, ...]:
    """An event for each try in vain, about when it ended."""
    vain = record.attempts if record.upstream_head_ms is None else record.attempts[:-1]
    if not vain:
        return ()
    found = []
    at_s = began_s + (record.queue_ms or 0.0) / 1000.0
    for attempt in vain:
        at_s += (attempt.waited_ms + attempt.ms) / 1000.0
        found.append(Event("penstock.try_in_vain", _told(attempt), _ns(at_s)))
    return tuple(found)


def _told(attempt: Attempt) -> dict[str, Value]:
    return {
        "penstock.outcome": attempt.outcome,
        "penstock.ms": attempt.ms,
        "penstock.waited_ms": attempt.waited_ms,
        "penstock.provider": attempt.provider,
        "penstock.credential": attempt.credential,
    }


def _ns(at_s: float) -> int:
    return int(at_s * 1e9)
