"""Contract: a peer that leaves loses nothing that can be finished, and what it never took is told apart.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.upstream.transport_base import Inbound, NotProcessed

Read = Callable[[Inbound], Awaitable[bytes]]


@pytest.mark.parametrize("streaming", [True, False])
def test_goaway_in_the_middle_loses_nothing(lab: Any, run: Any, read: Read, streaming: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:

            async def one(model: str) -> bytes:
                return await read(await pool.send(lab.message(model, stream=streaming), streaming=streaming))

            for _ in range(2):
                model = "stream-16x20ms" if streaming else "json-320ms"
                siblings = [asyncio.create_task(one(model)) for _ in range(8)]
                await lab.until(lambda seen: seen["open_streams"] == 8)
                told = lab.sim.stats()["goaways_sent"]
                leaver = asyncio.create_task(one("goaway-3"))
                await lab.until(lambda seen, told=told: not seen["h2_sessions"] or seen["goaways_sent"] > told)
                await asyncio.sleep(0.05)  # what was sent is read
                later = [asyncio.create_task(one(model)) for _ in range(4)]
                for body in await asyncio.gather(leaver, *siblings, *later):
                    assert b"message_stop" in body if streaming else b"end_turn" in body

    run(work)


def test_goaway_before_processing_is_told_apart(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            siblings = [
                asyncio.create_task(pool.send(lab.message("json-300ms"), streaming=False)) for _ in range(4)
            ]
            await lab.until(lambda seen: seen["open_streams"] == 4)
            before = sum(lab.sim.stats()["requests"].values())
            with pytest.raises(NotProcessed):
                await pool.send(lab.message("goaway-now"), streaming=False)
            for other in await asyncio.gather(*siblings):
                assert b"end_turn" in await read(other)
            seen = lab.sim.stats()
            assert (seen["goaways_sent"], sum(seen["requests"].values()) - before) == (1, 1)
            answer = await pool.send(lab.message("goaway-now"), streaming=False)  # processed the second time
            assert b"end_turn" in await read(answer)

    run(work)


def test_a_refused_stream_is_told_apart(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            with pytest.raises(NotProcessed):
                await pool.send(lab.message("refused"), streaming=False)
            assert lab.sim.stats()["refused_sent"] == 1
            assert pool.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_connection_closed_while_idle_is_no_error(lab_with: Any, run: Any, read: Read, streaming: bool) -> None:
    lab = lab_with(idle_close_s=0.2)

    async def work() -> None:
        async with lab.pool() as pool:
            for _ in range(3):
                answer = await pool.send(lab.message("json-0ms", stream=streaming), streaming=streaming)
                assert answer.status == 200
                await read(answer)
                await lab.until(lambda seen: seen["open_connections"] <= 1)  # the one that asks
                await asyncio.sleep(0.15)
            assert lab.sim.stats()["tls_handshakes"] == 3

    run(work)
