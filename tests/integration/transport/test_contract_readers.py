"""Contract: a slow reader slows its own stream, not its neighbours, and holds a bounded amount (B24).

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]
BIG_BYTES = 64 * 1024 * 1024
MIB = 1024 * 1024


async def settled(lab: Any) -> list[int]:
    """Bytes the upstream has sent on each open stream, once that no longer grows."""
    last: list[int] = []
    while True:
        await asyncio.sleep(0.3)
        now = sorted(stream["bytes_sent"] for stream in lab.sim.stats()["streams"])
        if now == last:
            return now
        last = now


@pytest.mark.parametrize("count", [2, 10])
def test_stalled_downloads_leave_a_lively_neighbour_alone(lab: Any, run: Any, read: Read, count: int) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            lively = await pool.send(lab.message("stream-150x10ms", stream=True), streaming=True)
            request = lab.get(f"/v1/files/file_sim_{BIG_BYTES}/content", (("accept", "*/*"),))
            stalled = []
            for _ in range(count):
                answer = await pool.send(request, streaming=True, download=True)
                assert answer.http_version == "HTTP/1.1"
                assert await anext(aiter(answer))
                answer.stalled(True)
                stalled.append(answer)
            assert pool.stats().stalled == count
            assert b"message_stop" in await read(lively)
            fresh = await pool.send(lab.message("json-0ms"), streaming=False)
            assert b"end_turn" in await read(fresh)
            sent = await settled(lab)
            assert len(sent) == count
            assert sent[-1] < 16 * MIB, "the gateway swallowed the file"
            for answer in stalled:
                await answer.aclose()
            assert pool.stats().stalled == 0

    run(work)


@pytest.mark.parametrize("count", [2, 10])
def test_stalled_streams_leave_new_requests_alone(lab: Any, run: Any, read: Read, count: int) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            stalled = []
            for _ in range(count):
                answer = await pool.send(lab.message(f"big-{64 * 1024}k", stream=True), streaming=True)
                assert await anext(aiter(answer))
                answer.stalled(True)
                stalled.append(answer)
            sent = await settled(lab)
            assert sent[-1] < 16 * MIB
            for _ in range(5):
                lively = await pool.send(lab.message("stream-20x10ms", stream=True), streaming=True)
                assert b"message_stop" in await read(lively)
            stalled[0].stalled(False)
            assert pool.stats().stalled == count - 1
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
