"""observe/spans: Records in, ended spans out, and an account of those that are lost.

The batch processor and its thread are the SDK's; exporters that fail, stall or count stand in for a collector.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.exchange import Record
from app.observe import metrics, spans
from app.observe.span_export import Accounted
from app.observe.spans import Spans

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "10"}
ROOT = Path(__file__).resolve().parents[3]


class Scripted(SpanExporter):
    """Answers batches as told; ``gate`` holds them up for as long as it is closed."""

    def __init__(self, answer: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.got: list[ReadableSpan] = []
        self.ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        assert self.gate.wait(10)
        if self.answer is SpanExportResult.SUCCESS:
            self.got += spans
        return self.answer

    def shutdown(self) -> None:
        self.ended = True


def record(number: int, flags: str = "01", parent: bool = True) -> Record:
    trace = f"00-{TRACE}-{number:016x}-{flags}"
    return Record(
        f"r{number}",
        "messages",
        "POST",
        "/v1/messages",
        200,
        "",
        at=100.0,
        trace=trace,
        trace_parent=f"00-{TRACE}-{'1' * 16}-{flags}" if parent else "",
    )


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def told() -> list[dict[str, object]]:
    return []


Make = Callable[..., Spans]


@pytest.fixture
def make(told: list[dict[str, object]]) -> Iterator[Make]:
    made: list[tuple[Spans, Any]] = []

    def of(exporter: SpanExporter, environ: dict[str, str] = QUICK) -> Spans:
        found = Spans("anthropic", {}, told.append, environ, lambda: exporter)
        made.append((found, exporter))
        return found

    yield of
    for one, exporter in made:
        if isinstance(exporter, Scripted):
            exporter.gate.set()
        one.stop()


def test_one_span_per_record(make: Make, told: list[dict[str, object]]) -> None:
    memory = InMemorySpanExporter()
    one = make(memory)
    for number in range(1, 131):  # more than are made without a pause
        one.observe([record(number)])
    one.pump()
    one.pump()
    until(lambda: len(memory.get_finished_spans()) >= 130)
    one.stop()
    ids = [span.context.span_id for span in memory.get_finished_spans()]
    assert sorted(ids) == list(range(1, 131))
    assert (one.lost, one.trouble, told) == (0, "", [])


def test_nothing_is_made_before_the_first_pump() -> None:
    """The first pump runs in the worker, after the fork; what an arbiter made would be lost there."""
    made: list[int] = []

    def exporter() -> SpanExporter:
        made.append(1)
        return InMemorySpanExporter()

    before = threading.active_count()
    one = Spans("anthropic", {}, lambda event: None, QUICK, exporter)
    one.observe([record(1)])
    assert (made, threading.active_count()) == ([], before)
    one.stop()
    assert made == [1]


def test_a_fork_gets_a_processor_of_its_own() -> None:
    made: list[Scripted] = []

    def exporter() -> SpanExporter:
        made.append(Scripted())
        return made[-1]

    one = Spans("anthropic", {}, lambda event: None, QUICK, exporter)
    one.pump()
    first = one._sending
    one._pid -= 1  # as if another process had made it
    one.observe([record(1)])
    one.pump()
    assert len(made) == 2
    until(lambda: made[1].got)
    for sending in (first, one._sending):
        assert sending is not None
        sending.end(10)
    assert made[0].got == []


def test_who_made_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def resource(**environ: str) -> dict[str, Any]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        memory = InMemorySpanExporter()
        one = make(memory)
        one.observe([record(1)])
        one.stop()
        (span,) = memory.get_finished_spans()
        return dict(span.resource.attributes)

    found = resource()
    assert found["service.name"] == "penstock"
    assert {"service.version", "service.instance.id", "telemetry.sdk.name"} <= set(found)
    assert resource()["service.instance.id"] != found["service.instance.id"]
    found = resource(OTEL_RESOURCE_ATTRIBUTES="service.name=a,service.instance.id=i,deployment.environment.name=p")
    assert (found["service.name"], found["service.instance.id"]) == ("a", "i")
    assert found["deployment.environment.name"] == "p"
    assert resource(OTEL_SERVICE_NAME="b")["service.name"] == "b"


@pytest.mark.parametrize(
    ("sampler", "argument", "kept"),
    [
        ("", "", ["01p", "01", "00"]),
        ("parentbased_always_on", "", ["01p", "01", "00"]),
        ("parentbased_always_off", "", ["01p"]),
        ("parentbased_traceidratio", "0", ["01p"]),
        ("always_on", "", ["01p", "00p", "01", "00"]),
        ("always_off", "", []),
        ("traceidratio", "1.0", ["01p", "00p", "01", "00"]),
        ("traceidratio", "0.0", []),
    ],
)
def test_the_environment_says_which_are_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, kept: list[str]
) -> None:
    """A parent's flag decides where the sampler asks it; without a parent the sampler does."""
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    memory = InMemorySpanExporter()
    one = make(memory)
    cases = ["01p", "00p", "01", "00"]
    for number, case in enumerate(cases, 1):
        one.observe([record(number, case[:2], case.endswith("p"))])
    one.stop()
    assert [cases[span.context.span_id - 1] for span in memory.get_finished_spans()] == kept
    assert one.lost == 0


def test_what_fails_is_counted_and_told_once_a_minute(make: Make, told: list[dict[str, object]]) -> None:
    exporter = Scripted(SpanExportResult.FAILURE)
    one = make(exporter)
    one.pump()
    for number in range(1, 4):
        one.observe([record(number)])
        one.pump()
        expected = number
        until(lambda: one.lost == expected)  # noqa: B023 - asked at once
    one.pump()
    assert told == [{"event": "spans_lost", "count": 1, "reason": "spans: the exporter failed; 1 lost so far"}]
    assert one.trouble == "spans: the exporter failed; 3 lost so far"
    assert metrics.SPANS_LOST._value.get() == 3
    exporter.answer = SpanExportResult.SUCCESS
    one.observe([record(9)])
    one.pump()
    until(lambda: exporter.got)
    until(lambda: one.trouble == "")
    sending = one._sending
    assert sending is not None
    sending.report(time.monotonic() + 61)
    sending.report(time.monotonic() + 61)
    assert [event["event"] for event in told] == ["spans_lost", "spans_lost", "spans_arrive_again"]
    assert [told[1]["count"], told[2]["lost"]] == [2, 3]
    sending.report(time.monotonic() + 62)
    assert len(told) == 3


def test_what_there_is_no_room_for_is_lost_and_counted(make: Make, told: list[dict[str, object]]) -> None:
    exporter = Scripted()
    exporter.gate.clear()
    environ = {**QUICK, "OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    one = make(exporter, environ)
    for number in range(1, 26):
        one.observe([record(number)])
    one.pump()
    assert one.lost == 15
    assert one.trouble == "spans: the collector does not keep up; 15 lost so far"
    assert [event["count"] for event in told] == [15]
    exporter.gate.set()
    until(lambda: len(exporter.got) == 10)
    assert sorted(span.context.span_id for span in exporter.got) == list(range(1, 11))
    until(lambda: one._sending is not None and one._sending._exporter.taken == 10)
    one.observe([record(30)])
    one.pump()
    assert (one.lost, one.trouble) == (15, "")


def test_a_collector_that_does_not_answer_holds_nobody_up(
    make: Make, told: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "STOP_S", 0.05)
    exporter = Scripted()
    exporter.gate.clear()
    one = make(exporter)
    one.observe([record(1)])
    one.pump()
    assert exporter.asked.wait(10)
    for number in range(2, 5):
        one.observe([record(number)])
    one.pump()  # does not wait for the one that is under way
    one.stop()
    assert one.lost == 4
    assert [(event["event"], event["count"]) for event in told] == [("spans_lost", 4)]
    exporter.gate.set()


def test_the_end_sends_what_there_is_and_comes_once(make: Make, told: list[dict[str, object]]) -> None:
    exporter = Scripted()
    exporter.gate.clear()
    one = make(exporter, {})  # every five seconds
    one.pump()
    one.observe([record(1)])
    threading.Timer(0.1, exporter.gate.set).start()
    one.stop()
    one.observe([record(2)])
    one.stop()
    one.pump()
    assert [span.context.span_id for span in exporter.got] == [1]
    assert exporter.ended
    assert (one.lost, told) == (0, [])


def test_where_nothing_ever_came_nothing_is_made_at_the_end() -> None:
    def exporter() -> SpanExporter:
        raise AssertionError

    Spans("anthropic", {}, lambda event: None, {}, exporter).stop()


class Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise BrokenPipeError


def test_an_exporter_that_raises_has_lost_its_batch(make: Make) -> None:
    one = make(Broken())
    one.observe([record(1)])
    one.pump()
    until(lambda: one.lost == 1)
    assert one.trouble.startswith("spans: the exporter failed")


def test_the_sdks_own_words_are_kept_back_while_we_export(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")

    class Wordy(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            logger.error("ours")
            other = threading.Thread(target=logger.error, args=("another's",))
            other.start()
            other.join()
            return SpanExportResult.FAILURE

    filters = list(logger.filters)
    accounted = Accounted(Wordy())
    accounted.export([])
    logger.error("later")
    assert [entry.message for entry in caplog.records] == ["another's", "later"]
    accounted.shutdown()
    assert logger.filters == filters


def test_without_the_extra_the_application_runs_and_says_what_is_missing() -> None:
    """A process in which ``opentelemetry`` cannot be imported: no part of the gateway needs it unless asked to."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("opentelemetry", "google"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import app.factory, app.cli, app.web.server
from app.settings import load
from app.errors import ConfigError
app.factory.create_app(load({"HOST": "127.0.0.1"}))
try:
    load({"HOST": "127.0.0.1", "ENABLE_OTEL": "true"})
except ConfigError as error:
    print(error.faults)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "(\"ENABLE_OTEL=true: takes pip install 'penstock[otel]'.\",)"


def test_checking_the_settings_imports_nothing_that_gevent_patches_later() -> None:
    """gunicorn's arbiter reads them; its workers are patched after the fork."""
    script = "import sys; from app.settings import load; load(); print('ssl' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"ENABLE_OTEL": "true", "HOST": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "False"
