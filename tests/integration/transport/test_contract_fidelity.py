"""Contract: requests arrive as planned, answers come up as they were sent.

Runs on: loop.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.exchange import Outbound
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]

TARGETS = [
    "/v1/echo",
    "/v1/echo?a=1&b=%20&c=%2F%2f+x",
    "/v1/%66iles/%E2%82%AC/echo?q=%zz",
    "/v1/a%2Fb/echo",
    "/v1/echo?q='quoted'",
    '/v1/echo?q="<>{}|\\^`',
    "/v1/{id}/echo",
    "/v1/x/../echo",
    "/v1/x/%2e%2E/echo",
    "/v1/./echo",
    "/v1//echo",
    "//v1/echo",
    "/v1/a;b=c/echo?x[]=1&y=~!$*(),;:@",
    "/v1/a|b^c/echo",
    "/v1/echo?",
    "/v1/.hidden/echo?..",
]


@pytest.mark.parametrize("streaming", [True, False])
def test_every_target_arrives_byte_for_byte(lab: Any, run: Any, read: Read, streaming: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            for target in TARGETS:
                answer = await pool.send(lab.get(target), streaming=streaming)
                seen = json.loads(await read(answer))
                assert seen["target"] == target

    run(work)


def user_headers(seen: dict[str, Any]) -> list[list[str]]:
    """Without host, which is the transport's, and pseudo-headers."""
    return [pair for pair in seen["headers"] if pair[0] != "host" and not pair[0].startswith(":")]


def by_name(pairs: list[list[str]]) -> list[list[str]]:
    """Sorted by name, the order of each name's values kept."""
    return sorted(pairs, key=lambda pair: pair[0])


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("secure", [True, False])
def test_nothing_is_injected_or_lost(
    lab: Any, run: Any, read: Read, warm: bool, streaming: bool, secure: bool
) -> None:
    sent = (
        ("anthropic-beta", "a-2025,b-2026"),
        ("x-api-key", "sk-1"),
        ("anthropic-beta", "c-2027"),
        ("user-agent", "Anthropic/Python 1"),
        ("x-empty", ""),
        ("x-latin", "caf\xe9"),
        ("x-custom", "a  b"),
    )
    origin = lab.sim.tls_url if secure else lab.sim.plain_url

    async def work() -> None:
        async with lab.pool(origin) as pool:
            if warm:
                await pool.warm_up()
            for count in (7, 5):  # with and without what the Rust client cannot send
                headers = sent[:count]
                request = Outbound("GET", origin, "/v1/echo", headers, b"")
                seen = json.loads(await read(await pool.send(request, streaming=streaming)))
                # hyper puts repeats of one name together; only their own order has a meaning (RFC 9110 5.3)
                assert by_name(user_headers(seen)) == by_name([list(pair) for pair in headers])
                assert seen["authority"] == origin.partition("://")[2]

    run(work)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("body", [b"", b'{"b":1,"a":2}'])
def test_methods_and_bodies(lab: Any, run: Any, read: Read, method: str, body: bytes) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            request = lab.get("/v1/echo", (("accept", "x/y"), ("x-a", "1")), method, body)
            for streaming in (True, False):
                seen = json.loads(await read(await pool.send(request, streaming=streaming)))
                assert (seen["method"], seen["body_bytes"]) == (method, len(body))
                assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
                framing = (
                    [["content-length", str(len(body))]] if body or method in ("POST", "PUT", "PATCH") else []
                )
                assert sorted(user_headers(seen)) == sorted([["accept", "x/y"], ["x-a", "1"], *framing])

    run(work)


def test_hop_by_hop_headers_stay_here(lab: Any, run: Any, read: Read) -> None:
    headers = (
        ("accept", "*/*"),
        ("connection", "close, X-Private"),
        ("x-private", "secret"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic x"),
        ("host", "elsewhere.example"),
        ("content-length", "99"),
        ("x-kept", "1"),
    )

    async def work() -> None:
        async with lab.pool() as pool:
            for streaming in (False, True):
                request = lab.get("/v1/echo", headers, "POST", b"abc")
                seen = json.loads(await read(await pool.send(request, streaming=streaming)))
                assert sorted(user_headers(seen)) == [
                    ["accept", "*/*"],
                    ["content-length", "3"],
                    ["x-kept", "1"],
                ]
                assert "elsewhere" not in seen["authority"]

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_bodies_come_raw_with_their_encoding(lab: Any, run: Any, read: Read, streaming: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            headers = (*lab.message("golden").headers, ("accept-encoding", "gzip, br, zstd"))
            answer = await pool.send(lab.message("golden", headers=headers), streaming=streaming)
            assert ("content-encoding", "gzip") in answer.headers
            body = await read(answer)
            assert ("content-length", str(len(body))) in answer.headers
            assert b"signature" in gzip.decompress(body)

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_repeated_answer_headers_are_kept_and_no_cookie_is(
    lab: Any, run: Any, read: Read, streaming: bool
) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            answer = await pool.send(lab.message("repeat"), streaming=streaming)
            repeated = [pair for pair in answer.headers if pair[0].lower() in ("x-repeat", "set-cookie")]
            assert [value for _, value in repeated] == [
                "sim_a=1; Path=/",
                "sim_b=2; Path=/",
                "one",
                "two",
            ]
            await read(answer)
            seen = json.loads(await read(await pool.send(lab.get("/v1/echo"), streaming=streaming)))
            assert not [pair for pair in seen["headers"] if pair[0] == "cookie"]

    run(work)


@pytest.mark.parametrize("status", [302, 400, 404, 429, 529])
def test_any_status_is_an_answer(lab: Any, run: Any, read: Read, status: int) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            answer = await pool.send(lab.message(f"status-{status}"), streaming=True)
            assert answer.status == status
            assert await read(answer)

    run(work)


def test_proxies_in_the_environment_divert_nothing(
    lab: Any, run: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")

    async def work() -> None:
        for origin in (lab.sim.tls_url, lab.sim.plain_url, lab.sim.tls_url.replace("localhost", "127.0.0.1")):
            async with lab.pool(origin) as pool:
                for streaming in (False, True):
                    answer = await pool.send(
                        Outbound("GET", origin, "/v1/echo", (("accept", "*/*"),), b""), streaming=streaming
                    )
                    assert answer.status == 200
                    await read(answer)

    run(work)


def test_pieces_come_as_they_are_sent(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            answer = await pool.send(lab.message("stream-20x20ms", stream=True), streaming=True)
            pieces = [piece async for piece in answer]
            assert len(pieces) >= 15, "events were held back and joined"
            await answer.aclose()

    run(work)
