"""Contract: how many connections there are, and that the figures are true.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]


def test_a_cold_burst_of_100_opens_a_handful(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            request = lab.message("json-300ms")
            answers = await asyncio.gather(*(pool.send(request, streaming=False) for _ in range(100)))
            await asyncio.gather(*(read(answer) for answer in answers))
            seen = lab.sim.stats()
            assert 1 <= seen["tls_handshakes"] <= (1 if lab.name == "h2" else 5)
            stats = pool.stats()
            assert (stats.misses, stats.handshakes) == (seen["tls_handshakes"], seen["tls_handshakes"])
            assert (stats.requests, stats.hits) == (100, 100 - seen["tls_handshakes"])

    run(work)


def test_a_cold_burst_behind_a_slow_first_head_does_not_wait_for_it(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            first = asyncio.create_task(pool.send(lab.message("json-9000ms"), streaming=False))
            await asyncio.sleep(0)
            async with asyncio.timeout(7.0):
                rest = [pool.send(lab.message("json-0ms"), streaming=False) for _ in range(60)]
                for answer in await asyncio.gather(*rest):
                    await read(answer)
            assert not first.done()
            assert lab.sim.stats()["tls_handshakes"] <= 5
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    run(work)


def test_a_burst_over_a_slow_handshake_waits_for_it(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(tls_delay_ms=200)

    async def work() -> None:
        async with lab.pool() as pool:
            answers = await asyncio.gather(
                *(pool.send(lab.message("json-0ms"), streaming=False) for _ in range(50))
            )
            for answer in answers:
                await read(answer)
            seen = lab.sim.stats()["tls_handshakes"]
            assert pool.stats().misses == seen <= 5

    run(work)


def test_warm_up_opens_what_is_needed_first(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            there, ms = await pool.warm_up()
            assert there and ms > 0
            warm = lab.sim.stats()["tls_handshakes"]
            assert warm == (2 if lab.name == "httpcore" else 1)
            asked = 0 if lab.name == "h2" else warm  # our own client connects without asking for anything
            assert sum(lab.sim.stats()["requests"].values()) == asked
            answer = await pool.send(lab.message("json-0ms"), streaming=False)
            assert answer.connection == "reused"
            await read(answer)
            stats = pool.stats()
            assert (stats.requests, stats.hits) == (asked + 1, 1)
            assert (stats.misses, stats.handshakes) == (warm, warm)
            answer = await pool.send(lab.message("stream-2x1ms", stream=True), streaming=True)
            assert answer.connection == "reused"
            await read(answer)
            assert lab.sim.stats()["tls_handshakes"] == warm
            assert pool.stats().http_version == "HTTP/2"

    run(work)


@pytest.mark.parametrize(("allowed", "opened"), [(100, 3), (50, 6)])
def test_warm_up_opens_what_carries_the_slots(
    lab_with: Any, run: Any, read: Read, allowed: int, opened: int
) -> None:
    lab = lab_with(max_concurrent_streams=allowed, tls_delay_ms=100)

    async def work() -> None:
        async with lab.pool(streams_per_connection=100) as pool:
            there, ms = await pool.warm_up(300)
            assert there
            own = lab.name == "h2"
            warm = opened if own else 2 if lab.name == "httpcore" else 1
            assert lab.sim.stats()["tls_handshakes"] == warm
            assert pool.stats().open_connections == warm
            if not own:
                return
            assert ms >= 200
            assert ms < 550 or opened < 6, "one first, then the others at the same time"
            assert (pool.stats().requests, pool.stats().hits, pool.stats().misses) == (0, 0, warm)
            assert (await pool.warm_up(300))[0]
            request = lab.message("json-300ms")
            answers = await asyncio.gather(*(pool.send(request, streaming=False) for _ in range(300)))
            assert {answer.connection for answer in answers} == {"reused"}
            await asyncio.gather(*(read(answer) for answer in answers))
            stats = pool.stats()
            assert (lab.sim.stats()["tls_handshakes"], stats.lanes, stats.in_flight) == (warm, warm, 0)
            assert (stats.requests, stats.hits, stats.misses) == (300, 300, warm)

    run(work)


def test_warm_up_keeps_the_cap_and_what_it_opened_idles_away(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool(max_connections=2, keepalive_expiry_s=0.4) as pool:
            assert (await pool.warm_up(1000))[0]
            if lab.name == "h2":
                assert lab.sim.stats()["tls_handshakes"] == pool.stats().open_connections == 2
            stats = await lab.until(lambda seen: seen["open_connections"] <= 1, 3.0)
            assert stats["open_connections"] <= 1  # the question's own
            assert pool.stats().open_connections == 0
            if lab.name == "h2":  # lanes that lost their connections are connected again
                pool._fleet.rules = dataclasses.replace(pool._fleet.rules, keepalive_expiry_s=60.0)
                assert (await pool.warm_up(200))[0]
                await asyncio.sleep(1.0)
                assert (pool.stats().lanes, pool.stats().open_connections) == (2, 0)
                assert (await pool.warm_up(200))[0]
                assert (pool.stats().lanes, pool.stats().open_connections) == (2, 2)

    run(work)


@pytest.mark.parametrize("slots", [1, 300])
def test_warm_up_of_a_closed_pool_opens_nothing(lab: Any, run: Any, slots: int) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.close()
            assert not (await pool.warm_up(slots))[0]
            assert pool.stats().lanes == 0
            assert lab.sim.stats()["tls_handshakes"] == 0

    run(work)


def test_warm_up_that_fails_half_way_says_so(lab: Any, run: Any) -> None:
    if lab.name != "h2":
        pytest.skip("the others open one connection")

    async def work() -> None:
        async with lab.pool() as pool:
            assert (await pool.warm_up())[0]
            make, made = pool._make.h2, 0

            def second_fails() -> Any:
                nonlocal made
                made += 1
                client = make()
                if made == 2:
                    client._port = 1
                return client

            pool._make.h2 = second_fails
            assert not (await pool.warm_up(400))[0]
            stats = pool.stats()
            assert (stats.open_connections, stats.lanes, stats.in_flight) == (3, 4, 0)
            assert lab.events[-1]["event"] == "warm_up_failed"

    run(work)


def test_warm_up_of_a_dead_upstream_does_not_raise(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool("https://localhost:1") as pool:
            there, _ = await pool.warm_up()
            assert not there
            assert pool.stats().misses == 0

    run(work)


def test_two_requests_within_the_expiry_make_one_handshake_and_later_there_is_a_second(
    lab: Any, run: Any, read: Read
) -> None:
    async def work() -> None:
        async with lab.pool(keepalive_expiry_s=0.6, tells_connections=True) as pool:
            kinds = []
            for pause_s in (0.2, 1.2, 0.0):
                answer = await pool.send(lab.message("json-0ms"), streaming=False)
                kinds.append(answer.connection)
                await read(answer)
                await asyncio.sleep(pause_s)
            assert kinds == ["new", "reused", "new"]
            assert lab.sim.stats()["tls_handshakes"] == 2
            stats = pool.stats()
            assert (stats.handshakes, stats.misses, stats.hits, stats.requests) == (2, 2, 1, 3)
            assert len(lab.told("connection_opened")) == 2

    run(work)


def test_idle_connections_are_closed_after_the_expiry(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool(keepalive_expiry_s=0.3) as pool:
            await read(await pool.send(lab.message("json-0ms"), streaming=False))
            assert pool.stats().open_connections == 1
            stats = await lab.until(lambda seen: seen["open_connections"] <= 1, 3.0)
            assert stats["open_connections"] <= 1  # the question's own
            assert pool.stats().open_connections == 0

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_the_figures_equal_the_upstreams(lab: Any, run: Any, read: Read, streaming: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            request = lab.message("stream-5x10ms" if streaming else "json-50ms", stream=streaming)
            for count in (1, 150, 30, 180):
                answers = await asyncio.gather(*(pool.send(request, streaming=streaming) for _ in range(count)))
                await asyncio.gather(*(read(answer) for answer in answers))
            seen, stats = lab.sim.stats(), pool.stats()
            assert (stats.misses, stats.handshakes) == (seen["tls_handshakes"], seen["tls_handshakes"])
            assert stats.requests == 361
            assert stats.hits == 361 - seen["tls_handshakes"]
            if lab.name == "h2":
                assert seen["tls_handshakes"] == 2, "180 at once on a peer that allows 100"
            if lab.name != "httpcore":
                assert stats.open_connections == seen["tls_handshakes"] <= 6

    run(work)


def test_another_pool_of_the_process_is_not_counted(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as one, lab.pool() as other:
            await read(await one.send(lab.message("json-0ms"), streaming=False))
            for pool, opened in ((one, 1), (other, 0)):
                stats = pool.stats()
                assert (stats.misses, stats.open_connections) == (opened, opened)

    run(work)


def test_a_full_pool_makes_the_next_wait_and_then_refuses(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool(max_connections=2, streams_per_connection=1, pool_timeout_s=0.3) as pool:
            await pool.warm_up()
            held = [asyncio.create_task(pool.send(lab.message("hang"), streaming=False)) for _ in range(2)]
            await lab.until(lambda seen: seen["open_streams"] == 2)
            with pytest.raises(httpx.PoolTimeout):
                await pool.send(lab.message("json-0ms"), streaming=False)
            assert pool.stats().timeouts == 1
            waiting = asyncio.create_task(pool.send(lab.message("json-0ms"), streaming=False))
            await asyncio.sleep(0.05)
            assert pool.stats().waiting == 1
            held[0].cancel()
            assert (await waiting).status == 200
            await (await waiting).aclose()
            held[1].cancel()
            await asyncio.gather(*held, return_exceptions=True)
            assert pool.stats().in_flight == 0

    run(work)
