"""Contract: a slow reader slows its own stream, not its neighbours, and holds a bounded amount (B24).

On our own client the neighbours are on the same connection, those that were already running included, and what the
upstream has sent of a stalled stream is one window more than was read.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.upstream.h2_stream import WINDOW
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Coroutine[Any, Any, bytes]]
COUNT = 10
BIG_BYTES = 64 * 1024 * 1024
MIB = 1024 * 1024
HTTP_2_OVERHEAD = 1024
"""Heads and frame headers, which the simulator counts too."""


def bounded(lab: Any, sent: list[int], taken: int) -> None:
    """Nothing but what fits a window was sent of a stream of which at most ``taken`` bytes were read."""
    limit = taken + WINDOW + HTTP_2_OVERHEAD if lab.name == "h2" else 16 * MIB
    assert sent[-1] <= limit, "the gateway swallowed what nobody reads"


async def settled(lab: Any) -> list[int]:
    """Bytes the upstream has sent on each open stream, once that no longer grows."""
    last: list[int] = []
    while True:
        await asyncio.sleep(0.2)
        now = sorted(stream["bytes_sent"] for stream in lab.sim.stats()["streams"])
        if now == last:
            return now
        last = now


def test_stalled_downloads_leave_a_lively_neighbour_alone(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            lively = await pool.send(lab.message("stream-100x10ms", stream=True), streaming=True)
            request = lab.get(f"/v1/files/file_sim_{BIG_BYTES}/content", (("accept", "*/*"),))
            stalled, taken = [], 0
            for _ in range(COUNT):
                answer = await pool.send(request, streaming=True, download=True)
                assert answer.http_version == ("HTTP/2" if lab.name == "h2" else "HTTP/1.1")
                taken = max(taken, len(await anext(aiter(answer))))
                answer.stalled(True)
                stalled.append(answer)
            assert pool.stats().stalled == COUNT
            assert b"message_stop" in await read(lively)
            fresh = await pool.send(lab.message("json-0ms"), streaming=False)
            assert b"end_turn" in await read(fresh)
            sent = await settled(lab)
            assert len(sent) == COUNT
            bounded(lab, sent, taken)
            if lab.name == "h2":
                assert lab.sim.stats()["tls_handshakes"] == 1, "they all share one connection"
            for answer in stalled:
                await answer.aclose()
            assert pool.stats().stalled == 0

    run(work)


def test_stalled_streams_leave_new_requests_alone(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            stalled, taken = [], 0
            for _ in range(COUNT):
                answer = await pool.send(lab.message(f"big-{64 * 1024}k", stream=True), streaming=True)
                taken = max(taken, len(await anext(aiter(answer))))
                answer.stalled(True)
                stalled.append(answer)
            sent = await settled(lab)
            bounded(lab, sent, taken)
            for _ in range(5):
                lively = await pool.send(lab.message("stream-20x10ms", stream=True), streaming=True)
                assert b"message_stop" in await read(lively)
            stalled[0].stalled(False)
            assert pool.stats().stalled == COUNT - 1
            got = 0
            async for piece in stalled[0]:
                got += len(piece)
                if got > 8 * MIB:
                    break
            assert got > 8 * MIB, "a reader that goes on is served again"
            for answer in stalled:
                await answer.aclose()
            assert (pool.stats().stalled, pool.stats().in_flight) == (0, 0)

    run(work)


def test_stalled_readers_leave_running_siblings_of_their_connection_alone(
    lab: Any, run: Any, read: Read, name: str
) -> None:
    """Only our own client can: its windows are exact."""
    if name != "h2":
        pytest.skip("the others go to another connection instead")

    async def work() -> None:
        async with lab.pool(max_connections=1) as pool:

            async def large() -> int:
                answer = await pool.send(lab.message("big-40000k", stream=True), streaming=True)
                return sum([len(piece) async for piece in answer])

            siblings = [
                await pool.send(lab.message("stream-100x10ms", stream=True), streaming=True) for _ in range(5)
            ]
            stalled = []
            for _ in range(COUNT):
                answer = await pool.send(lab.message(f"big-{64 * 1024}k", stream=True), streaming=True)
                assert await anext(aiter(answer))
                answer.stalled(True)
                stalled.append(answer)
            reading = [asyncio.create_task(read(answer)) for answer in siblings]
            assert await large() == 40_960_000, "more than any window of the connection"
            for body in await asyncio.gather(*reading):
                assert b"message_stop" in body
            assert (pool.stats().stalled, lab.sim.stats()["tls_handshakes"]) == (COUNT, 1)
            for answer in stalled:
                await answer.aclose()
            assert (pool.stats().stalled, pool.stats().in_flight) == (0, 0)

    run(work)
