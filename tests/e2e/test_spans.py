"""A span per exchange, from a real gunicorn to a real OTLP/HTTP collector, with the official SDK as the caller."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.collector import Collector, Span, collecting
from tests.e2e.servers import ROOT, Farm, Measured, Server, environment, free_port, until
from tests.e2e.wire import KEY, USUAL, Answer, Raw, ask, message, opened, request

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
ASKED: Final[Any] = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
MODEL = "claude-sim-json-0ms"
CLIENT_KIND, UNSET, ERROR = 3, 0, 2


def spanning(collector: Collector, **more: object) -> dict[str, Any]:
    return {
        "ENABLE_OTEL": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=collectors-secret",
        "OTEL_EXPORTER_OTLP_TIMEOUT": 1,
        "OTEL_BSP_SCHEDULE_DELAY": 100,
        **more,
    }


@pytest.fixture(scope="module")
def all_day() -> Iterator[Collector]:
    with collecting(Collector()) as collector:
        yield collector


@pytest.fixture
def collector(all_day: Collector) -> Collector:
    all_day.spans.clear()
    all_day.heads.clear()
    return all_day


@pytest.fixture
def spanned(farm: Farm, kind: str, simulator: Running, collector: Collector) -> Server:
    """Two workers whose spans go to the collector; two tries."""
    return farm.shared(
        kind, **spanning(collector, WEB_CONCURRENCY=2, RETRY_MAX_ATTEMPTS=2, RETRY_429_INTERVAL=0.05)
    )


def new_id() -> str:
    return f"e2e-{secrets.token_hex(12)}"


def sent(simulator: Running) -> dict[str, list[str]]:
    """What the upstream heard last, of its trace."""
    last = simulator.last()
    assert last is not None
    names = ("traceparent", "tracestate", "baggage")
    return {one: [v for k, v in last["headers"] if k == one] for one in names if one in dict(last["headers"])}


def the_span(collector: Collector, request_id: str) -> Span:
    until(lambda: collector.of(request_id), what="its span")
    (span,) = collector.of(request_id)
    return span


def asked(server: Server, scenario: str, *headers: tuple[str, str]) -> tuple[Answer, str]:
    request_id = new_id()
    answer = ask(server.port, "/v1/messages", message(scenario), (*USUAL, ("x-request-id", request_id), *headers))
    return answer, request_id


def test_ids_chain_from_the_caller_to_the_upstream(
    spanned: Server, simulator: Running, collector: Collector
) -> None:
    request_id = new_id()
    extra = {"traceparent": PARENT, "tracestate": "a=1,b=2", "baggage": "k=v", "x-request-id": request_id}
    before = time.time_ns()
    with anthropic.Anthropic(base_url=spanned.url, api_key=KEY, max_retries=0) as sdk:
        answer = sdk.messages.create(model=MODEL, extra_headers=extra, **ASKED)
    span = the_span(collector, request_id)
    assert (span.trace_id, span.parent_id) == (TRACE, CALLER)
    assert span.span_id not in (CALLER, "0" * 16)
    heard = {"traceparent": [f"00-{TRACE}-{span.span_id}-01"], "tracestate": ["a=1,b=2"], "baggage": ["k=v"]}
    assert sent(simulator) == heard
    assert (span.name, span.kind, span.status) == (f"chat {MODEL}", CLIENT_KIND, UNSET)
    assert before <= span.began_ns < span.ended_ns <= time.time_ns()
    told = span.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["gen_ai.request.model"] == MODEL
    usage = answer.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert told["gen_ai.usage.input_tokens"] == usage.input_tokens + cached
    assert told["gen_ai.usage.output_tokens"] == usage.output_tokens
    assert simulator.tls_url == f"https://{told['server.address']}:{told['server.port']}"
    assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", 200)
    assert (told["url.path"], told["penstock.route"]) == ("/v1/messages", "messages")
    assert told["penstock.upstream_request_id"] == answer._request_id
    assert told["penstock.attempts"] == 1
    assert told["penstock.gateway_ms"] > 0
    assert {"error.type", "penstock.client_left", "gen_ai.request.stream"}.isdisjoint(told)
    assert span.resource["service.name"] == "penstock"
    path, headers = collector.heads[-1]
    assert (path, headers["api-key"]) == ("/v1/traces", "collectors-secret")
    assert not {"traceparent", "x-api-key"} & set(headers)
    (row,) = [row for row in spanned.lines() if row["request_id"] == request_id]
    assert KEY not in repr(span)
    assert row["status"] == 200


def test_a_caller_without_a_trace_has_none_injected(
    spanned: Server, simulator: Running, collector: Collector
) -> None:
    traces = set()
    for _ in range(2):
        answer, request_id = asked(spanned, "json-0ms", ("tracestate", "a=1"))
        assert answer.status == 200
        span = the_span(collector, request_id)
        assert span.parent_id == ""
        assert sent(simulator) == {"tracestate": ["a=1"]}
        traces.add(span.trace_id)
    assert len(traces) == 2


@pytest.mark.parametrize(
    "headers",
    [[PARENT.upper()], [f"ff{PARENT[2:]}"], [PARENT + "-00"], ["nonsense"], [PARENT, PARENT]],
    ids=["upper", "ff", "longer", "nonsense", "twice"],
)
def test_what_is_not_valid_passes_untouched(
    spanned: Server, simulator: Running, collector: Collector, headers: list[str]
) -> None:
    answer, request_id = asked(spanned, "json-0ms", *(("traceparent", value) for value in headers))
    assert answer.status == 200
    assert sent(simulator) == {"traceparent": headers}
    span = the_span(collector, request_id)
    assert (span.parent_id, span.trace_id == TRACE) == ("", False)


def test_one_that_is_not_sampled_makes_no_span_and_keeps_its_flag(
    spanned: Server, simulator: Running, collector: Collector
) -> None:
    answer, unsampled = asked(spanned, "json-0ms", ("traceparent", PARENT[:-2] + "00"))
    assert answer.status == 200
    (heard,) = sent(simulator)["traceparent"]
    assert heard.startswith(f"00-{TRACE}-")
    assert heard.endswith("-00")
    assert CALLER not in heard
    for _ in range(8):  # both workers have sent something after it
        the_span(collector, asked(spanned, "json-0ms")[1])
    assert collector.of(unsampled) == []


def test_a_stream(spanned: Server, collector: Collector) -> None:
    request_id = new_id()
    extra = {"x-request-id": request_id, "traceparent": PARENT}
    with (
        anthropic.Anthropic(base_url=spanned.url, api_key=KEY, max_retries=0) as sdk,
        sdk.messages.stream(model="claude-demo", extra_headers=extra, **ASKED) as stream,
    ):
        final = stream.get_final_message()
    span = the_span(collector, request_id)
    told = span.attributes
    assert (span.name, span.parent_id, span.status) == ("chat claude-demo", CALLER, UNSET)
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.usage.output_tokens"] == final.usage.output_tokens
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < (span.ended_ns - span.began_ns) / 1e9


def test_errors_retries_and_refusals_make_one_span_each(spanned: Server, collector: Collector) -> None:
    answer, request_id = asked(spanned, "status-404")
    span = the_span(collector, request_id)
    assert (answer.status, span.status, span.attributes["http.response.status_code"]) == (404, UNSET, 404)
    assert "error.type" not in span.attributes

    answer, request_id = asked(spanned, "status-529")
    span = the_span(collector, request_id)
    assert (answer.status, span.status, span.attributes["error.type"]) == (529, ERROR, "529")
    assert span.attributes["penstock.attempts"] == 2
    assert [(name, told["penstock.outcome"]) for name, told in span.events] == [("penstock.try_in_vain", "529")]

    answer, request_id = asked(spanned, "flaky-1-503")
    span = the_span(collector, request_id)
    assert (answer.status, span.status, span.attributes["penstock.attempts"]) == (200, UNSET, 2)
    assert [told["penstock.outcome"] for _, told in span.events] == ["503"]


def test_other_routes(spanned: Server, collector: Collector) -> None:
    request_id = new_id()
    with Raw(spanned.port) as raw:
        raw.send(request("/v1/models?limit=3", None, (*USUAL, ("x-request-id", request_id))))
        raw.body(raw.head())
    span = the_span(collector, request_id)
    assert (span.name, span.attributes["url.path"]) == ("GET models", "/v1/models")
    assert "limit" not in repr(span)


@pytest.mark.parametrize("scenario", ["hang", "stream-10000x20ms"])
def test_a_departure_is_no_error(spanned: Server, collector: Collector, scenario: str, simulator: Running) -> None:
    if scenario == "hang":
        raw = Raw(spanned.port)
        raw.send(request("/v1/messages", message(scenario, stream=True), USUAL))
        until(lambda: simulator.stats()["open_streams"] == 1)
    else:
        raw, _ = opened(spanned.port, scenario)
    raw.close()
    until(lambda: collector.spans, what="its span")
    (span,) = collector.spans
    assert span.attributes["penstock.client_left"] is True
    assert (span.status, "error.type" in span.attributes) == (UNSET, False)


def test_the_gateways_own_refusal(farm: Farm, collector: Collector) -> None:
    server = farm.shared("gevent", **spanning(collector, ANTHROPIC_API_KEY="up", GATEWAY_API_KEYS="g" * 20))
    answer, request_id = asked(server, "json-0ms", ("traceparent", PARENT))
    span = the_span(collector, request_id)
    assert (answer.status, span.attributes["http.response.status_code"]) == (401, 401)
    assert (span.parent_id, span.status, span.attributes["penstock.attempts"]) == (CALLER, UNSET, 0)
    assert "server.address" not in span.attributes


def test_many_at_once_over_two_workers(spanned: Server, collector: Collector) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: asked(spanned, "json-0ms", ("traceparent", PARENT)), range(200)))
    assert {answer.status for answer, _ in made} == {200}
    until(lambda: len(collector.spans) >= 200, what="200 spans")
    spans = list(collector.spans)
    assert sorted(span.attributes["penstock.request_id"] for span in spans) == sorted(one for _, one in made)
    assert len({span.span_id for span in spans}) == 200
    assert len({span.resource["service.instance.id"] for span in spans}) == 2


def test_the_end_of_a_worker_sends_what_it_has(farm: Farm, kind: str, collector: Collector) -> None:
    with farm.own(kind, **spanning(collector, OTEL_BSP_SCHEDULE_DELAY=600_000)) as server:
        _, request_id = asked(server, "json-0ms")
        assert collector.of(request_id) == []
        assert server.end() == 0
    assert len(collector.of(request_id)) == 1
    assert server.lines("spans_lost") == []


def test_a_collector_that_does_not_answer_holds_up_neither_requests_nor_the_end(
    farm: Farm, kind: str, collector: Collector, measured: Measured
) -> None:
    settings = spanning(collector, OTEL_EXPORTER_OTLP_TIMEOUT=30, OTEL_BSP_SCHEDULE_DELAY=50)
    with farm.own(kind, **settings) as server:
        collector.delay.clear()
        try:
            asked(server, "json-0ms")
            until(lambda: collector.heads, what="an export under way")
            for _ in range(30):
                assert asked(server, "json-0ms")[0].status == 200
            began = time.monotonic()
            assert server.end() == 0
            measured("end_s", round(time.monotonic() - began, 2))
        finally:
            collector.delay.set()
    (lost,) = server.lines("spans_lost")
    assert (lost["count"], lost["level"]) == (31, "warning")
    assert "Traceback" not in server.output


def ready(server: Server) -> dict[str, object]:
    found: dict[str, object] = ask(server.port, "/ready", None).json()
    return found


def lost(server: Server) -> float:
    text = ask(server.port, "/metrics", None).body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("penstock_spans_lost "))


@pytest.mark.parametrize("trouble", ["down", "refuses"])
def test_what_is_lost_is_told_until_it_works_again(
    farm: Farm, kind: str, simulator: Running, trouble: str
) -> None:
    place = Collector()
    place.port = free_port()
    place.status = 400
    reason = {"down": "the collector cannot be reached (ConnectionError)", "refuses": "the collector answers 400"}
    with farm.own(kind, **spanning(place)) as server, ExitStack() as stack:
        if trouble == "refuses":
            stack.enter_context(collecting(place))
        assert asked(server, "json-0ms")[0].status == 200
        until(lambda: lost(server) == 1, what="the count")
        until(lambda: server.lines("spans_lost"), what="the line")
        found = ready(server)
        told = f"spans: {reason[trouble]}; 1 lost so far"
        assert (found["status"], found["reasons"]) == ("degraded", [told])
        (line,) = server.lines("spans_lost")
        assert (line["count"], line["reason"]) == (1, told)
        place.status = 200
        if trouble == "down":
            stack.enter_context(collecting(place))
        _, request_id = asked(server, "json-0ms")
        the_span(place, request_id)
        until(lambda: ready(server)["status"] == "ready", what="ready")
        until(lambda: server.lines("spans_arrive_again"), what="the line")
        assert "collectors-secret" not in server.output
        assert "opentelemetry" not in server.output
        assert "Failed to export" not in server.output


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ENABLE_OTEL": "true", "OTEL_SDK_DISABLED": "true"},
        {"ENABLE_OTEL": "true", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["off", "disabled", "none"],
)
def test_without_spans_nothing_is_touched(farm: Farm, simulator: Running, settings: dict[str, str]) -> None:
    server = farm.shared("gevent", **settings)
    answer, _ = asked(server, "json-0ms", ("traceparent", PARENT), ("tracestate", "a=1"))
    assert answer.status == 200
    assert sent(simulator) == {"traceparent": [PARENT], "tracestate": ["a=1"]}
    if settings:
        until(lambda: server.lines("spans_off"), what="the line")
        (line,) = server.lines("spans_off")
        assert line["reason"] in ("OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none")
    assert ready(server)["reasons"] == []


def test_spans_on_standard_output(farm: Farm) -> None:
    settings = {"ENABLE_OTEL": "true", "OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with farm.own("gevent", **settings) as server:
        _, request_id = asked(server, "json-0ms")
        until(lambda: f'"penstock.request_id": "{request_id}"' in server.output, what="its span")


def test_bad_values_end_it_before_it_starts(simulator: Running) -> None:
    environ = environment(
        simulator, ENABLE_OTEL="true", OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_TRACES_SAMPLER="sometimes"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "wsgi:app"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: allowed is http/protobuf" in done.stderr
    assert "OTEL_TRACES_SAMPLER=sometimes: allowed is one of" in done.stderr
