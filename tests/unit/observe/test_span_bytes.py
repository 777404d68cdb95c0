"""observe/span_bytes: the very messages the SDK's own encoder makes.

Pure.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from app.observe import span_bytes

RESOURCES = (Resource({"service.name": "penstock", "n": 3}), Resource({}, "https://schema"), Resource({}))
SCOPES = (InstrumentationScope("penstock", "1.2"), InstrumentationScope("a", None, "https://schema"), None)
KEYS = st.sampled_from(["gen_ai.request.model", "server.port", "penstock.attempts", "url.path", "x" * 200, "é"])
VALUES = st.one_of(
    st.text(max_size=300),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from([0, 1, True, False, 1.0, 127, 128, 16384, "a" * 127, "a" * 128]),
)
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=6)
TIMES = st.integers(0, 2**63)


def context(remote: bool, ids: tuple[int, int]) -> SpanContext:
    return SpanContext(ids[0], ids[1], remote, TraceFlags(1))


IDS = st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
CONTEXTS = st.builds(context, st.booleans(), IDS)
STATUSES = st.sampled_from(
    [
        Status(StatusCode.UNSET),
        Status(StatusCode.OK),
        Status(StatusCode.ERROR),
        Status(StatusCode.ERROR, "broken é"),
    ]
)
SPANS = st.builds(
    lambda name, own, parent, resource, scope, attributes, events, kind, status, times: ReadableSpan(
        name,
        own,
        parent,
        resource,
        attributes,
        events,
        (),
        kind,
        status=status,
        start_time=times[0],
        end_time=times[1],
        instrumentation_scope=scope,
    ),
    st.text(max_size=20),
    CONTEXTS,
    st.none() | CONTEXTS,
    st.sampled_from(RESOURCES[:2]),
    st.sampled_from(SCOPES),
    ATTRIBUTES,
    st.lists(st.builds(Event, st.text(max_size=9), ATTRIBUTES, TIMES), max_size=3),
    st.sampled_from(list(SpanKind)),
    STATUSES,
    st.tuples(TIMES, TIMES),
)


def read(data: bytes) -> ExportTraceServiceRequest:
    found = ExportTraceServiceRequest()
    found.ParseFromString(data)
    return found


def flat(request: ExportTraceServiceRequest) -> list[Any]:
    """Its spans, each with its resource and scope; how they are grouped is each encoder's own business."""
    return sorted(
        [
            span.SerializeToString(deterministic=True),
            group.resource.SerializeToString(),
            group.schema_url,
            scoped.scope.SerializeToString(),
            scoped.schema_url,
        ]
        for group in request.resource_spans
        for scoped in group.scope_spans
        for span in scoped.spans
    )


@settings(deadline=None)
@given(st.lists(SPANS, max_size=4))
def test_as_the_sdk_would_have_it(spans: list[ReadableSpan]) -> None:
    assert flat(read(span_bytes.encoded(spans, lambda: None))) == flat(encode_spans(spans))


def test_text_that_is_none_is_replaced_and_not_fatal() -> None:
    span = ReadableSpan("a\ud800", context(False, (1, 2)), None, RESOURCES[2], {"k": "\udcff"})
    (group,) = read(span_bytes.encoded([span], lambda: None)).resource_spans
    assert group.scope_spans[0].spans[0].name == "a?"


@pytest.mark.parametrize(("count", "pauses"), [(0, 0), (63, 0), (64, 1), (200, 3)])
def test_it_gives_way(count: int, pauses: int) -> None:
    made = [ReadableSpan("a", context(False, (1, 2)), None, RESOURCES[2]) for _ in range(count)]
    seen: list[int] = []
    data = span_bytes.encoded(made, lambda: seen.append(1))
    assert len(seen) == pauses
    assert len(flat(read(data))) == count
