"""Contract: upstreams that speak HTTP/1.1 only, or allow few streams a connection; nothing is lost or sent twice.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from app.exchange import Outbound
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]
PIECE = bytes(range(256)) * 256
OCTETS = (("accept", "*/*"), ("content-type", "application/octet-stream"))


class Once:
    """An upload that counts how often it was begun, and how many pieces were asked for."""

    def __init__(self) -> None:
        self.begun = 0
        self.asked = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun += 1
        return self

    async def __anext__(self) -> bytes:
        if self.asked == 20:
            raise StopAsyncIteration
        self.asked += 1
        return PIECE


def test_an_upstream_that_speaks_http_1_only(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(alpn=("http/1.1",))

    async def work() -> None:
        async with lab.pool(max_connections=20, pool_timeout_s=0.4) as pool:
            assert (await pool.warm_up())[0]
            request = lab.message("json-50ms")
            answers = await asyncio.gather(*(pool.send(request, streaming=False) for _ in range(60)))
            for answer in answers:
                assert answer.http_version == "HTTP/1.1"
            await asyncio.gather(*(read(answer) for answer in answers))

    async def few() -> None:
        async with lab.pool(max_connections=20) as pool:
            assert (await pool.warm_up())[0]

            async def one() -> None:
                await read(await pool.send(lab.message("json-20ms"), streaming=False))

            await asyncio.gather(*(one() for _ in range(60)))
            seen, stats = lab.sim.stats(), pool.stats()
            assert stats.http_version == "HTTP/1.1"
            assert 2 <= seen["tls_handshakes"] <= 22
            assert stats.lanes <= 2
            assert (stats.misses, stats.handshakes) == (seen["tls_handshakes"], seen["tls_handshakes"])

    with pytest.raises(httpx.PoolTimeout):  # 60 heads at once are held by 20 connections: the rest waits in vain
        run(work)
    lab.sim.reset()
    run(few)


def test_the_first_request_of_all_may_be_an_upload(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(alpn=("http/1.1",))

    async def work() -> None:
        async with lab.pool() as pool:
            source = Once()
            request = Outbound("POST", lab.sim.tls_url, "/v1/files", OCTETS, aiter(source))
            answer = await pool.send(request, streaming=False)
            assert answer.http_version == "HTTP/1.1"
            seen = json.loads(await read(answer))
            assert seen["received_sha256"] == hashlib.sha256(PIECE * 20).hexdigest()
            assert source.asked == 20
            assert sum(lab.sim.stats()["requests"].values()) == 1

    run(work)


@pytest.mark.parametrize("warm", [True, False])
def test_json_stream_upload_and_download_over_http_1(lab_with: Any, run: Any, read: Read, warm: bool) -> None:
    lab = lab_with(alpn=("http/1.1",))

    async def work() -> None:
        async with lab.pool() as pool:
            if warm:
                assert (await pool.warm_up())[0]
            before = pool.stats().requests
            for _ in range(2):
                answer = await pool.send(lab.message("json-0ms"), streaming=False)
                assert b"end_turn" in await read(answer)
                answer = await pool.send(lab.message("stream-3x5ms", stream=True), streaming=True)
                assert b"message_stop" in await read(answer)
                request = Outbound("POST", lab.sim.tls_url, "/v1/files", OCTETS, aiter(Once()))
                answer = await pool.send(request, streaming=False)
                assert json.loads(await read(answer))["received_bytes"] == 20 * len(PIECE)
                request = lab.get("/v1/files/file_sim_300000/content", OCTETS)
                answer = await pool.send(request, streaming=True, download=True)
                assert answer.http_version == "HTTP/1.1"
                assert len(await read(answer)) == 300_000
            seen, stats = lab.sim.stats(), pool.stats()
            assert (stats.requests - before, stats.in_flight) == (8, 0)
            assert (stats.misses, stats.handshakes) == (seen["tls_handshakes"], seen["tls_handshakes"])
            assert seen["tls_handshakes"] <= 3
            vain = lab.name == "h2"  # the handshake at which the peer turned out to speak HTTP/1.1 only
            assert stats.hits == stats.requests - (seen["tls_handshakes"] - vain)
            assert stats.http_version == "HTTP/1.1"

    run(work)


def test_those_in_line_hear_of_it_too(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(alpn=("http/1.1",), tls_delay_ms=150)

    async def work() -> None:
        async with lab.pool(max_connections=2, streams_per_connection=3) as pool:
            sends = [asyncio.create_task(pool.send(lab.message("json-0ms"), streaming=False)) for _ in range(12)]
            for sent in asyncio.as_completed(sends):
                assert b"end_turn" in await read(await sent)
            stats = pool.stats()
            assert (stats.requests, stats.in_flight, stats.waiting, stats.timeouts) == (12, 0, 0, 0)
            if lab.name == "h2":  # the others have connects on their way that nobody waits for any more
                seen = await lab.until(lambda seen: seen["tls_handshakes"] == pool.stats().handshakes)
                assert seen["tls_handshakes"] == pool.stats().handshakes

    run(work)


def test_50_at_once_on_a_peer_that_allows_10(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(max_concurrent_streams=10)

    async def work() -> None:
        async with lab.pool() as pool:
            for _ in range(2):
                request = lab.message("stream-10x30ms", stream=True)
                answers = await asyncio.gather(*(pool.send(request, streaming=True) for _ in range(50)))
                bodies = await asyncio.gather(*(read(answer) for answer in answers))
                assert all(b"message_stop" in body for body in bodies)
            seen, stats = lab.sim.stats(), pool.stats()
            assert (seen["max_open_streams"], seen["refused_sent"], stats.timeouts) == (50, 0, 0)
            assert (stats.requests, stats.in_flight) == (100, 0)
            if lab.name != "reqwest":  # hyper opens dozens and drops most of them between two looks
                assert stats.handshakes == seen["tls_handshakes"]
            if lab.name == "h2":
                assert (seen["tls_handshakes"], stats.hits, stats.lanes) == (5, 95, 5)

    run(work)


def test_more_than_all_connections_carry_wait_their_turn(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(max_concurrent_streams=10)

    async def work() -> None:
        async with lab.pool(max_connections=2) as pool:

            async def one() -> bytes:
                return await read(await pool.send(lab.message("json-20ms"), streaming=False))

            for body in await asyncio.gather(*(one() for _ in range(80))):
                assert b"end_turn" in body
            stats = pool.stats()
            assert (stats.requests, stats.in_flight, stats.waiting) == (80, 0, 0)
            if lab.name == "h2":
                seen = lab.sim.stats()
                assert (seen["tls_handshakes"], seen["max_open_streams"], seen["refused_sent"]) == (2, 20, 0)

    run(work)
