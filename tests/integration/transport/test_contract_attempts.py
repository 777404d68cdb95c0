"""Contract: one send is one attempt. Whatever a scripted upstream does, it sees a request once and is left alone.

The exception: reqwest repeats a refused request that has no body, twice.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx
import pytest
import trustme

from app.exchange import Outbound
from app.upstream.transport_base import Inbound, NotProcessed

Read = Callable[[Inbound], Awaitable[bytes]]
CA = trustme.CA()
CERT = CA.issue_cert("localhost")
CALM_S = 0.3
"""Time for a second attempt that nobody asked for."""


class Script:
    """An HTTP/2 upstream that meets every request after the first ``good`` with ``act``.

    Attributes:
        connections: TCP connections seen.
        attempts: Requests seen.
    """

    def __init__(self, act: str, good: int = 0) -> None:
        self.act = act
        self.good = good
        self.connections = 0
        self.attempts = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        http.initiate_connection()
        writer.write(http.data_to_send())
        while data := await reader.read(65_536):
            for event in http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.attempts += 1
                    if self.attempts > self.good and self.act != "cut":
                        assert event.stream_id is not None
                        self.meet(http, event.stream_id)
                if isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    if self.attempts <= self.good:
                        answer(http, event.stream_id, b"200")
                    elif self.act == "cut":
                        return
            writer.write(http.data_to_send())
            await writer.drain()
            if http.state_machine.state == h2.connection.ConnectionState.CLOSED:
                await asyncio.sleep(0.05)
                return

    def meet(self, http: h2.connection.H2Connection, stream_id: int) -> None:
        if self.act == "refuse":
            http.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
        elif self.act == "goaway":
            http.close_connection(last_stream_id=stream_id - 2 if stream_id > 1 else 0)
        elif self.act == "fail":
            http.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            answer(http, stream_id, self.act.encode())


def answer(http: h2.connection.H2Connection, stream_id: int, status: bytes) -> None:
    http.send_headers(stream_id, [(b":status", status), (b"retry-after", b"0"), (b"content-length", b"2")])
    http.send_data(stream_id, b"ok", end_stream=True)


@contextlib.asynccontextmanager
async def upstream(serve: Any, tls: bool = True) -> AsyncIterator[str]:
    """``serve`` behind a socket; its origin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
    if context is not None:
        CERT.configure_cert(context)
        context.set_alpn_protocols(["h2"])
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def source() -> AsyncIterator[bytes]:
    yield b"{}"


def request(origin: str, kind: str) -> Outbound:
    headers = (("accept", "*/*"), ("content-type", "application/json"))
    if kind == "get":
        return Outbound("GET", origin, "/v1/models", headers, b"")
    return Outbound("POST", origin, "/v1/messages", headers, source() if kind == "upload" else b"{}")


@pytest.fixture
def pool(lab: Any) -> Any:
    """Pools that trust the scripted upstream."""
    return lambda origin: lab.pool(origin, ca_pem=CA.cert_pem.bytes())


async def fails(pool: Any, outbound: Outbound) -> httpx.TransportError:
    with pytest.raises(httpx.TransportError) as caught:
        await pool.send(outbound, streaming=False)
    await asyncio.sleep(CALM_S)
    error: httpx.TransportError = caught.value
    return error


@pytest.mark.parametrize("kind", ["json", "upload"])
@pytest.mark.parametrize("act", ["refuse", "goaway", "fail", "cut"])
@pytest.mark.parametrize("good", [0, 1])
def test_a_failed_send_is_one_attempt(pool: Any, run: Any, read: Read, act: str, kind: str, good: int) -> None:
    script = Script(act, good)

    async def work() -> None:
        async with upstream(script) as origin, pool(origin) as one:
            for _ in range(good):
                assert await read(await one.send(request(origin, kind), streaming=False)) == b"ok"
            error = await fails(one, request(origin, kind))
            assert script.attempts == good + 1
            assert isinstance(error, NotProcessed) is (act in ("refuse", "goaway")), repr(error)
            assert not isinstance(error, httpx.ConnectError | httpx.LocalProtocolError)
            script.good = 99
            assert await read(await one.send(request(origin, kind), streaming=False)) == b"ok"
            assert script.attempts == good + 2
            assert one.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize("act", ["refuse", "goaway"])
def test_a_refused_request_without_a_body(lab: Any, pool: Any, run: Any, act: str) -> None:
    script = Script(act)

    async def work() -> None:
        async with upstream(script) as origin, pool(origin) as one:
            assert isinstance(await fails(one, request(origin, "get")), NotProcessed)
            assert script.attempts == (3 if lab.name == "reqwest" else 1)

    run(work)


@pytest.mark.parametrize("kind", ["json", "upload", "get"])
@pytest.mark.parametrize("status", ["429", "503", "529"])
def test_an_answer_is_an_answer(pool: Any, run: Any, read: Read, status: str, kind: str) -> None:
    script = Script(status)

    async def work() -> None:
        async with upstream(script) as origin, pool(origin) as one:
            got = await one.send(request(origin, kind), streaming=False)
            assert (got.status, await read(got)) == (int(status), b"ok")
            await asyncio.sleep(CALM_S)
            assert (script.attempts, script.connections) == (1, 1)

    run(work)


def test_a_failed_connect_is_one_attempt(pool: Any, run: Any) -> None:
    accepted = 0

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read(10)

    async def work() -> None:
        async with upstream(hangs_up, tls=False) as origin:
            secure = origin.replace("http://127.0.0.1", "https://localhost")
            async with pool(secure) as one:
                assert type(await fails(one, request(secure, "json"))) is httpx.ConnectError
                assert accepted == 1

    run(work)


@pytest.mark.parametrize("kind", ["json", "upload", "get"])
@pytest.mark.parametrize("good", [0, 1])
def test_over_http_1_too(pool: Any, run: Any, read: Read, kind: str, good: int) -> None:
    attempts = 0
    body = {"json": b"{}", "upload": b"0\r\n\r\n", "get": b"\r\n\r\n"}[kind]

    async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        while await reader.readuntil(body):
            attempts += 1
            if attempts > good:
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async def work() -> None:
        nonlocal good
        async with upstream(cuts, tls=False) as origin, pool(origin) as one:
            for _ in range(good):
                assert await read(await one.send(request(origin, kind), streaming=False)) == b"ok"
            error = await fails(one, request(origin, kind))
            assert not isinstance(error, NotProcessed | httpx.ConnectError), "it may have been processed"
            assert attempts == good + 1

    run(work)
