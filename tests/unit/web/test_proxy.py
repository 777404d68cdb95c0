"""web/proxy and the walk behind it: what reaches the upstream, what comes back, what is refused (B1-B24).

Runs on: worker.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.assembly import Assembly
from app.errors import Draining
from app.factory import create_app
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

Make = Callable[..., Settings]
SSE = [("content-type", "text/event-stream; charset=utf-8"), ("content-encoding-not", "x")]
EVENT = b'event: message_start\ndata: {"type": "message_start"}\n\n'
STOP = b"event: message_stop\ndata: {}\n\n"


@pytest.fixture
def app(settings: Make, upstream: Upstream) -> Flask:
    """An open relay: no upstream credential, the caller's own passes."""
    return create_app(settings())


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def keyed(settings: Make, upstream: Upstream) -> FlaskClient:
    """A gateway with credentials of its own."""
    return create_app(settings(ANTHROPIC_API_KEYS="ours", GATEWAY_API_KEYS="gate-1,gate-2")).test_client()


class Request:
    """What gunicorn's parser keeps, as far as anybody looks."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = headers
        self.closed = 0

    def force_close(self) -> None:
        self.closed += 1


class Input(io.BytesIO):
    """A request body that knows its request."""

    penstock_request: Request


def raw(
    app: Any,
    target: str,
    *,
    method: str = "POST",
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"{}",
    **environ: Any,
) -> tuple[int, list[tuple[str, str]], bytes]:
    """One request by its raw target, as gunicorn with our hooks would hand it in."""
    stream = Input(body)
    stream.penstock_request = Request(headers or [])
    path, _, query = target.partition("?")
    told: dict[str, Any] = {}

    def start_response(status: str, pairs: list[tuple[str, str]]) -> None:
        told.update(status=int(status[:3]), headers=pairs)

    full = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SCRIPT_NAME": "",
        "SERVER_NAME": "gw",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": stream,
        "wsgi.url_scheme": "http",
        "wsgi.errors": io.StringIO(),
        **environ,
    }
    answer = app(full, start_response)
    data = b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    return told["status"], told["headers"], data


def is_error(answer: Any, status: int, kind: str, slug: str) -> dict[str, Any]:
    """Anthropic's error shape with our slug; returns the whole."""
    assert answer.status_code == status
    assert answer.headers["x-penstock-error"] == slug
    assert answer.headers["content-type"] == "application/json"
    said: dict[str, Any] = json.loads(answer.data)
    assert said["type"] == "error"
    assert said["error"]["type"] == kind
    assert said["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return said


# -------------------------------------------------------------------- routes
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PURGE"])
@pytest.mark.parametrize("mount", ["", "/anthropic"])
def test_b1_all_methods_of_both_mounts_pass(
    client: FlaskClient, upstream: Upstream, method: str, mount: str
) -> None:
    answer = client.open(f"{mount}/v1/new/thing?x=1", method=method)
    assert answer.status_code == 200
    assert (upstream.last.method, upstream.last.target) == (method, "/v1/new/thing?x=1")


def test_b10_body_bytes_pass_unchanged(client: FlaskClient, upstream: Upstream) -> None:
    body = b'{"b": 1,  "a":2, "s": "\xff\\ud800"}'
    client.post("/v1/messages", data=body)
    assert upstream.bodies == [body]


@pytest.mark.parametrize(
    "target",
    ["/v1//messages", "/v1/a%2Fb%20c", "/v1/x?a=%41&b=../..", "/v1/messages/", "/v1/%E2%82%AC"],
)
def test_b11_targets_pass_as_the_client_sent_them(app: Flask, upstream: Upstream, target: str) -> None:
    assert raw(app, target, PATH_INFO="/v1/decoded")[0] == 200
    assert upstream.last.target == target
    assert raw(app, "/anthropic" + target, PATH_INFO="/anthropic/decoded")[0] == 200
    assert upstream.last.target == target


def test_absolute_form_reaches_no_other_host(app: Flask, upstream: Upstream) -> None:
    assert raw(app, "http://evil.example/v1/messages?x", PATH_INFO="/v1/messages")[0] == 200
    assert (upstream.last.origin, upstream.last.target) == ("https://api.anthropic.com", "/v1/messages?x")


@pytest.mark.parametrize(
    "target", ["/v1/../x", "/v1/%2e%2e/x", "/v1/a\\b", "/v1/a#b", "/v1/\xe9", "/v1/a\x7f", "/anthropic/../v1"]
)
def test_bad_targets_never_leave(app: Flask, upstream: Upstream, target: str) -> None:
    status, headers, body = raw(app, target, PATH_INFO="/v1/x")
    assert (status, upstream.seen) == (400, [])
    assert dict(headers)["x-penstock-error"] == "invalid_request"
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v2/messages", "/v1", "/anthropic", "/anthropic/", "/static/x"]
)
def test_unknown_paths_are_404_in_anthropic_shape(client: FlaskClient, upstream: Upstream, path: str) -> None:
    is_error(client.get(path), 404, "not_found_error", "unknown_route")
    assert upstream.seen == []


def test_a_method_that_an_operators_page_does_not_take_is_405(client: FlaskClient) -> None:
    answer = client.post("/health")
    assert is_error(answer, 405, "invalid_request_error", "method_not_allowed")
    assert answer.headers["x-should-retry"] == "false"


# ------------------------------------------------------------------- headers
def test_b12_headers_pass_with_order_and_repeats(app: Flask, upstream: Upstream) -> None:
    kept = [("anthropic-beta", "a"), ("user-agent", "sdk"), ("anthropic-beta", "b"), ("x-api-key", "callers")]
    dropped = [
        ("host", "gw"),
        ("cookie", "a=1"),
        ("x-forwarded-for", "1.2.3.4"),
        ("connection", "x-mine"),
        ("x-mine", "1"),
        ("te", "trailers"),
    ]
    raw(app, "/v1/messages", headers=kept + dropped)
    assert list(upstream.last.headers) == [*kept, ("anthropic-version", "2023-06-01")]


def test_b12_without_our_hooks_the_environ_is_read(client: FlaskClient, upstream: Upstream) -> None:
    client.post("/v1/messages", data=b"{}", content_type="application/json", headers={"X-Mine": "1"})
    assert {("x-mine", "1"), ("content-type", "application/json")} <= set(upstream.last.headers)


def test_b13_answers_pass_unchanged(client: FlaskClient, upstream: Upstream) -> None:
    headers = [
        ("request-id", "req_up"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-encoding", "gzip"),
        ("retry-after", "7"),
        ("x-should-retry", "true"),
    ]
    upstream.answers(529, [*headers, ("connection", "x-hop"), ("x-hop", "1")], b"\x1f\x8b", b"raw")
    answer = client.post("/v1/messages")
    assert (answer.status_code, answer.data) == (529, b"\x1f\x8braw")
    pairs = [(name, value) for name, value in answer.headers if name != "x-request-id"]
    assert pairs[: len(headers)] == headers
    assert [name for name, _ in pairs[len(headers) :]] == ["x-penstock-provider", "server-timing"]
    assert "x-penstock-error" not in answer.headers


def test_b15_html_from_an_edge_passes(client: FlaskClient, upstream: Upstream) -> None:
    upstream.answers(599, [("content-type", "text/html")], b"<html>")
    answer = client.get("/v1/x")
    assert (answer.status_code, answer.data, answer.headers["content-type"]) == (599, b"<html>", "text/html")


def test_a_valid_request_id_is_kept_and_others_are_replaced(client: FlaskClient) -> None:
    good = "abcDEF0123+/=-456789xyz"
    assert client.get("/v1/x", headers={"X-Request-ID": good}).headers["x-request-id"] == good
    made = {
        client.get("/v1/x", headers={"X-Request-ID": bad}).headers["x-request-id"]
        for bad in ("short", "x" * 201, "sk-ant-which-may-be-a-key")
    }
    assert len(made) == 3
    assert all(one.startswith("req-") for one in made)


def test_header_injection_is_refused(app: Flask, upstream: Upstream) -> None:
    status, _, body = raw(app, "/v1/messages", headers=[("x", "a\r\nevil: 1")])
    assert (status, upstream.seen) == (400, [])
    assert b"evil" not in body


# ---------------------------------------------------------------------- auth
@pytest.mark.parametrize("header", [{"x-api-key": "gate-2"}, {"Authorization": "bearer gate-1 "}])
def test_b12_gateway_keys_are_removed_and_ours_added(
    keyed: FlaskClient, upstream: Upstream, header: dict[str, str]
) -> None:
    assert keyed.post("/v1/messages", headers=header).status_code == 200
    told = [pair for pair in upstream.last.headers if pair[0] in {"x-api-key", "authorization"}]
    assert told == [("x-api-key", "ours")]


@pytest.mark.parametrize(
    "header", [{}, {"x-api-key": "gate"}, {"x-api-key": "ours"}, {"Authorization": "Basic gate-1"}]
)
def test_strangers_are_401(keyed: FlaskClient, upstream: Upstream, header: dict[str, str]) -> None:
    said = is_error(keyed.post("/v1/messages", headers=header), 401, "authentication_error", "unauthenticated")
    assert upstream.seen == []
    assert "gate-" not in json.dumps(said)


def test_without_upstream_credentials_gateway_keys_are_not_asked_for(settings: Make, upstream: Upstream) -> None:
    client = create_app(settings(GATEWAY_API_KEYS="gate-1")).test_client()
    assert client.post("/v1/messages", headers={"x-api-key": "callers"}).status_code == 200
    assert ("x-api-key", "callers") in upstream.last.headers


# -------------------------------------------------------------------- bodies
def test_b16_over_the_limit_is_413_before_the_upstream_hears(settings: Make, upstream: Upstream) -> None:
    app = create_app(settings(MAX_BODY_BYTES="1024", MAX_FILE_BYTES="2048"))
    answer = app.test_client().post("/v1/messages", data=b"x" * 1025)
    is_error(answer, 413, "request_too_large", "request_too_large")
    assert app.test_client().post("/v1/files", data=b"x" * 2049).status_code == 413
    assert upstream.seen == []
    assert app.test_client().post("/v1/files", data=b"x" * 2048).status_code == 200


def test_half_a_body_never_reaches_the_upstream(app: Flask, upstream: Upstream) -> None:
    status, _, body = raw(app, "/v1/messages", body=b"half", CONTENT_LENGTH="100")
    assert (status, upstream.seen) == (400, [])
    assert b"4 of the 100 bytes" in body


def test_b16_files_are_streamed_up(app: Flask, upstream: Upstream) -> None:
    data = bytes(range(256)) * 8192
    assert raw(app, "/v1/files", body=data)[0] == 200
    assert upstream.bodies == [data]
    assert ("content-length", str(len(data))) in upstream.last.headers


def test_half_a_file_aborts_the_upload(app: Flask, upstream: Upstream) -> None:
    status, _, _ = raw(app, "/v1/files", body=b"x" * 100_000, CONTENT_LENGTH=str(1 << 21))
    assert status == 400
    assert upstream.given == []


def test_an_early_answer_ends_the_upload(app: Flask, upstream: Upstream) -> None:
    upstream.reads_body = False
    upstream.answers(413, [], b"no")
    status, _, body = raw(app, "/v1/files", body=b"x" * (2 << 20))
    assert (status, body) == (413, b"no")


# ------------------------------------------------------------------- streams
def test_b14_event_streams_pass_and_are_not_buffered(client: FlaskClient, upstream: Upstream) -> None:
    upstream.answers(200, SSE, EVENT, STOP)
    answer = client.post("/v1/messages", data=b'{"stream": true}')
    assert answer.data == EVENT + STOP
    assert answer.headers["x-accel-buffering"] == "no"


def test_b13_a_coded_stream_keeps_its_bytes(client: FlaskClient, upstream: Upstream) -> None:
    upstream.answers(200, [*SSE, ("content-encoding", "br"), ("x-accel-buffering", "yes")], b"coded", b"bytes")
    answer = client.post("/v1/messages", data=b'{"stream": true}')
    assert (answer.data, answer.headers["x-accel-buffering"]) == (b"codedbytes", "yes")


def test_b22_a_stream_that_breaks_ends_in_an_error_event(client: FlaskClient, upstream: Upstream) -> None:
    upstream.answers(200, SSE, EVENT, b"event: half", httpx.ReadError("gone"))
    data = client.post("/v1/messages", data=b'{"stream": true}').data
    assert data.startswith(EVENT + b"event: error\n")
    assert data.count(b"event: error") == 1
    assert upstream.given[0].closed


def test_b22_another_body_that_breaks_is_cut(client: FlaskClient, upstream: Upstream) -> None:
    upstream.answers(200, [], b"half", httpx.ReadError("gone"))
    with pytest.raises(ConnectionResetError):
        client.get("/v1/files/f/content", buffered=True)


def test_b21_closing_the_answer_closes_the_upstream(app: Flask, upstream: Upstream) -> None:
    upstream.answers(200, SSE, *([EVENT * 1000] * 200))
    answer = app.test_client().post("/v1/messages", data=b'{"stream": true}', buffered=False)
    next(iter(answer.response))
    answer.close()
    assembly: Assembly = app.extensions["penstock"]
    for _ in range(20):
        assembly.bridge().call(lambda loop: None)
    assert upstream.given[0].closed
    assert assembly.life.in_flight == 0


# -------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("error", "status", "slug", "retry_after"),
    [
        (httpx.ConnectError("refused"), 502, "connect_failed", None),
        (httpx.ReadError("reset"), 502, "protocol_broken", None),
        (httpx.ReadTimeout("late"), 504, "deadline_passed", None),
        (httpx.PoolTimeout("full"), 503, "queue_timeout", "1"),
    ],
)
def test_failures_say_whether_to_retry(
    client: FlaskClient, upstream: Upstream, error: Exception, status: int, slug: str, retry_after: str | None
) -> None:
    upstream.fails = error
    answer = client.post("/v1/messages")
    assert (answer.status_code, answer.headers["x-penstock-error"]) == (status, slug)
    assert (answer.headers["x-should-retry"], answer.headers.get("retry-after")) == ("true", retry_after)


def test_b50_a_draining_worker_refuses(app: Flask, upstream: Upstream) -> None:
    assembly: Assembly = app.extensions["penstock"]
    assembly.life.drain()
    answer = app.test_client().post("/v1/messages")
    is_error(answer, 503, "overloaded_error", Draining.slug)
    assert (answer.headers["retry-after"], assembly.life.in_flight, upstream.seen) == ("1", 0, [])


def test_a_fault_of_our_own_is_500_and_tells_nothing(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("app.web.proxy.check_target", fail)
    answer = app.test_client().get("/v1/x")
    assert "secret" not in json.dumps(is_error(answer, 500, "api_error", "internal"))


def test_b12_an_upgrade_is_an_ordinary_request(client: FlaskClient) -> None:
    """Upgrade is hop-by-hop: what asks for a WebSocket passes without it, and gets no page of Werkzeug's."""
    answer = client.get("/v1/x", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    assert answer.status_code == 200
