"""One JSON line per exchange with what B40 names, and no secret anywhere in the output."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import USUAL, Truncated, ask, message, opened, post

FIELDS = {
    "time",
    "level",
    "event",
    "request_id",
    "upstream_request_id",
    "route",
    "method",
    "path",
    "model",
    "status",
    "slug",
    "stream",
    "http_version",
    "request_bytes",
    "response_bytes",
    "queue_ms",
    "upstream_head_ms",
    "ttfb_ms",
    "total_ms",
    "gateway_ms",
    "attempts",
    "credential",
    "provider",
    "caller",
    "tokens",
    "client_left",
    "cause",
    "fallback",
    "router_ms",
    "connect_ms",
    "first_event_ms",
    "usage_complete",
    "cost_micro_usd",
}
OF_STREAMS = {"gaps", "gaps_ms", "stream_error"}


def _line(server: Server, request_id: str) -> dict[str, object]:
    """The one line of that request."""
    until(lambda: any(row["request_id"] == request_id for row in server.lines()), 5, "the log line")
    (row,) = [row for row in server.lines() if row["request_id"] == request_id]
    assert set(row) - OF_STREAMS == FIELDS
    assert row["stream"] or not OF_STREAMS & set(row)
    datetime.fromisoformat(str(row["time"]))
    return row


def test_a_json_exchange(server: Server) -> None:
    given = "router-given-request-id-0001"
    answer = post(server.port, "json-80ms", headers=(("x-request-id", given),))
    row = _line(server, given)
    assert row["upstream_request_id"] == answer.get("request-id")
    assert (row["route"], row["method"], row["path"]) == ("messages", "POST", "/v1/messages")
    assert (row["model"], row["status"], row["slug"]) == ("claude-sim-json-80ms", 200, "")
    assert (row["request_bytes"], row["response_bytes"]) == (len(message("json-80ms")), len(answer.body))
    assert (row["http_version"], row["stream"], row["client_left"]) == ("HTTP/2", False, False)
    head, ttfb, total, added = (row[name] for name in ("upstream_head_ms", "ttfb_ms", "total_ms", "gateway_ms"))
    assert 79 < head <= ttfb <= total  # type: ignore[operator]
    assert 0 < added < 60  # type: ignore[operator]
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["200"]  # type: ignore[attr-defined]


def test_a_stream(server: Server) -> None:
    answer = post(server.port, "stream-5x20ms", stream=True)
    row = _line(server, answer.get("x-request-id"))
    assert (row["stream"], row["response_bytes"]) == (True, len(answer.body))
    assert row["ttfb_ms"] < row["total_ms"]  # type: ignore[operator]
    assert (row["level"], "stream_error" in row) == ("info", False)


@pytest.mark.parametrize(
    ("scenario", "status", "slug"),
    [("status-529", 529, ""), ("status-502-html", 502, ""), ("refused", 502, "protocol_broken")],
)
def test_errors(server: Server, scenario: str, status: int, slug: str) -> None:
    row = _line(server, post(server.port, scenario).get("x-request-id"))
    assert (row["status"], row["slug"]) == (status, slug)


def test_the_tries_of_a_failed_exchange(server: Server) -> None:
    row = _line(server, post(server.port, "refused").get("x-request-id"))
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["protocol_broken"]  # type: ignore[attr-defined]


class _LateFirstEvent(BaseHTTPRequestHandler):
    """Sends the head of a stream at once, and its first event half a second later.

    Attributes:
        waits_s: Before the head, and before the event.
        event: All that comes.
    """

    waits_s = (0.0, 0.5)
    event = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.waits_s[0])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.flush()
        time.sleep(self.waits_s[1])
        self.wfile.write(self.event)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class _LateHead(_LateFirstEvent):
    """Sends the head when the client has had a sign of life, and an error event with it."""

    waits_s = (1.5, 0.0)
    event = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n'


@contextmanager
def _upstream(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as upstream:
        thread = threading.Thread(target=upstream.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{upstream.server_address[1]}"
        upstream.shutdown()
        thread.join()


def test_an_error_event_after_a_sign_of_life(farm: Farm, kind: str) -> None:
    with _upstream(_LateHead) as late, farm.own(kind, upstream=late, STREAM_HEARTBEAT=1) as server:
        answer = post(server.port, "any", stream=True)
        row = _line(server, answer.get("x-request-id"))
        assert answer.body.endswith(_LateHead.event) and answer.body != _LateHead.event
        assert (row["status"], row["level"], row["stream_error"]) == (200, "warning", "api_error")


def test_the_wait_for_a_first_event_is_the_upstreams(farm: Farm, kind: str) -> None:
    """Though the head is not handed up before that."""
    with _upstream(_LateFirstEvent) as late, farm.own(kind, upstream=late) as server:
        answer = post(server.port, "any", stream=True)
        row: dict[str, Any] = dict(_line(server, answer.get("x-request-id")))
        assert row["upstream_head_ms"] < row["total_ms"] / 2 < row["ttfb_ms"]
        assert 0 < row["gateway_ms"] < row["total_ms"] / 2
        found = re.match(r"gateway;dur=([0-9.]+),", answer.get("server-timing"))
        assert found is not None and float(found[1]) <= row["gateway_ms"] + 0.01

        def seen() -> dict[str, Any]:
            told: dict[str, Any] = ask(server.port, "/anthropic/metrics").json()["performance"]["windows"]["1m"]
            return told

        until(lambda: seen()["requests"] == 1, 5, "the monitor's figure")
        assert seen()["latency_ms"]["p99"] < row["total_ms"] / 2


@pytest.mark.parametrize("scenario", ["streamerror-2", "overloaded"])
def test_a_stream_that_ends_in_an_error_event(server: Server, scenario: str) -> None:
    """Of the upstream's own, in the middle of a 200 or at its beginning."""
    answer = post(server.port, scenario, stream=True)
    row = _line(server, answer.get("x-request-id"))
    assert b"overloaded_error" in answer.body
    assert (row["status"], row["slug"], row["client_left"]) == (200, "", False)
    assert (row["level"], row["stream_error"]) == ("warning", "overloaded_error")


def test_a_broken_stream(server: Server) -> None:
    answer = post(server.port, "reset-3", stream=True)
    row = _line(server, answer.get("x-request-id"))
    assert (row["status"], row["slug"], row["client_left"]) == (200, "stream_broken", False)


def test_a_client_that_left(server: Server) -> None:
    raw, head = opened(server.port, "stall-1")
    raw.close()
    row = _line(server, head.get("x-request-id"))
    assert (row["status"], row["slug"], row["client_left"]) == (200, "client_gone", True)


def test_a_refusal(server: Server) -> None:
    answer = ask(server.port, "/v1/%2e%2e/x?secret=1", None, USUAL)
    row = _line(server, answer.get("x-request-id"))
    assert (row["status"], row["slug"], row["upstream_head_ms"]) == (400, "invalid_request", None)


def test_no_secret_is_written(farm: Farm, kind: str, simulator: Running) -> None:
    """Not even at the most talkative level, nor when things fail."""
    upstream, gateway = "sk-ant-upstream-secret-1", "gateway-secret-2"
    secrets = [
        upstream,
        gateway,
        "sk-wrong-3",
        "cookie-secret-4",
        "query-secret-5",
        "body-secret-6",
        "basic-secret-7",
    ]
    options = {"ANTHROPIC_API_KEY": upstream, "GATEWAY_API_KEYS": gateway, "LOG_LEVEL": "debug", "DEBUG": "true"}
    with farm.own(kind, **options) as server:
        for key in (gateway, "sk-wrong-3"):
            for scenario in ("json-0ms", "status-529", "refused", "reset-2"):
                for stream in (False, True):
                    headers = (
                        ("accept", "*/*"),
                        ("x-api-key", key),
                        ("authorization", f"Bearer {key}"),
                        ("cookie", "a=cookie-secret-4"),
                        ("proxy-authorization", "basic-secret-7"),
                        ("content-type", "application/json"),
                    )
                    body = message(scenario, stream=stream, system="body-secret-6")
                    try:
                        ask(server.port, "/v1/messages?token=query-secret-5", body, headers)
                    except Truncated:  # the JSON answer that breaks off
                        assert scenario == "reset-2"
        ask(server.port, "/v1/../x?token=query-secret-5", None, (("x-api-key", gateway),))
    assert len(server.lines()) == 17
    for secret in secrets:
        assert secret not in server.output, secret


def test_the_level_says_how_severe_it_is(server: Server) -> None:
    for scenario, level in (("json-0ms", "info"), ("status-400", "info"), ("status-529", "warning")):
        assert _line(server, post(server.port, scenario).get("x-request-id"))["level"] == level
    assert _line(server, post(server.port, "reset-3", stream=True).get("x-request-id"))["level"] == "warning"


@pytest.mark.parametrize(("level", "statuses"), [("warning", [529]), ("error", [])])
def test_a_level_that_production_leaves_on(farm: Farm, kind: str, level: str, statuses: list[int]) -> None:
    with farm.own(kind, "--log-level info", LOG_LEVEL=level) as server:  # gunicorn tells its port at info
        for scenario in ("json-0ms", "status-529", "status-400"):
            post(server.port, scenario)
        server.end()
    assert [row["status"] for row in server.lines()] == statuses
    assert not server.lines("worker_started")


def test_the_last_lines_of_a_worker_are_written(farm: Farm, kind: str) -> None:
    """SIGTERM right behind the answers: nothing that waited to be written is lost, and the order is kept."""
    with farm.own(kind) as server:
        asked = [post(server.port, "json-0ms").get("x-request-id") for _ in range(20)]
        assert server.end() == 0
    assert [row["request_id"] for row in server.lines()] == asked
    assert len(server.lines("worker_stopped")) == 1


def test_a_single_line_does_not_wait_for_others(server: Server) -> None:
    """A quiet gateway's line is there as soon as its request is over: long before anything else comes."""
    row = _line(server, post(server.port, "json-0ms").get("x-request-id"))
    assert row["level"] == "info"


def test_connections_are_told_of_under_the_requests_id(farm: Farm, kind: str) -> None:
    with farm.own(kind, LOG_LEVEL="debug") as server:
        first, second = (post(server.port, "json-0ms").get("x-request-id") for _ in range(2))
        until(lambda: server.lines("connection_reused"), 5, "the event")
        server.end()
    (opened_row,) = server.lines("connection_opened")
    assert (opened_row["request_id"], opened_row["level"], opened_row["http_version"]) == (
        first,
        "debug",
        "HTTP/2",
    )
    assert opened_row["connect_ms"] >= 0
    assert opened_row["tls_ms"] > 0
    assert [row["request_id"] for row in server.lines("connection_reused")] == [second]
    tries = [row["attempts"][-1] for row in server.lines()]
    assert [one["connection"] for one in tries] == ["new", "reused"]
    assert tries[0]["connect_ms"] > 0
    assert tries[1]["connect_ms"] == 0


def test_lines_for_people_have_all_fields(farm: Farm, kind: str) -> None:
    with farm.own(kind, LOG_FORMAT="console") as server:
        asked = post(server.port, "json-0ms").get("x-request-id")
        server.end()
    (line,) = [line for line in server.output.splitlines() if f"request_id={asked}" in line]
    for name in FIELDS - {"time", "level", "event"}:
        assert f" {name}=" in line


def test_bodies_are_shown_where_a_switch_asks_for_them_and_secrets_are_not(farm: Farm, kind: str) -> None:
    upstream, gateway = "sk-ant-upstream-secret-1", "gateway-secret-2"
    options: dict[str, Any] = {"ANTHROPIC_API_KEY": upstream, "GATEWAY_API_KEYS": gateway, "BODY_LOG_BYTES": 400}
    switches = {"ENABLE_REQUEST_BODY_LOGGING": "true", "ENABLE_RESPONSE_BODY_LOGGING": "true"}
    secrets = {
        "password": "hunter-secret-3",
        "text": f"my key is {gateway}",
        "note": "ghp_0123456789abcdefghijSECRET4",
    }
    body = message("json-0ms", metadata=secrets, max_tokens=77, system="x" * 300)
    with farm.own(kind, **options, **switches) as server:
        headers = (*(pair for pair in USUAL if pair[0] != "x-api-key"), ("x-api-key", gateway))
        answer = ask(server.port, "/v1/messages", body, headers)
        row = next(iter(_until_line(server)))
        server.end()
    assert set(row) - FIELDS == {"request_body", "response_body"}
    left_out = len(body) - 400
    assert f"[cut: {left_out} of {len(body)} bytes are left out]" in row["request_body"]
    assert row["response_body"].startswith(answer.body.decode()[:50])
    for secret in (upstream, gateway, "hunter-secret-3", "SECRET4"):
        assert secret not in server.output, secret


def _until_line(server: Server) -> list[dict[str, Any]]:
    until(server.lines, 5, "a log line")
    return server.lines()
