"""Contract: what a pool tells of its connections, under whose id, and what of a request's time they took.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]
TLS_DELAY_MS = 300


class Someone:
    """An exchange that asks."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.connect_ms = 0.0


def told(lab: Any, event: str) -> list[tuple[str, int]]:
    return [(one["request_id"], one["lane"]) for one in lab.told(event)]


def test_connections_are_told_under_the_id_of_who_needed_them(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool(tells_connections=True) as pool:
            for number in range(3):
                request = lab.message("json-0ms")
                await read(await pool.send(request, streaming=False, asker=Someone(f"req-{number}")))
            assert told(lab, "connection_opened") == [("req-0", 1)]
            assert told(lab, "connection_reused") == [("req-1", 1), ("req-2", 1)]
            (opened,) = lab.told("connection_opened")
            assert (opened["http_version"], opened["origin"]) == ("HTTP/2", lab.sim.tls_url)
            known = {"h2": {"connect_ms", "tls_ms", "settings_ms"}, "httpcore": {"connect_ms", "tls_ms"}}
            took = {name: value for name, value in opened.items() if name.endswith("_ms")}
            assert took.keys() == known.get(lab.name, set())
            assert took.pop("settings_ms", 0.0) >= 0.0, "they may come with the handshake's end"
            assert all(value > 0.0 for value in took.values())
            assert lab.told("connection_closed") == []
        await asyncio.sleep(0)
        if lab.name == "h2":
            (closed,) = lab.told("connection_closed")
            assert (closed["lane"], closed["streams"], closed["age_s"] > 0.0) == (1, 3, True)
            assert closed["reason"] == "The gateway closed the connection."

    run(work)


def test_the_rust_clients_connections_are_seen_to_go(lab: Any, run: Any, read: Read) -> None:
    if lab.name != "reqwest":
        pytest.skip("ours says so itself, httpcore does not tell")

    async def work() -> None:
        async with lab.pool(tells_connections=True, keepalive_expiry_s=0.3) as pool:
            await read(await pool.send(lab.message("json-0ms"), streaming=False))
            await lab.when(lambda: (pool.stats(), lab.told("connection_closed"))[1])  # stats look at the sockets
            assert [(one["lane"], one["reason"]) for one in lab.told("connection_closed")] == [(1, "")]

    run(work)


def test_nothing_of_it_is_told_unless_asked_for(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            for _ in range(2):
                await read(await pool.send(lab.message("json-0ms"), streaming=False))
        assert not lab.events

    run(work)


def test_a_failed_connect_is_told_under_the_id_at_all_levels(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool("https://localhost:1") as pool:
            request = lab.message("json-0ms", origin="https://localhost:1")
            with pytest.raises(httpx.ConnectError):
                await pool.send(request, streaming=False, asker=Someone("req-7"))
        assert [one["request_id"] for one in lab.told("connect_failed")] == ["req-7"]

    run(work)


def test_what_went_into_getting_a_connection_is_known(lab_with: Any, run: Any, read: Read) -> None:
    """0.0 where it was open. The Rust client does not tell its opener, but those who waited for it know."""
    lab = lab_with(tls_delay_ms=TLS_DELAY_MS)

    async def work() -> None:
        async with lab.pool(tells_connections=True) as pool:

            async def ask(someone: Someone) -> tuple[str, float, float]:
                began = time.monotonic()
                answer = await pool.send(lab.message("json-0ms"), streaming=False, asker=someone)
                took_ms = (time.monotonic() - began) * 1000.0
                await read(answer)
                return answer.connection, someone.connect_ms, took_ms

            connection, connect_ms, took_ms = await ask(Someone("first"))
            assert connection == "new"
            if lab.name == "reqwest":
                assert connect_ms == 0.0
            else:
                assert TLS_DELAY_MS * 0.9 < connect_ms <= took_ms
            connection, connect_ms, _ = await ask(Someone("second"))
            assert (connection, connect_ms) == ("reused", 0.0)
        lab.events.clear()
        async with lab.pool(tells_connections=True) as pool:
            burst = [Someone(f"req-{number}") for number in range(8)]
            found = await asyncio.gather(*(ask(someone) for someone in burst))
            if lab.name == "httpcore":
                return
            waited = [connect_ms > TLS_DELAY_MS * 0.9 for _, connect_ms, _ in found]
            assert waited == [lab.name == "h2"] + [True] * 7
            assert all(connect_ms <= took_ms for _, connect_ms, took_ms in found)
            assert told(lab, "connection_opened") == [("req-0", 1)]

    run(work)


def test_standing_in_line_is_getting_a_connection_too(lab: Any, run: Any, read: Read) -> None:
    if lab.name != "h2":
        pytest.skip("the lines of the others are their own")

    async def work() -> None:
        async with lab.pool(max_connections=1, streams_per_connection=1) as pool:
            first = await pool.send(lab.message("stream-30x10ms", stream=True), streaming=True)
            second = Someone("second")
            sending = asyncio.create_task(pool.send(lab.message("json-0ms"), streaming=False, asker=second))
            await read(first)
            answer = await sending
            assert (answer.connection, second.connect_ms > 200.0) == ("reused", True)
            await read(answer)

    run(work)


def test_warm_up_opens_for_nobody(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        async with lab.pool(tells_connections=True) as pool:
            assert (await pool.warm_up())[0]
            assert {request_id for request_id, _ in told(lab, "connection_opened")} == {""}
            await read(await pool.send(lab.message("json-0ms"), streaming=False, asker=Someone("req-1")))
            assert told(lab, "connection_reused")[-1] == ("req-1", 1)

    run(work)
