"""Our HTTP/2 client: every way to fail has its httpx exception, and one tells whether anything was sent.

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

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trustme

from app.exchange import Outbound
from app.upstream.transport_base import Inbound, NotProcessed
from app.upstream.transport_h2 import H2Transport, NotHttp2
from app.upstream.trust import trust

Read = Callable[[Inbound], Awaitable[bytes]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CA = trustme.CA()
CERT = CA.issue_cert("localhost")


@pytest.fixture
def name() -> str:
    """The transport under test."""
    return "h2"


def server_context(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERT.configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@contextlib.asynccontextmanager
async def peer(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that does what it is told; its origin."""
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
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
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


def post(origin: str, body: Any = b"{}") -> Outbound:
    return Outbound("POST", origin, "/v1/messages", (("x-api-key", "sk-secret"),), body)


def client(origin: str, **options: Any) -> H2Transport:
    return H2Transport(origin, context=trust(CA.cert_pem.bytes()), **options)


async def fails(origin: str, **options: Any) -> httpx.TransportError:
    """The error of one send; the connection, if there was one, is not used again."""
    one = client(origin, **options)
    with pytest.raises(httpx.TransportError) as caught:
        async with asyncio.timeout(5):
            await one.send(post(origin))
    assert "sk-secret" not in str(caught.value)
    assert one.in_flight == 0
    await one.aclose()
    return caught.value


class Server:
    """An HTTP/2 server over one connection, by the h2 library; ``act`` is called with each event."""

    def __init__(self, act: Callable[[Server, Any], None]) -> None:
        self.act = act
        self.requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.http.initiate_connection()
        self.writer = writer
        writer.write(self.http.data_to_send())
        while data := await reader.read(65_536):
            for event in self.http.receive_data(data):
                self.requests += isinstance(event, h2.events.RequestReceived)
                self.act(self, event)
            writer.write(self.http.data_to_send())
            await writer.drain()

    def answer(self, stream_id: int, body: bytes = b"ok", end: bool = True, *more: tuple[bytes, bytes]) -> None:
        self.http.send_headers(stream_id, [(b":status", b"200"), *more])
        self.http.send_data(stream_id, body, end_stream=end)


def test_no_connection_means_connect_error(run: Any) -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SMTP ready\r\n\r\n")
        await writer.drain()
        await reader.read(1000)

    async def work() -> None:
        async with peer(closes) as a, peer(resets) as b, peer(garbage) as c:
            for origin in ("https://localhost:1", "https://no-such-host.invalid", a, b, c):
                error = await fails(origin)
                assert type(error) is httpx.ConnectError, origin
                assert error.__cause__ is not None
        async with peer(closes, server_context("h2")) as hangs_up:  # after TLS, before its SETTINGS
            assert type(await fails(hangs_up)) is httpx.ConnectError

    run(work)


def test_untrusted_and_misnamed_certificates_mean_connect_error(lab: Any, run: Any) -> None:
    async def work() -> None:
        error = await fails(lab.sim.tls_url)
        assert type(error) is httpx.ConnectError
        assert "not trusted" in str(error)
        async with peer(Server(lambda server, event: None), server_context("h2")) as origin:
            error = await fails(origin.replace("localhost", "127.0.0.1"))
            assert type(error) is httpx.ConnectError
            assert "not trusted" in str(error)
        assert lab.sim.stats()["requests"]["h2"] == 0

    run(work)


@pytest.mark.parametrize("protocols", [("http/1.1",), ()])
def test_a_peer_without_http_2_is_told_apart_and_gets_no_byte(run: Any, protocols: tuple[str, ...]) -> None:
    got: list[bytes] = []

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(1000))

    async def work() -> None:
        async with peer(listens, server_context(*protocols)) as origin:
            assert type(await fails(origin)) is NotHttp2
            await asyncio.sleep(0.1)
        assert got in ([b""], [])

    run(work)


def test_a_slow_connect_means_connect_timeout_for_everybody_who_waits(run: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def work() -> None:
        for context in (None, server_context("h2")):  # silent in the handshake; silent after it
            async with peer(silent, context) as origin:
                one = client(origin, connect_timeout_s=0.3)
                outcomes = await asyncio.gather(
                    *(one.send(post(origin)) for _ in range(20)), return_exceptions=True
                )
                assert {type(outcome) for outcome in outcomes} == {httpx.ConnectTimeout}
                assert (one.handshakes, one.connections) == (0, 0)
                leaving = asyncio.create_task(one.send(post(origin)))
                await asyncio.sleep(0.05)
                await one.aclose()
                with pytest.raises(httpx.ConnectError):
                    await leaving

    run(work)


def test_a_cancelled_waiter_does_not_stop_the_connect(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = H2Transport(lab.sim.tls_url, context=trust(lab.ca))
        first = asyncio.create_task(one.send(lab.message("json-0ms")))
        second = asyncio.create_task(one.send(lab.message("json-0ms")))
        await asyncio.sleep(0)
        first.cancel()
        assert b"end_turn" in await read(await second)
        assert one.handshakes == lab.sim.stats()["tls_handshakes"] == 1
        await one.aclose()

    run(work)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("headed", [True, False])
def test_a_connection_broken_in_mid_exchange_is_a_read_error(run: Any, hard: bool, headed: bool) -> None:
    def act(server: Server, event: Any) -> None:
        if isinstance(event, h2.events.StreamEnded):
            if headed:
                server.answer(event.stream_id, b"part", False)
                server.writer.write(server.http.data_to_send())
            call = reset if hard else asyncio.StreamWriter.close
            asyncio.get_running_loop().call_later(0.1, call, server.writer)

    async def work() -> None:
        serve = Server(act)
        async with peer(serve, server_context("h2")) as origin:
            one = client(origin)
            with pytest.raises(httpx.ReadError):
                answer = await one.send(post(origin))
                assert headed
                assert await anext(aiter(answer)) == b"part"
                await anext(aiter(answer))
            assert serve.requests == 1, "it may have been processed: never sent again"
            await one.aclose()

    run(work)


@pytest.mark.parametrize("how", ["reset", "short"])
def test_a_truncated_body_raises(run: Any, how: str) -> None:
    def act(server: Server, event: Any) -> None:
        if isinstance(event, h2.events.StreamEnded):
            if how == "reset":
                server.answer(event.stream_id, b"part", False)
                server.http.reset_stream(event.stream_id, 2)
            else:
                server.answer(event.stream_id, b"part", True, (b"content-length", b"9"))

    async def work() -> None:
        async with peer(Server(act), server_context("h2")) as origin:
            one = client(origin)
            answer = await one.send(post(origin))
            assert await anext(aiter(answer)) == b"part"
            with pytest.raises(httpx.RemoteProtocolError) as caught:
                await anext(aiter(answer))
            assert not isinstance(caught.value, NotProcessed)
            await answer.aclose()
            assert one.usable
            await one.aclose()

    run(work)


def test_goaway_is_told_apart_and_nothing_is_sent_again(run: Any) -> None:
    def act(server: Server, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            server.http.close_connection(last_stream_id=0)

    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(10)

    async def work() -> None:
        serve = Server(act)
        async with peer(serve, server_context("h2")) as origin:
            one = client(origin)
            with pytest.raises(NotProcessed):
                await one.send(post(origin, source()))
            assert serve.requests == 1
            with pytest.raises(NotProcessed):
                await one.send(post(origin))
            assert serve.requests == 2
            await one.aclose()

    run(work)


def test_an_idle_connection_cut_without_a_word_is_no_error(run: Any, read: Read) -> None:
    def act(server: Server, event: Any) -> None:
        if isinstance(event, h2.events.StreamEnded):
            server.answer(event.stream_id)
            asyncio.get_running_loop().call_later(0.05, reset, server.writer)

    async def work() -> None:
        async with peer(Server(act), server_context("h2")) as origin:
            one = client(origin)
            for _ in range(3):
                assert await read(await one.send(post(origin))) == b"ok"
                await asyncio.sleep(0.15)
            assert one.handshakes == 3
            await one.aclose()

    run(work)


@pytest.mark.parametrize("bad", ["method", "name", "value", "target", "origin"])
def test_what_cannot_be_put_on_the_wire_is_a_local_error(lab: Any, run: Any, bad: str) -> None:
    pair = {"name": ("x y", "1"), "value": ("x", "1\r\ny: 2")}.get(bad, ("x", "1"))
    target = "/v1/echo x" if bad == "target" else "/v1/echo"
    origin = "https://other.example" if bad == "origin" else lab.sim.tls_url

    async def work() -> None:
        one = H2Transport(lab.sim.tls_url, context=trust(lab.ca))
        with pytest.raises(httpx.LocalProtocolError):
            await one.send(Outbound("GE T" if bad == "method" else "GET", origin, target, (pair,), b""))
        assert lab.sim.stats()["requests"]["h2"] == 0
        await one.aclose()

    run(work)


@pytest.mark.parametrize("origin", ["http://localhost", "https://", "localhost:1", "https://x/path"])
def test_an_origin_must_be_https(origin: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        H2Transport(origin)
