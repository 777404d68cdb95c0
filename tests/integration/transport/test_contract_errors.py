"""Contract: every way to fail has its httpx exception, and one tells whether anything was sent.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import trustme

from app.exchange import Outbound
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A raw server that does what it is told; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def post(origin: str) -> Outbound:
    return Outbound("POST", origin, "/v1/messages", (("accept", "*/*"),), b"{}")


async def fails(lab: Any, origin: str, streaming: bool, **options: Any) -> httpx.TransportError:
    """The error of one exchange that cannot get as far as a connection; it is not counted as a request."""
    async with lab.pool(origin, **options) as pool:
        with pytest.raises(httpx.TransportError) as caught:
            await pool.send(post(origin), streaming=streaming)
        assert caught.value.__cause__ is not None
        stats = pool.stats()
        assert (stats.requests, stats.in_flight) == (0, 0)
        return caught.value


@pytest.mark.parametrize("streaming", [True, False])
def test_no_connection_means_connect_error(lab: Any, run: Any, streaming: bool) -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    async def work() -> None:
        async with peer(closes) as closing, peer(resets) as resetting:
            for origin in (
                "https://localhost:1",  # refused
                "https://no-such-host.invalid",  # DNS
                f"https://localhost:{closing}",  # closed in the handshake
                f"https://localhost:{resetting}",  # reset in the handshake
            ):
                assert type(await fails(lab, origin, streaming)) is httpx.ConnectError, origin

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_an_untrusted_certificate_means_connect_error(lab: Any, run: Any, streaming: bool) -> None:
    async def work() -> None:
        for ca_pem in (None, trustme.CA().cert_pem.bytes()):
            error = await fails(lab, lab.sim.tls_url, streaming, ca_pem=ca_pem)
            assert type(error) is httpx.ConnectError
        assert lab.sim.stats()["requests"]["h2"] == 0

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_slow_connect_means_connect_timeout(lab: Any, run: Any, streaming: bool) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def work() -> None:
        async with peer(silent) as port:
            error = await fails(lab, f"https://localhost:{port}", streaming, connect_timeout_s=0.3)
            assert type(error) is httpx.ConnectTimeout

        with contextlib.ExitStack() as stack:  # a listener whose queue is full drops the SYN
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect(listener.getsockname())
            port = listener.getsockname()[1]
            error = await fails(lab, f"https://127.0.0.1:{port}", streaming, connect_timeout_s=0.3)
            assert type(error) is httpx.ConnectTimeout

    run(work)


def test_those_who_wait_for_a_connection_fail_with_it(lab: Any, run: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def work() -> None:
        async with peer(silent) as port:
            origin = f"https://localhost:{port}"
            async with lab.pool(origin, connect_timeout_s=0.4) as pool:
                sends = (pool.send(post(origin), streaming=False) for _ in range(20))
                outcomes = await asyncio.gather(*sends, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {httpx.ConnectTimeout}
                assert pool.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize("how", ["closes", "resets", "garbage"])
def test_broken_off_before_the_head_is_not_a_connect_error(lab: Any, run: Any, how: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        if how == "resets":
            reset(writer)
        elif how == "garbage":
            writer.write(b"SMTP ready\r\n\r\n")
            await writer.drain()
            await reader.read(1)

    async def work() -> None:
        async with peer(serve) as port:
            origin = f"http://127.0.0.1:{port}"
            async with lab.pool(origin) as pool:
                with pytest.raises(httpx.TransportError) as caught:
                    await pool.send(post(origin), streaming=True)
                assert isinstance(caught.value, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
                assert pool.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize(
    "head", [b"content-length: 100\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
@pytest.mark.parametrize("hard", [True, False])
def test_a_truncated_http_1_body_raises(lab: Any, run: Any, head: bytes, hard: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head)
        await writer.drain()
        await asyncio.sleep(0.1)
        if hard:
            reset(writer)

    async def work() -> None:
        async with peer(serve) as port:
            origin = f"http://127.0.0.1:{port}"
            async with lab.pool(origin) as pool:
                answer = await pool.send(post(origin), streaming=True)
                got = b""
                with pytest.raises(httpx.TransportError):
                    async for piece in answer:
                        got += piece
                assert got == b"abc"
                await answer.aclose()
                assert pool.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize("model", ["reset-3", "close-3"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_truncated_body_over_tls_raises(lab: Any, run: Any, read: Read, model: str, stream: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            answer = await pool.send(lab.message(model, stream=stream), streaming=stream)
            assert answer.status == 200
            with pytest.raises(httpx.TransportError):
                await read(answer)
            assert pool.stats().in_flight == 0

    run(work)


def test_a_closed_pool_sends_nothing(lab: Any, run: Any) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            await pool.close()
            await pool.close()
            with pytest.raises(httpx.ConnectError):
                await pool.send(lab.message("json-0ms"), streaming=False)
            assert pool.stats().lanes == 0

    run(work)


@pytest.mark.parametrize("bad", ["method", "name", "value"])
def test_what_cannot_be_put_on_the_wire_is_a_local_error(lab: Any, run: Any, bad: str) -> None:
    method = "GE T" if bad == "method" else "GET"
    header = {"name": ("x y", "1"), "value": ("x", "1\r\ny: 2")}.get(bad, ("x", "1"))

    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            before = lab.sim.stats()["requests"]
            for streaming in (True, False):
                with pytest.raises(httpx.LocalProtocolError):
                    await pool.send(lab.get("/v1/echo", (("accept", "*/*"), header), method), streaming=streaming)
            assert lab.sim.stats()["requests"] == before

    run(work)
