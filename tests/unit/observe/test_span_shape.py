"""observe/span_shape: one span per Record, by the conventions' names.

Pure.
"""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind
from opentelemetry.trace.status import StatusCode

from app.exchange import Attempt, Captured, Record
from app.observe.span_shape import Shape

TRACE, SPAN, CALLERS = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
OWN, PARENT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{CALLERS}-01"
AT = 1_800_000_000.5
SERVED = Record(
    "req-1",
    "messages",
    "POST",
    "/v1/messages",
    200,
    "",
    model="claude-x",
    upstream_request_id="req_011",
    attempts=(Attempt("200", 50.0, "reused", "anthropic", "blue"),),
    provider="anthropic",
    credential="blue",
    caller="team",
    queue_ms=1.5,
    upstream_head_ms=50.0,
    ttfb_ms=60.0,
    total_ms=250.0,
    gateway_ms=0.7,
    at=AT,
    trace=OWN,
    trace_parent=PARENT,
)


def shape(asked: list[Any] | None = None, keep: bool = True) -> Shape:
    def sampled(parent: SpanContext | None, trace_id: int, name: str) -> bool:
        if asked is not None:
            asked.append((parent, trace_id, name))
        return keep

    addresses = {"anthropic": ("api.anthropic.com", 443)}
    return Shape("anthropic", addresses, Resource({}), InstrumentationScope("t"), sampled)


def span_of(record: Record = SERVED, **changed: Any) -> ReadableSpan:
    span = shape().span(record._replace(**changed), 7.0)
    assert span is not None
    return span


def test_ids_chain_to_the_caller() -> None:
    span = span_of()
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == f"{span.parent.trace_id:032x}" == TRACE
    assert (f"{span.context.span_id:016x}", f"{span.parent.span_id:016x}") == (SPAN, CALLERS)
    assert span.parent.is_remote
    assert not span.context.is_remote
    assert span.kind is SpanKind.CLIENT


@pytest.mark.parametrize(
    ("flags", "parent", "made", "told"),
    [("00", True, 1, 0), ("03", True, 3, 3), ("02", True, 3, 2), ("02", False, 3, 0)],
)
def test_flags(flags: str, parent: bool, made: int, told: int) -> None:
    """A span that is made is sampled, whatever was asked for; that the trace id is random stays said."""
    span = span_of(trace=OWN[:-2] + flags, trace_parent=PARENT[:-2] + flags if parent else "")
    assert int(span.context.trace_flags) == made
    assert (int(span.parent.trace_flags) if span.parent is not None else 0) == told


def test_a_parent_of_a_later_version_is_one() -> None:
    span = span_of(trace_parent=f"cc-{TRACE}-{CALLERS}-01-more")
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLERS


def test_a_trace_that_begins_here_has_no_parent() -> None:
    assert span_of(trace_parent="").parent is None


def test_it_began_and_ended_when_the_exchange_did() -> None:
    span = span_of()
    assert (span.start_time, span.end_time) == (int((AT - 0.25) * 1e9), int(AT * 1e9))
    assert span_of(at=0.0).end_time == 7 * 10**9


def test_what_is_not_sampled_is_not_made() -> None:
    asked: list[Any] = []
    assert shape(asked, keep=False).span(SERVED, 7.0) is None
    ((parent, trace_id, name),) = asked
    assert (f"{parent.span_id:016x}", f"{trace_id:032x}", name) == (CALLERS, TRACE, "chat claude-x")


def test_a_record_without_a_trace_makes_none() -> None:
    assert shape().span(SERVED._replace(trace="", trace_parent=""), 7.0) is None


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "chat claude-x"),
        ({"model": ""}, "chat"),
        ({"route": "complete"}, "text_completion claude-x"),
        ({"route": "count_tokens"}, "POST count_tokens"),
        ({"route": "models", "method": "GET"}, "GET models"),
        ({"route": "other", "method": "BREW"}, "HTTP other"),
    ],
)
def test_names(changed: dict[str, Any], name: str) -> None:
    assert span_of(**changed).name == name


def test_attributes_of_a_message() -> None:
    tokens = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_input_tokens": 300,
        "cache_creation_input_tokens": 4000,
        "cache_creation.ephemeral_5m_input_tokens": 4000,
    }
    span = span_of(tokens=tokens, cost_micro_usd=123, stream=True, first_event_ms=61.0, router_ms=4.0)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.061,
        "gen_ai.usage.input_tokens": 4310,  # what was read in all: Anthropic's figure leaves the cached ones out
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 300,
        "gen_ai.usage.cache_creation.input_tokens": 4000,
        "server.address": "api.anthropic.com",
        "server.port": 443,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/messages",
        "penstock.route": "messages",
        "penstock.request_id": "req-1",
        "penstock.upstream_request_id": "req_011",
        "penstock.attempts": 1,
        "penstock.credential": "blue",
        "penstock.provider": "anthropic",
        "penstock.caller": "team",
        "penstock.queue_ms": 1.5,
        "penstock.gateway_ms": 0.7,
        "penstock.ttfb_ms": 60.0,
        "penstock.router_ms": 4.0,
        "penstock.cost_micro_usd": 123,
    }


def test_no_usage_is_made_up() -> None:
    found = span_of(tokens={"output_tokens": 3}).attributes or {}
    assert {name: value for name, value in found.items() if "usage" in name} == {"gen_ai.usage.output_tokens": 3}


def test_other_routes_are_no_inference() -> None:
    found = span_of(route="models", method="GET", path="/v1/models", model="").attributes or {}
    assert {name for name in found if name.startswith("gen_ai.")} == {"gen_ai.provider.name"}
    assert (span_of(method="BREW").attributes or {})["http.request.method"] == "_OTHER"


def test_a_refused_exchange_has_no_server() -> None:
    found = span_of(provider="", attempts=(), status=401, slug="unauthenticated", upstream_head_ms=None).attributes
    assert found is not None
    assert "server.address" not in found
    assert found["penstock.slug"] == "unauthenticated"
    assert found["penstock.attempts"] == 0


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({}, None, None),
        ({"status": 404}, None, None),
        ({"status": 429, "slug": "caller_limited"}, None, None),
        ({"status": 500}, "500", "status 500"),
        ({"status": 529}, "529", "status 529"),
        ({"status": 503, "slug": "queue_full"}, "queue_full", "queue_full"),
        ({"status": 200, "slug": "stream_broken"}, "stream_broken", "stream_broken"),
        ({"status": 200, "stream_error": "overloaded_error"}, "overloaded_error", "overloaded_error"),
        ({"slug": "client_gone", "client_left": True, "stream_error": "api_error"}, "api_error", "api_error"),
        ({"status": 499, "slug": "client_gone", "client_left": True}, None, None),
        ({"status": 200, "slug": "client_gone", "client_left": True}, None, None),
    ],
)
def test_what_is_an_error(changed: dict[str, Any], error: str | None, text: str | None) -> None:
    span = span_of(**changed)
    assert (span.attributes or {}).get("error.type") == error
    assert span.status.status_code is (StatusCode.UNSET if error is None else StatusCode.ERROR)
    assert span.status.description == text
    assert (span.attributes or {}).get("penstock.client_left", False) is changed.get("client_left", False)


TRIES = (
    Attempt("529", 10.0, "new", "anthropic", "blue", 0.0),
    Attempt("429", 20.0, "reused", "anthropic", "green", 100.0),
    Attempt("200", 50.0, "reused", "second", "red", 50.0),
)


def test_tries_in_vain_are_events() -> None:
    events = span_of(attempts=TRIES).events
    assert [event.name for event in events] == ["penstock.try_in_vain"] * 2
    began = (AT - 0.25) * 1e9
    assert [round((event.timestamp - began) / 1e6, 1) for event in events] == [11.5, 131.5]
    assert dict(events[1].attributes or {}) == {
        "penstock.outcome": "429",
        "penstock.ms": 20.0,
        "penstock.waited_ms": 100.0,
        "penstock.provider": "anthropic",
        "penstock.credential": "green",
    }


def test_without_an_answer_all_tries_were_in_vain() -> None:
    assert len(span_of(attempts=TRIES, upstream_head_ms=None, status=502, slug="connect_failed").events) == 3


def test_nothing_captured_is_told() -> None:
    captured = Captured((("x-api-key", "sk-secret"),), (), b"sk-secret", b"sk-secret")
    span = span_of(captured=captured, cause="sk-secret")
    assert "sk-secret" not in repr((dict(span.attributes or {}), span.events, span.name, span.status.description))


def test_the_environments_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "4")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    found = dict(span_of().attributes or {})
    assert len(found) == 4
    assert found["gen_ai.provider.name"] == "anthr"
