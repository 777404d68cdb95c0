"""Our HTTP/2 client: who leaves is noticed upstream; a peer that leaves loses nothing that can be finished.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from app.simulator.options import Options
from app.upstream.h2_connect import Closed, Opened
from app.upstream.transport_base import Inbound, NotProcessed
from app.upstream.transport_h2 import H2Transport
from app.upstream.trust import trust

Read = Callable[[Inbound], Coroutine[Any, Any, bytes]]
SEEN_S = 5.0
"""B21: the upstream notices within a second; a busy machine is given more."""


@pytest.fixture
def name() -> str:
    """The transport under test."""
    return "h2"


def client(lab: Any, **options: Any) -> H2Transport:
    return H2Transport(lab.sim.tls_url, context=trust(lab.ca), **options)


async def gone(lab: Any, count: int) -> None:
    """All ``count`` streams were seen to be aborted within ``SEEN_S``."""
    stats = await lab.until(lambda seen: seen["client_aborts"] >= count and not seen["open_streams"], SEEN_S)
    assert (stats["client_aborts"], stats["open_streams"]) == (count, 0)


async def cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


def test_500_cancelled_before_the_head_are_all_seen(lab_with: Any, run: Any) -> None:
    lab = lab_with(max_concurrent_streams=1000)

    async def work() -> None:
        one = client(lab, max_streams=1000)
        tasks = [asyncio.create_task(one.send(lab.message("hang"))) for _ in range(500)]
        assert (await lab.until(lambda seen: seen["open_streams"] == 500))["open_streams"] == 500
        await cancelled(tasks)
        await gone(lab, 500)
        assert (one.in_flight, one.handshakes, one.usable) == (0, 1, True)
        await one.aclose()

    run(work)


def test_500_cancelled_in_the_body_are_all_seen(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(max_concurrent_streams=1000)

    async def work() -> None:
        one = client(lab, max_streams=1000)
        request = lab.message("stream-1000x100ms", stream=True)
        answers = await asyncio.gather(*(one.send(request) for _ in range(500)))
        for answer in answers:
            assert await anext(aiter(answer))
        tasks = [asyncio.create_task(read(answer)) for answer in answers]
        await asyncio.sleep(0.2)
        await cancelled(tasks)
        await gone(lab, 500)
        assert (one.in_flight, one.handshakes) == (0, 1)
        await one.aclose()

    run(work)


def test_300_cut_streams_then_150_at_once_on_two_connections(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        two = [client(lab), client(lab)]
        request = lab.message("stream-1000x20ms", stream=True)
        for _ in range(3):
            answers = await asyncio.gather(*(two[n % 2].send(request) for n in range(100)))
            for answer in answers:
                assert await anext(aiter(answer))
                await answer.aclose()
        await gone(lab, 300)
        assert lab.sim.stats()["tls_handshakes"] == 2
        lab.sim.reset()

        async def whole(n: int) -> bytes:
            return await read(await two[n % 2].send(lab.message("stream-20x50ms", stream=True)))

        for body in await asyncio.gather(*(whole(n) for n in range(150))):
            assert b"message_stop" in body
        assert [one.handshakes for one in two] == [1, 1]
        seen = lab.sim.stats()
        assert (seen["max_open_streams"], seen["tls_handshakes"]) == (150, 0), "none waits for a place"
        for one in two:
            assert one.capacity == 100
            await one.aclose()

    run(work)


def test_a_siblings_timeout_harms_nobody(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        sibling = await one.send(lab.message("stream-50x20ms", stream=True))

        async def hangs() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await one.send(lab.message("hang"))

        await asyncio.gather(*(hangs() for _ in range(20)))
        assert b"message_stop" in await read(sibling)
        await gone(lab, 20)
        assert one.handshakes == 1
        await one.aclose()

    run(work)


def test_more_than_the_peer_allows_wait_and_are_never_refused(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(max_concurrent_streams=5)

    async def work() -> None:
        one = client(lab)

        async def whole() -> bytes:
            return await read(await one.send(lab.message("json-5ms")))

        tasks = [asyncio.create_task(whole()) for _ in range(100)]
        await asyncio.sleep(0.05)
        for task in tasks[50:60]:
            task.cancel()
        bodies = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(body, bytes) for body in bodies) == 90
        stats = lab.sim.stats()
        assert (stats["refused_sent"], stats["max_open_streams"], stats["tls_handshakes"]) == (0, 5, 1)
        assert (one.in_flight, one.capacity) == (0, 5)
        await one.aclose()

    run(work)


def test_a_cold_burst_makes_one_handshake(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(max_concurrent_streams=1000)

    async def work() -> None:
        opened: list[Opened] = []
        closed: list[Closed] = []
        one = client(lab, max_streams=1000, opened=opened.append, closed=closed.append)
        assert (one.usable, one.connections) == (False, 0)
        answers = await asyncio.gather(*(one.send(lab.message("json-50ms")) for _ in range(100)))
        assert [answer.connection for answer in answers].count("new") == 1
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
        await asyncio.gather(*(read(answer) for answer in answers))
        assert lab.sim.stats()["tls_handshakes"] == one.handshakes == len(opened) == one.connections == 1
        assert one.tls_ms > 0
        await one.aclose()
        await one.aclose()
        assert [(one.reason, one.streams, one.broken, one.unresponsive) for one in closed] == [
            ("The gateway closed the connection.", 100, 0, False)
        ]
        assert 0.0 < closed[0].age_s < 30.0
        with pytest.raises(httpx.ConnectError):
            await one.send(lab.message("json-0ms"))

    run(work)


def test_connecting_sends_no_request(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        await asyncio.gather(*(one.connect() for _ in range(10)))
        stats = lab.sim.stats()
        assert (stats["requests"]["h2"], stats["tls_handshakes"]) == (0, 1)
        assert (one.usable, one.capacity, one.in_flight) == (True, 100, 0)
        await read(await one.send(lab.message("json-0ms")))
        assert one.handshakes == 1
        await one.aclose()

    run(work)


def test_goaway_in_the_middle_loses_nothing(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)

        async def whole(model: str) -> bytes:
            return await read(await one.send(lab.message(model, stream=True)))

        for _ in range(3):
            siblings = [asyncio.create_task(whole("stream-20x20ms")) for _ in range(8)]
            await lab.until(lambda seen: seen["open_streams"] == 8)
            leaver = asyncio.create_task(whole("goaway-3"))
            await lab.when(lambda: not one.usable)
            later = [asyncio.create_task(whole("stream-5x5ms")) for _ in range(4)]
            for body in await asyncio.gather(leaver, *siblings, *later):
                assert b"message_stop" in body
        assert lab.sim.stats()["tls_handshakes"] == one.handshakes == 4
        assert (await lab.until(lambda seen: seen["open_connections"] <= 2))["open_connections"] <= 2
        await one.aclose()

    run(work)


def test_what_was_never_processed_is_told_and_not_sent_again(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        siblings = [asyncio.create_task(one.send(lab.message("json-300ms"))) for _ in range(4)]
        await lab.until(lambda seen: seen["open_streams"] == 4)
        with pytest.raises(NotProcessed):
            await one.send(lab.message("goaway-now"))
        assert not one.usable
        for other in await asyncio.gather(*siblings):
            assert b"end_turn" in await read(other)
        seen = lab.sim.stats()
        assert (seen["goaways_sent"], seen["requests"]["h2"], one.handshakes) == (1, 5, 1)
        with pytest.raises(NotProcessed):
            await one.send(lab.message("refused"))
        assert (lab.sim.stats()["refused_sent"], one.handshakes) == (1, 2)
        await one.aclose()

    run(work)


def test_a_connection_the_peer_closed_while_idle_is_no_error(lab_with: Any, run: Any, read: Read) -> None:
    lab = lab_with(idle_close_s=0.2)

    async def work() -> None:
        one = client(lab)
        for _ in range(4):
            await read(await one.send(lab.message("json-0ms")))
            await lab.when(lambda: not one.usable)
        assert lab.sim.stats()["tls_handshakes"] == one.handshakes == 4
        await one.aclose()

    run(work)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        closed: list[Closed] = []
        one = client(lab, keepalive_expiry_s=0.2, closed=closed.append)
        await read(await one.send(lab.message("stream-50x20ms", stream=True)))
        await read(await one.send(lab.message("json-0ms")))
        assert (one.handshakes, closed) == (1, [])
        await lab.when(lambda: closed)
        assert ([how.reason for how in closed], one.usable, one.connections) == (["It was idle."], False, 0)
        await read(await one.send(lab.message("json-0ms")))
        assert one.handshakes == lab.sim.stats()["tls_handshakes"] == 2
        await one.aclose()

    run(work)


def test_pings_keep_a_silent_stream_alive(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab, ping_interval_s=0.05, ping_timeout_s=1.0)
        assert b"end_turn" in await read(await one.send(lab.message("slowhead-2000")))
        assert one.handshakes == 1
        await one.aclose()

    run(work)


def test_a_peer_that_answers_no_ping_counts_as_dead(lab_with: Any, run: Any) -> None:
    import os
    import signal

    lab = lab_with(max_concurrent_streams=7)  # a simulator of its own

    async def work() -> None:
        one = client(lab, ping_interval_s=0.1, ping_timeout_s=0.2)
        sending = asyncio.create_task(one.send(lab.message("hang")))
        await lab.until(lambda seen: seen["open_streams"] == 1)
        os.kill(lab.sim.pid, signal.SIGSTOP)
        try:
            with pytest.raises(httpx.ReadError, match="PING"):
                async with asyncio.timeout(3):
                    await sending
        finally:
            os.kill(lab.sim.pid, signal.SIGCONT)
        assert not one.usable
        await one.aclose()

    run(work)


def test_no_stream_or_memory_is_left_after_many(lab: Any, run: Any, read: Read, peers: Any) -> None:
    async def work() -> None:
        one = client(lab)
        for _ in range(20):
            answers = await asyncio.gather(*(one.send(lab.message("burst-50", stream=True)) for _ in range(100)))
            for number, answer in enumerate(answers):
                if number % 2:
                    await answer.aclose()
                else:
                    assert b"message_stop" in await read(answer)
        connection = one._connection
        assert connection is not None
        assert (connection.streams, connection.line.promised, one.handshakes) == ({}, 0, 1)
        assert not (await lab.until(lambda seen: not seen["open_streams"]))["open_streams"]
        await one.aclose()

    assert peers(Options(max_concurrent_streams=100)) is not None
    run(work)
