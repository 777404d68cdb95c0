"""Contract: who leaves is noticed upstream, and leaves nothing behind.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.upstream.pool import Pool
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Coroutine[Any, Any, bytes]]
SEEN_S = 5.0
"""B21: the upstream notices within a second; a busy machine is given more."""


async def cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


async def gone(lab: Any, count: int) -> None:
    """All ``count`` streams were seen to be aborted within ``SEEN_S``."""
    stats = await lab.until(lambda seen: seen["client_aborts"] >= count and not seen["open_streams"], SEEN_S)
    assert (stats["client_aborts"], stats["open_streams"]) == (count, 0)


@pytest.mark.parametrize("streaming", [True, False])
def test_500_cancelled_before_the_head_are_all_seen_upstream(lab: Any, run: Any, streaming: bool) -> None:
    async def work() -> None:
        count = 500
        async with lab.pool(max_connections=600) as pool:
            request = lab.message("hang", stream=streaming)
            tasks = [asyncio.create_task(pool.send(request, streaming=streaming)) for _ in range(count)]
            assert (await lab.until(lambda seen: seen["open_streams"] == count))["open_streams"] == count
            await cancel_all(tasks)
            await gone(lab, count)
            assert pool.stats().in_flight == 0
            if lab.name == "h2":
                assert lab.sim.stats()["tls_handshakes"] == 5, "100 streams each, and not one more"

    run(work)


def test_500_cancelled_in_the_body_are_all_seen_upstream(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        count = 500
        async with lab.pool(max_connections=600) as pool:
            request = lab.message("stream-1000x100ms", stream=True)
            answers = await asyncio.gather(*(pool.send(request, streaming=True) for _ in range(count)))
            for answer in answers:
                assert await anext(aiter(answer))
            tasks = [asyncio.create_task(read(answer)) for answer in answers]
            await asyncio.sleep(0.2)
            await cancel_all(tasks)
            await gone(lab, count)
            assert pool.stats().in_flight == 0
            if lab.name == "h2":
                assert lab.sim.stats()["tls_handshakes"] == 5

    run(work)


def test_closing_an_unread_answer_resets_its_stream(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            answer = await pool.send(lab.message("stream-1000x20ms", stream=True), streaming=True)
            await answer.aclose()
            await answer.aclose()
            await gone(lab, 1)
            assert pool.stats().in_flight == 0

    run(work)


def test_cancelling_twice_leaks_no_connection(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool(max_connections=10) as pool:
            request = lab.message("hang", stream=True)
            tasks = [asyncio.create_task(pool.send(request, streaming=True)) for _ in range(10)]
            assert (await lab.until(lambda seen: seen["open_streams"] == 10))["open_streams"] == 10
            for task in tasks:
                task.cancel()
                asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.gather(*tasks, return_exceptions=True)
            await gone(lab, 10)
            rounds = [pool.send(lab.message("stream-2x1ms", stream=True), streaming=True) for _ in range(10)]
            for answer in await asyncio.gather(*rounds):
                assert b"message_stop" in await read(answer)

    run(work)


def test_300_cut_streams_then_150_at_once_on_a_peer_that_allows_100(lab: Any, run: Any, read: Read) -> None:
    async def cut(pool: Pool) -> None:
        answer = await pool.send(lab.message("stream-500x10ms", stream=True), streaming=True)
        await anext(aiter(answer))
        await answer.aclose()

    async def work() -> None:
        async with lab.pool() as pool:
            for _ in range(3):
                await asyncio.gather(*(cut(pool) for _ in range(100)))
            await lab.until(lambda seen: not seen["open_streams"])
            request = lab.message("stream-10x50ms", stream=True)
            loop = asyncio.get_running_loop()
            started = loop.time()
            answers = await asyncio.gather(*(pool.send(request, streaming=True) for _ in range(150)))
            slowest = loop.time() - started
            bodies = await asyncio.gather(*(read(answer) for answer in answers))
            assert all(b"message_stop" in body for body in bodies)
            assert lab.sim.stats()["max_open_streams"] >= 150, "the 150 must run side by side"
            assert slowest < 5.0
            if lab.name == "h2":
                assert (lab.sim.stats()["tls_handshakes"], pool.stats().lanes) == (2, 2)

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_timeout_of_one_leaves_its_siblings_alive(lab: Any, run: Any, read: Read, streaming: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            model = "stream-16x25ms" if streaming else "json-400ms"
            request = lab.message(model, stream=streaming)
            siblings = [asyncio.create_task(pool.send(request, streaming=streaming)) for _ in range(5)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.6):  # enough to have connected
                    await pool.send(lab.message("hang", stream=streaming), streaming=streaming)
            for answer in await asyncio.gather(*siblings):
                body = await read(answer)
                assert (b"message_stop" in body) is streaming
            await gone(lab, 1)

    run(work)
