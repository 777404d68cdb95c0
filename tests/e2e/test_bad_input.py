"""Input nobody should send: refused in the provider's shape, the worker stays, no other host hears of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import KEY, USUAL, Answer, Raw, Truncated, ask, message, opened, post, request

POST = b"POST /v1/messages HTTP/1.1\r\nHost: gateway.test\r\naccept: */*\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def target(farm: Farm, kind: str, simulator: Running) -> Iterator[Server]:
    """A gateway that waits one second for a body; the same worker serves before and after each test."""
    server = farm.shared(kind, BODY_TIMEOUT=1)
    before = server.workers()
    yield server
    assert server.workers() == before, "the worker was replaced"
    assert post(server.port, "json-0ms").status == 200
    until(lambda: simulator.stats()["open_streams"] == 0, 5, "no open stream")
    assert not server.lines("unexpected_error")


def unheard(simulator: Running) -> None:
    """Nothing has reached the upstream."""
    assert simulator.stats()["by_path"] == {}


def exchange(port: int, data: bytes) -> Answer | None:
    """Send bytes as they are; the answer, or None where the connection was closed without one."""
    with Raw(port) as raw:
        raw.send(data)
        try:
            return raw.answer("GET")
        except (ConnectionError, Truncated):
            return None


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b'5;x="\r\nhello\r\nffffffffffffffffffff\r\n',
        b"\r\n",
    ],
    ids=["no-number", "no-end", "negative", "huge", "empty"],
)
def test_malformed_chunks(target: Server, simulator: Running, body: bytes) -> None:
    answer = exchange(target.port, CHUNKED + body)
    assert answer is not None
    assert answer.status in (400, 408)
    assert answer.error == "invalid_request_error"
    unheard(simulator)


def test_a_chunked_body_that_ends_early(target: Server, simulator: Running) -> None:
    with Raw(target.port) as raw:
        raw.send(CHUNKED + b"20\r\nhello")
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.answer().error == "invalid_request_error"
    unheard(simulator)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5x\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
def test_contradictory_framing(target: Server, simulator: Running, lines: bytes) -> None:
    """What could smuggle a request past a front end."""
    answer = exchange(target.port, POST + lines + b"\r\nhello")
    assert answer is not None
    assert answer.status in (400, 501)
    assert answer.error == "invalid_request_error"
    assert answer.get("connection").lower() == "close"
    unheard(simulator)


def test_a_length_that_is_too_long(target: Server, simulator: Running) -> None:
    with Raw(target.port) as raw:
        raw.send(POST + b"Content-Length: 100\r\n\r\n{}")
        raw.sock.shutdown(socket.SHUT_WR)
        answer = raw.answer()
    assert (answer.status, answer.error) == (400, "invalid_request_error")
    unheard(simulator)


def test_a_length_that_is_too_short(target: Server, simulator: Running) -> None:
    """What is left over is no request; the connection ends with its error."""
    with Raw(target.port) as raw:
        raw.send(POST + b"Content-Length: 2\r\n\r\n{}garbage\r\n\r\n")
        assert raw.answer().status == 400  # the simulator: no model
        assert raw.answer().error == "invalid_request_error"
        assert raw.more() == b""
    assert simulator.stats()["by_path"] == {"/v1/messages": 1}


@pytest.mark.parametrize("start", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"])
def test_a_body_that_stalls(target: Server, simulator: Running, start: bytes) -> None:
    """BODY_TIMEOUT: 408, and the connection is closed."""
    with Raw(target.port) as raw:
        raw.send(POST + start)
        answer = raw.answer()
        assert (answer.status, answer.error) == (408, "invalid_request_error")
        assert answer.get("x-should-retry") == "true"
        assert raw.more() == b""
    unheard(simulator)


def test_a_body_that_trickles_is_taken(target: Server) -> None:
    """Only silence is limited."""
    body = message("json-0ms")
    with Raw(target.port) as raw:
        raw.send(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 40):
            raw.send(body[at : at + 40])
            time.sleep(0.4)
        assert raw.answer().status == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
def test_a_body_that_trickles_for_ever_is_ended(farm: Farm, kind: str, simulator: Running, path: str) -> None:
    """Never silent, never done: REQUEST_TIMEOUT ends it."""
    with farm.own(kind, REQUEST_TIMEOUT=1) as server, Raw(server.port) as raw:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: g\r\ncontent-type: application/json\r\nContent-Length: 60000\r\n\r\n"
        )
        raw.send(head.encode())
        answer: list[Answer] = []
        reader = threading.Thread(target=lambda: answer.append(raw.answer()))
        reader.start()
        for _ in range(100):
            if answer:
                break
            with contextlib.suppress(OSError):
                raw.send(b" ")
            time.sleep(0.1)
        reader.join(10)
        assert answer[0].status == 408
        assert ask(server.port, "/health").status == 200


def test_an_upload_that_stalls(target: Server, simulator: Running) -> None:
    """The upstream had heard of it already, and is told that it ended."""
    with Raw(target.port) as raw:
        raw.send(
            b"POST /v1/files HTTP/1.1\r\nHost: g\r\naccept: */*\r\nContent-Length: 3000000\r\n\r\n"
            + b"x" * 500_000
        )
        assert raw.answer().status == 408
    until(lambda: simulator.stats()["open_streams"] == 0)
    assert simulator.stats()["client_aborts"] == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_33_mib_are_refused_readably(target: Server, simulator: Running, chunked: bool) -> None:
    """413 in the provider's shape, read by a plain client that sends everything before it reads."""
    body = b'{"pad":"' + b"p" * (33 << 20) + b'"}'
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=20)
    try:
        pieces = iter([body[at : at + 65536] for at in range(0, len(body), 65536)])
        connection.request(
            "POST",
            "/v1/messages",
            pieces if chunked else body,
            encode_chunked=chunked,
            headers=({"transfer-encoding": "chunked"} if chunked else {}),
        )
        response = connection.getresponse()
        data = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 413
    assert data["error"]["type"] == "request_too_large"
    assert response.headers["x-should-retry"] == "false"
    unheard(simulator)


def test_33_mib_from_the_sdk(target: Server, simulator: Running) -> None:
    asked = [{"role": "user", "content": "p" * (33 << 20)}]
    with (
        anthropic.Anthropic(base_url=target.url, api_key=KEY, max_retries=2) as sdk,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        sdk.messages.create(model="claude-demo", max_tokens=1, messages=asked)  # type: ignore[arg-type]
    assert caught.value.status_code == 413
    assert "request_too_large" in str(caught.value.body)
    unheard(simulator)


@pytest.mark.parametrize(
    "line",
    [
        b"X-A: one\rX-Injected: two\r\n",
        b"X-A: one\x00two\r\n",
        b"X-A: one\nX-Injected: two\r\n",
        b"X-A\r\n",
        b"X A: one\r\n",
        b"X-A : one\r\n",
        b" folded: one\r\n",
        b"X-A: one\r\n folded\r\n",
        b": nameless\r\n",
        b"X-A: one\x7f\r\n",
    ],
)
def test_header_injection(target: Server, simulator: Running, line: bytes) -> None:
    """Refused, or at the least never turned into a header of its own."""
    body = message("json-0ms")
    answer = exchange(target.port, POST + line + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer is not None
    if answer.status != 200:
        assert answer.status == 400
        assert answer.error == "invalid_request_error"
        unheard(simulator)
    else:
        last = simulator.last()
        assert last is not None
        assert [n.lower() for n, _ in last["headers"] if n.lower() in ("x-injected", "x a", "folded", "")] == (
            ["x-injected"] if line.startswith(b"X-A: one\nX-I") else []  # RFC 9112 2.2: LF alone may end a line
        )


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/messages/../../etc/passwd",
        "/v1/%2e%2e/admin",
        "/v1/%2E./admin",
        "/v1/./messages",
        "/v1/messages/..",
        "/anthropic/../v1/messages",
        "/anthropic/v1/%2e%2e/%2e%2e/x",
        "/v1/..%2fadmin",
        "/v1/..\\admin",
        "/v1/a#b",
        "/v1/a\x7f",
        "/v1/\xe9",
    ],
)
def test_paths_that_lead_elsewhere(target: Server, simulator: Running, path: str) -> None:
    answer = exchange(target.port, request(path, message("json-0ms"), USUAL))
    assert answer is not None
    assert answer.status in (400, 404)
    assert answer.error in ("invalid_request_error", "not_found_error")
    unheard(simulator)


@pytest.mark.parametrize("other", ["http://other.test", "https://user@other.test:1", "HTTP://169.254.169.254"])
def test_absolute_form(target: Server, simulator: Running, other: str) -> None:
    """RFC 9112 3.2.2: accepted, and whatever host it names, it goes to the one that is set."""
    answer = exchange(target.port, request(f"{other}/v1/messages?x=1", message("json-0ms"), USUAL))
    assert answer is not None
    if answer.status == 200:
        last = simulator.last()
        assert last is not None
        assert last["target"] == "/v1/messages?x=1"
        assert last["authority"] in simulator.tls_url
    else:
        assert answer.status in (400, 404)
        unheard(simulator)


@pytest.mark.parametrize(
    "line", [b"CONNECT other.test:443 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET other.test:80 HTTP/1.1"]
)
def test_other_forms_of_target(target: Server, simulator: Running, line: bytes) -> None:
    answer = exchange(target.port, line + b"\r\nHost: other.test\r\n\r\n")
    assert answer is None or answer.status in (400, 404, 405)
    unheard(simulator)


@pytest.mark.parametrize(
    "path", ["/", "/v2/messages", "/v1", "/anthropic", "/anthropic/", "/anthropic/x", "/admin"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_unknown_prefixes(target: Server, simulator: Running, path: str, method: str) -> None:
    answer = ask(target.port, path, b"{}" if method == "POST" else None, USUAL, method)
    if path == "/anthropic/x":  # everything below the mount is the provider's to know
        assert answer.get("request-id").startswith("req_011SIM")
        return
    assert (answer.status, answer.error) == (404, "not_found_error")
    assert answer.get("x-penstock-error") == "unknown_route"
    unheard(simulator)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_methods_of_the_operators_pages(target: Server, simulator: Running, path: str) -> None:
    answer = ask(target.port, path, b"", USUAL, "DELETE")
    assert (answer.status, answer.error) == (405, "invalid_request_error")
    assert ask(target.port, path, None, USUAL, "HEAD").status == 200


def test_10000_headers(target: Server, simulator: Running) -> None:
    many = tuple((f"x-{number}", "y" * 20) for number in range(10_000))
    answer = exchange(target.port, request("/v1/messages", message("json-0ms"), many))
    if answer is not None:
        assert answer.status in (400, 431)
        assert answer.error == "invalid_request_error"
    unheard(simulator)


@pytest.mark.parametrize("size", [9_000, 70_000])
def test_long_lines(target: Server, simulator: Running, size: int) -> None:
    for data in (
        request("/v1/" + "a" * size, None, USUAL),
        request("/v1/models", None, (("x-long", "a" * size * 10),)),
        b"A" * size,
    ):
        answer = exchange(target.port, data + b"\r\n\r\n")
        assert answer is None or (answer.status in (400, 414, 431) and answer.error == "invalid_request_error")
    unheard(simulator)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"G\x00T /v1/models HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET  /v1/models HTTP/1.1\r\n\r\n",
    ],
)
def test_no_http_at_all(target: Server, simulator: Running, data: bytes) -> None:
    with Raw(target.port, timeout_s=5) as raw:
        raw.send(data)
        raw.sock.shutdown(socket.SHUT_WR)
        got = raw.more()
    assert got == b"" or got.startswith(b"HTTP/1.1 4") or got.startswith(b"HTTP/1.1 5")
    unheard(simulator)


def test_http_10(target: Server) -> None:
    """Its body ends with the connection; a stream too."""
    with Raw(target.port) as raw:
        body = message("golden", stream=True)
        raw.send(b"POST /v1/messages HTTP/1.0\r\naccept: */*\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = raw.answer()
    assert answer.status == 200
    assert not answer.get("transfer-encoding")
    assert answer.body.endswith(b'data: {"type":"message_stop"}\n\n')


def test_expect_continue(target: Server) -> None:
    body = message("json-0ms")
    with Raw(target.port, timeout_s=5) as raw:
        raw.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert raw.more().startswith(b"HTTP/1.1 100")
        raw.send(body)
        assert raw.answer().status == 200


def test_a_crowd_of_half_requests_keeps_nobody_out(target: Server) -> None:
    raws = [Raw(target.port) for _ in range(20)]
    try:
        for raw in raws:
            raw.send(POST + b"Content-Length: 50\r\n\r\n{")
        stream, head = opened(target.port, "stream-5x10ms")
        with stream:
            assert stream.body(head).count(b"text_delta") == 5
    finally:
        for raw in raws:
            raw.close()
