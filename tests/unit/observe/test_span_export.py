"""observe/span_export: what the SDK's exporter is given, and what is told of its troubles.

Pure: its client is scripted.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from app.observe.span_bytes import encoded
from app.observe.span_export import Accounted, Otlp, exporter_of

SPAN = ReadableSpan("a", SpanContext(1, 2, False, TraceFlags(1)), None, Resource({}))


class Client:
    """Notes what it is to send and answers as told."""

    def __init__(self, **answer: Any) -> None:
        self.sent: list[bytes] = []
        self.answer = SimpleNamespace(**{"success": False, "status_code": None, "error": None, **answer})

    def export(self, data: bytes) -> Any:
        self.sent.append(data)
        return self.answer

    def shutdown(self) -> None:
        """Nothing is open."""


def exporter(**answer: Any) -> tuple[Otlp, Client]:
    made, client = Otlp(), Client(**answer)
    made.__dict__["_client"] = client
    return made, client


def test_the_environment_says_which() -> None:
    assert type(exporter_of("otlp")) is Otlp
    assert type(exporter_of("console")) is ConsoleSpanExporter


def test_our_bytes_are_sent() -> None:
    made, client = exporter(success=True, status_code=200)
    assert made.export([SPAN]) is SpanExportResult.SUCCESS
    assert client.sent == [encoded([SPAN], lambda: None)]


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        ({"status_code": 400}, "the collector answers 400"),
        ({"status_code": 503, "error": None}, "the collector answers 503"),
        (
            {"error": ConnectionError("http://user:secret@host/?key=secret")},
            "the collector cannot be reached (ConnectionError)",
        ),
        ({}, "the collector cannot be reached (no time left)"),
    ],
)
def test_troubles_are_told_without_addresses(answer: dict[str, Any], trouble: str) -> None:
    accounted = Accounted(exporter(**answer)[0])
    assert accounted.export([SPAN, SPAN]) is SpanExportResult.FAILURE
    assert (accounted.trouble, accounted.lost, accounted.taken) == (trouble, 2, 2)
    accounted.shutdown()


def test_a_batch_that_arrives_ends_the_trouble() -> None:
    made, client = exporter(status_code=500)
    accounted = Accounted(made)
    accounted.export([SPAN])
    client.answer.success = True
    assert accounted.export([SPAN]) is SpanExportResult.SUCCESS
    assert (accounted.trouble, accounted.lost, accounted.taken) == ("", 1, 2)
    accounted.shutdown()


def test_an_sdk_that_is_made_otherwise_is_asked_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Otlp()
    del made.__dict__["_client"]
    asked: list[Any] = []

    def export(self: OTLPSpanExporter, spans: Any) -> SpanExportResult:
        asked.append(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    assert made.export([SPAN]) is SpanExportResult.SUCCESS
    assert asked == [[SPAN]]


def test_standard_output_that_is_gone_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    accounted = Accounted(ConsoleSpanExporter(out=Gone()))  # type: ignore[arg-type]
    assert accounted.export([SPAN]) is SpanExportResult.FAILURE
    assert accounted.lost == 1
    accounted.shutdown()
