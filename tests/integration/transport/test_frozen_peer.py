"""A peer that stops answering while its connections stay open: found by PINGs, its lane connected anew (HTTP/2).

The limits here are in seconds because the clock is the kernel's; what is asserted is what became of whom.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from app.upstream.pool import Pool
from app.upstream.transport_base import Inbound
from tests.freezing import Forwarder, forwarding

Read = Callable[[Inbound], Awaitable[bytes]]
INTERVAL_S, TIMEOUT_S = 0.8, 0.6
BOUND_S = 1.25 * INTERVAL_S + TIMEOUT_S
"""A silence is noticed up to a quarter of the interval late."""
SLACK_S = 3.0
"""For a machine that is busy; without PINGs nothing would end at all."""


@pytest.fixture
def name() -> str:
    """The transport under test."""
    return "h2"


@pytest.fixture
def between(lab: Any) -> Iterator[Forwarder]:
    """In front of the simulator's TLS port."""
    with forwarding(int(lab.sim.tls_url.rpartition(":")[2])) as made:
        yield made


def origin_of(between: Forwarder) -> str:
    return f"https://localhost:{between.port}"


@contextlib.asynccontextmanager
async def watched(lab: Any, between: Forwarder, **options: Any) -> AsyncIterator[Pool]:
    limits = {"ping_interval_s": INTERVAL_S, "ping_timeout_s": TIMEOUT_S, "tells_connections": True}
    async with lab.pool(origin_of(between), **(limits | options)) as pool:
        yield pool


async def ended(work: Awaitable[object]) -> float:
    """Seconds until it failed as a broken connection does."""
    began = time.monotonic()
    with pytest.raises(httpx.ReadError):
        await work
    return time.monotonic() - began


def test_streams_on_a_frozen_connection_end_and_the_next_request_gets_a_new_one(
    lab: Any, run: Any, read: Read, between: Forwarder
) -> None:
    async def work() -> None:
        async with watched(lab, between) as pool:
            origin = origin_of(between)
            streams = [
                await pool.send(lab.message("stream-4000x10ms", stream=True, origin=origin), streaming=True)
                for _ in range(3)
            ]
            for stream in streams:
                assert await anext(stream)
            headless = asyncio.create_task(pool.send(lab.message("hang", origin=origin), streaming=False))
            await lab.until(lambda seen: seen["open_streams"] == 4)
            between.freeze()
            took = await asyncio.gather(*(ended(read(stream)) for stream in streams), ended(headless))
            assert max(took) < BOUND_S + SLACK_S
            answer = await pool.send(lab.message("json-0ms", origin=origin), streaming=False)
            assert answer.connection == "new"
            assert b"end_turn" in await read(answer)
            stats = pool.stats()
            assert (between.accepted, stats.lanes, stats.open_connections, stats.in_flight) == (2, 1, 1, 0)
            assert (stats.unresponsive, stats.misses, stats.handshakes) == (1, 2, 2)
            (told,) = lab.told("connection_unresponsive")
            assert (told["lane"], told["broken"], told["origin"]) == (1, 4, origin)
            assert "PING" in told["reason"]

    run(work)


def test_while_it_is_in_doubt_new_requests_take_a_new_connection_and_a_late_answer_cuts_nothing(
    lab: Any, run: Any, read: Read, between: Forwarder
) -> None:
    async def work() -> None:
        async with watched(lab, between, ping_timeout_s=30.0) as pool:
            origin = origin_of(between)
            stream = await pool.send(lab.message("stream-300x10ms", stream=True, origin=origin), streaming=True)
            between.freeze()
            reading = asyncio.ensure_future(read(stream))
            client = pool._lanes[0].client
            assert client is not None
            await lab.when(lambda: not client.usable)  # 2 s after the PING
            answer = await pool.send(lab.message("json-0ms", origin=origin), streaming=False)
            assert answer.connection == "new"
            assert b"end_turn" in await read(answer)
            assert not reading.done()
            between.thaw()
            assert b"message_stop" in await reading
            assert (pool.stats().unresponsive, lab.told("connection_unresponsive")) == (0, [])
            await lab.when(lambda: lab.told("connection_closed"))
            assert [event["streams"] for event in lab.told("connection_closed")] == [1]
            assert pool.stats().open_connections == 1

    run(work)


def test_a_connection_that_died_idle_costs_the_next_request_no_more_than_the_pings_time(
    lab: Any, run: Any, read: Read, between: Forwarder
) -> None:
    async def work() -> None:
        async with watched(lab, between) as pool:
            origin = origin_of(between)
            await read(await pool.send(lab.message("json-0ms", origin=origin), streaming=False))
            between.freeze()
            client = pool._lanes[0].client
            assert client is not None and client._connection is not None
            connection = client._connection
            await lab.when(lambda: connection.stale is not None)
            took = await ended(pool.send(lab.message("json-0ms", origin=origin), streaming=False))
            assert took < TIMEOUT_S + SLACK_S
            answer = await pool.send(lab.message("json-0ms", origin=origin), streaming=False)
            assert answer.connection == "new"
            await read(answer)
            assert pool.stats().unresponsive == 1

    run(work)


def test_who_is_slow_but_lives_is_never_cut(lab: Any, run: Any, read: Read, between: Forwarder) -> None:
    """Silent for several times the interval, and answering every PING."""

    async def work() -> None:
        async with watched(lab, between, ping_interval_s=0.2, ping_timeout_s=2.0) as pool:
            origin = origin_of(between)
            silent = [
                pool.send(lab.message(model, origin=origin), streaming=False)
                for model in ("slowhead-2500", "delay-2500ms")
            ]
            for answer in await asyncio.gather(*silent):
                assert answer.status == 200
                await read(answer)
            stall = await pool.send(lab.message("stall-2", stream=True, origin=origin), streaming=True)
            reading = asyncio.ensure_future(read(stall))
            done, _ = await asyncio.wait([reading], timeout=1.5)
            assert not done, "its silence is for others to judge"
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            stats = pool.stats()
            assert (stats.unresponsive, stats.handshakes, between.accepted) == (0, 1, 1)

    run(work)


def test_off_means_off(lab: Any, run: Any, between: Forwarder) -> None:
    async def work() -> None:
        async with watched(lab, between, ping_interval_s=0.0, ping_timeout_s=0.1) as pool:
            sending = asyncio.create_task(
                pool.send(lab.message("hang", origin=origin_of(between)), streaming=False)
            )
            await lab.until(lambda seen: seen["open_streams"] == 1)
            between.freeze()
            done, _ = await asyncio.wait([sending], timeout=1.5)
            assert not done
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(work)
