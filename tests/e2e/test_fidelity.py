"""Byte for byte over real sockets: what the upstream hears is what was sent, what comes back is what it said."""

from __future__ import annotations

import base64
import gzip
import hashlib
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.simulator import golden
from app.simulator.running import Running
from app.simulator.streams import octets
from tests.e2e.servers import Farm, Server
from tests.e2e.wire import KEY, USUAL, VERSION, Answer, Raw, ask, message, post, request

AWKWARD = (
    b'{ "model":"claude-sim-json-0ms" ,\n"max_tokens":1.0e1, "z":1,"a":{"b":[1 ,2]},"z":2,'
    b'"messages":[{"content":"caf\\u00e9 \xe6\xb0\xb4 \\ud83d lone \\udc00","role":"user"}],"stream":false}\r\n '
)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND", "QUERY"]
ADDED = {"x-request-id", "x-accel-buffering", "x-penstock-provider", "server-timing"}
FRAMING = {"transfer-encoding", "connection", "content-length"}
PER_ANSWER = {"date", "request-id"}


@pytest.fixture(params=["tls", "plain"])
def target(request: pytest.FixtureRequest, farm: Farm, kind: str, simulator: Running) -> Server:
    """Against an HTTP/2 and against an HTTP/1.1 upstream."""
    if request.param == "tls":
        return farm.shared(kind)
    return farm.shared(kind, ANTHROPIC_UPSTREAM_URL=simulator.plain_url)


def heard(simulator: Running) -> dict[str, Any]:
    last = simulator.last()
    assert last is not None
    return last


def pairs_heard(simulator: Running) -> list[tuple[str, str]]:
    """Headers the upstream got, framing and Host left out."""
    return [(n.lower(), v) for n, v in heard(simulator)["headers"] if n.lower() not in FRAMING | {"host"}]


@pytest.mark.parametrize(
    "body",
    [
        AWKWARD,
        b"\xff\xfe\x00 not UTF-8 \xc3(",
        b'"\xed\xa0\x80 a lone surrogate in UTF-8"',
        b"not json at all",
        b"",
        b'{"model":"claude-sim-json-0ms","pad":"' + b"x" * 60_000 + b'"}',
    ],
    ids=["awkward", "bad-utf8", "surrogate", "no-json", "empty", "60k"],
)
def test_request_bytes(target: Server, simulator: Running, body: bytes) -> None:
    """B10: never parsed and dumped again, whatever they are; with the usual headers and with as good as none."""
    for headers in (USUAL, (VERSION,)):
        simulator.reset()
        ask(target.port, "/v1/messages", body, headers)
        assert base64.b64decode(heard(simulator)["body_b64"]) == body


def test_a_body_of_32_mb(server: Server, simulator: Running) -> None:
    """B16: up to the limit to the byte."""
    start = b'{"model":"claude-sim-json-0ms","pad":"'
    body = start + b"p" * (33_554_432 - len(start) - 2) + b'"}'
    assert ask(server.port, "/v1/messages", body, USUAL).status == 200
    assert heard(simulator)["body_bytes"] == 33_554_432
    assert heard(simulator)["body_sha256"] == hashlib.sha256(body).hexdigest()


def test_a_chunked_body(target: Server, simulator: Running) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in AWKWARD) + b"0\r\n\r\n"
    with Raw(target.port) as raw:
        raw.send(head + chunks)
        assert raw.answer().status == 200
    assert base64.b64decode(heard(simulator)["body_b64"]) == AWKWARD


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages?beta=true",
        "/v1/a%2Fb/%7Euser/%C3%A9?q=%20+&&x=&x=1&%zz",
        "/v1/double//slash/",
        "/v1/semi;colon=1,2/('quotes')*!@:$",
        "/v1/future/path/nobody/knows?cursor=YWJj==",
        "/v1/trailing/",
        "/v1/a%00b%0d",
        "/v1/a%0ab",
        "/v1//a",
    ],
)
@pytest.mark.parametrize("mount", ["", "/anthropic"])
def test_targets(server: Server, simulator: Running, mount: str, path: str) -> None:
    """B1, B11: path and query as they were sent."""
    ask(server.port, mount + path, None, USUAL)
    assert heard(simulator)["target"] == path
    ask(server.port, mount + path)
    assert heard(simulator)["target"] == path


@pytest.mark.parametrize("method", METHODS)
def test_methods(target: Server, simulator: Running, method: str) -> None:
    """B1: all of them, and no automatic answer to HEAD or OPTIONS."""
    answer = ask(
        target.port, "/v1/new/echo", b"x" if method in ("POST", "PUT", "PATCH", "QUERY") else None, (), method
    )
    assert answer.status == 200
    assert heard(simulator)["method"] == method
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.json()["method"] == method
    assert answer.get("request-id").startswith("req_011SIM")


def test_request_headers(target: Server, simulator: Running) -> None:
    """B12: order, repeats, empty and latin-1 values; hop-by-hop, cookies and forwarding ends here."""
    through = (
        ("X-API-Key", KEY),
        ("anthropic-BETA", "b-2, a-1"),
        ("anthropic-beta", "c-3"),
        ("User-Agent", "raw/1 (odd; é)"),
        ("X-Stainless-Retry-Count", "0"),
        ("x-repeat", "2"),
        ("X-Repeat", "1"),
        ("x-repeat", "2"),
        ("X-Empty", ""),
        ("Accept", "*/*;q=0.1"),
        ("Accept-Encoding", "gzip;q=0.5, br"),
        ("Authorization", "Bearer " + KEY),
        ("Anthropic-Version", "2099-01-01"),
        ("X-Request-Id", "0123456789-0123456789-abc"),
        ("Idempotency-Key", "a b"),
    )
    ended = (
        ("Cookie", "session=secret"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=10.0.0.1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic c2VjcmV0"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("X-Hop", "named in Connection"),
        ("Connection", "keep-alive, X-Hop"),
    )
    mixed = (*through[:6], *ended[:5], *through[6:], *ended[5:])
    ask(target.port, "/v1/messages", message("json-0ms"), mixed)
    assert pairs_heard(simulator) == [(name.lower(), value) for name, value in through]
    assert heard(simulator)["authority"] != "gateway.test"


def test_request_headers_with_an_underscore(server: Server, simulator: Running) -> None:
    """gunicorn drops them before anybody sees them, as nginx does: ``X_A`` and ``X-A`` are one name in WSGI."""
    ask(server.port, "/v1/messages", message("json-0ms"), (("x_under_score", "dropped"), VERSION))
    assert pairs_heard(simulator) == [VERSION]


def test_nothing_is_injected_but_the_version(target: Server, simulator: Running) -> None:
    """B12: no accept, user-agent, accept-encoding or content-type of ours."""
    ask(target.port, "/v1/messages", message("json-0ms"))
    assert pairs_heard(simulator) == [VERSION]
    ask(target.port, "/v1/models")
    assert pairs_heard(simulator) == [VERSION]
    assert heard(simulator)["body_bytes"] == 0


def direct(simulator: Running, scenario: str, *, stream: bool, headers: tuple[tuple[str, str], ...]) -> Answer:
    """The same question without the gateway."""
    port = urlsplit(simulator.plain_url).port
    assert port is not None
    return ask(port, "/v1/messages", message(scenario, stream=stream), headers)


def comparable(answer: Answer) -> list[tuple[str, str]]:
    """Header pairs without what differs from answer to answer or belongs to the connection."""
    skip = FRAMING | PER_ANSWER | ADDED
    return [(name.lower(), value) for name, value in answer.headers if name.lower() not in skip]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(
    "scenario", ["golden", "repeat", "status-529-ra3", "status-429", "status-502-html", "status-418"]
)
def test_answers(target: Server, simulator: Running, scenario: str, stream: bool) -> None:
    """B13, B15: status, all headers in order with their repeats, body bytes; its own Date and Server."""
    there = direct(simulator, scenario, stream=stream, headers=USUAL)
    here = post(target.port, scenario, stream=stream)
    assert here.status == there.status
    assert comparable(here) == comparable(there)
    added = {name.lower() for name, _ in here.headers} - {name.lower() for name, _ in there.headers} - FRAMING
    assert added <= ADDED
    assert len(here.all("server")) == 1
    assert len(here.all("date")) == (0 if "html" in scenario and not there.all("date") else 1)
    if scenario == "golden" or "html" in scenario:
        assert here.body == there.body
    elif not stream:
        assert len(here.body) == len(there.body)  # differs in its ids only
        assert here.get("content-length") == str(len(here.body))


def test_gzip_stays_as_it_came(target: Server) -> None:
    answer = post(target.port, "golden", headers=(("accept-encoding", "gzip"),))
    assert answer.get("content-encoding") == "gzip"
    assert answer.get("vary") == "accept-encoding"
    assert answer.body == golden.GOLDEN_GZIP
    assert gzip.decompress(answer.body) == golden.GOLDEN_JSON


@pytest.mark.parametrize("size", [0, 1, 65_536, 20_000_000])
def test_downloads(target: Server, size: int) -> None:
    answer = ask(target.port, f"/v1/files/file_sim_{size}/content", None, USUAL)
    assert answer.status == 200
    assert answer.get("content-length") == str(size)
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(b"".join(octets(size))).digest()


def test_uploads(target: Server, simulator: Running) -> None:
    """B16: streamed, length kept, bytes unchanged."""
    body = b"".join(octets(5_000_000))
    answer = ask(target.port, "/v1/files", body, USUAL)
    assert answer.status == 200, answer.body
    assert answer.json()["received_sha256"] == hashlib.sha256(body).hexdigest()
    assert ["content-length", "5000000"] in [[n.lower(), v] for n, v in heard(simulator)["headers"]]


def test_request_ids(server: Server) -> None:
    """A valid X-Request-ID is kept, any other replaced; the upstream's request-id stays its own (B40)."""
    given = "router-0123456789-abcdef"
    assert post(server.port, "json-0ms", headers=(("X-Request-ID", given),)).get("x-request-id") == given
    made = post(server.port, "json-0ms", headers=(("X-Request-ID", "short"),)).get("x-request-id")
    assert made.startswith("req-")
    assert post(server.port, "json-0ms").get("x-request-id") != made


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with Raw(server.port) as raw:
        raw.send(request("/v1/messages", message("json-30ms")) + request("/v1/a/echo") + request("/v1/b/echo"))
        assert raw.answer().json()["model"] == "claude-sim-json-30ms"
        assert raw.answer().json()["target"] == "/v1/a/echo"
        assert raw.answer().json()["target"] == "/v1/b/echo"
