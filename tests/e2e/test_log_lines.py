"""One JSON line per exchange with what B40 names, and no secret anywhere in the output."""

from __future__ import annotations

from datetime import datetime

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
}


def _line(server: Server, request_id: str) -> dict[str, object]:
    """The one line of that request."""
    until(lambda: any(row["request_id"] == request_id for row in server.lines()), 5, "the log line")
    (row,) = [row for row in server.lines() if row["request_id"] == request_id]
    assert set(row) == FIELDS
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
