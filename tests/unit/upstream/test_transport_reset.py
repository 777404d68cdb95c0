"""httpcore mended: what was not sent is told, and nothing is sent again.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpcore
import pytest

from app.upstream.transport_base import NotProcessed
from app.upstream.transport_httpcore import mapped
from app.upstream.transport_reset import ResettingHTTP2, TellingHTTP11

ORIGIN = httpcore.Origin(b"https", b"upstream.test", 443)
LARGE = b"x" * 200_000


class Wire(httpcore.AsyncNetworkStream):
    """A network stream whose peer is ``serve``; it breaks where it is told to.

    Attributes:
        closed: What is written is refused, and what is read is the end.
        after_handing: The next write fails, though its bytes are on their way.
        hung_up: The peer closed it, which nobody has read yet.
    """

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        self.serve = serve
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.written = b""
        self.closed = False
        self.after_handing = False
        self.hung_up = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return b"" if self.closed else await self.incoming.get()

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.closed:
            raise httpcore.WriteError("closed")
        self.written += buffer
        if self.after_handing:
            self.closed = True
            raise httpcore.WriteError("broken")
        answer = self.serve(buffer)
        if answer:
            self.incoming.put_nowait(answer)

    async def aclose(self) -> None:
        self.closed = True

    def get_extra_info(self, info: str) -> Any:
        return {"handed": len(self.written), "is_closed": self.hung_up}.get(info)


class Peer:
    """An HTTP/2 server that meets each request with ``act`` and lets a connection carry ``places`` streams."""

    def __init__(self, act: Callable[[Peer, int], object], places: int = 100) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        limits = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: places}
        self.http.local_settings = h2.settings.Settings(client=False, initial_values=limits)
        self.http.initiate_connection()
        self.act = act
        self.requests = 0
        self.left = False

    def __call__(self, data: bytes) -> bytes:
        if self.left:
            return b""
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.requests += 1
                assert event.stream_id is not None
                self.act(self, event.stream_id)
        return self.http.data_to_send()


def refuse(peer: Peer, stream_id: int) -> None:
    peer.http.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)


def leave(peer: Peer, stream_id: int) -> None:
    peer.left = True
    peer.http.close_connection(last_stream_id=0)


def nothing(peer: Peer, stream_id: int) -> None:
    pass


def request(body: bytes | AsyncIterator[bytes] = b"{}") -> httpcore.Request:
    length = (
        [("content-length", str(len(body)))] if isinstance(body, bytes) else [("transfer-encoding", "chunked")]
    )
    return httpcore.Request("POST", "https://upstream.test/", headers=[("host", "x"), *length], content=body)


async def fails(connection: Any, body: bytes | AsyncIterator[bytes] = b"{}") -> bool:
    """Whether the failure of one request says that nothing was processed."""
    with pytest.raises((httpcore.NetworkError, httpcore.ProtocolError)) as caught:
        await connection.handle_async_request(request(body))
    return isinstance(mapped(caught.value), NotProcessed)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.parametrize("act", [refuse, leave])
@pytest.mark.parametrize("body", [b"{}", LARGE])
def test_what_the_peer_did_not_process_comes_up_at_once(act: Any, body: bytes) -> None:
    async def test() -> None:
        peer = Peer(act)
        assert await fails(ResettingHTTP2(ORIGIN, Wire(peer), None), body)
        assert peer.requests == 1

    run(test)


def test_an_upload_alike() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield LARGE

    async def test() -> None:
        peer = Peer(leave)
        assert await fails(ResettingHTTP2(ORIGIN, Wire(peer), None), pieces())
        assert peer.requests == 1

    run(test)


@pytest.mark.parametrize("handed", [False, True])
def test_a_connection_that_breaks_tells_whether_the_headers_left(handed: bool) -> None:
    async def test() -> None:
        peer = Peer(nothing)
        wire = Wire(peer)
        connection = ResettingHTTP2(ORIGIN, wire, None)
        first = asyncio.create_task(fails(connection))
        for _ in range(1000):  # the peer's SETTINGS are read, so that there is a place for the second
            await asyncio.sleep(0)
        assert peer.requests == 1
        wire.closed, wire.after_handing = not handed, handed
        assert await fails(connection) is not handed
        wire.incoming.put_nowait(b"")
        assert not await first, "it had left"

    run(test)


def test_who_waited_for_a_place_when_the_peer_left_is_not_sent() -> None:
    held: list[int] = []

    async def test() -> None:
        peer = Peer(lambda peer, stream_id: held.append(stream_id), 1)
        wire = Wire(peer)
        connection = ResettingHTTP2(ORIGIN, wire, None)
        tasks = [asyncio.create_task(fails(connection)) for _ in range(3)]
        while not held:
            await asyncio.sleep(0)
        leave(peer, held[0])
        wire.incoming.put_nowait(peer.http.data_to_send())
        assert await asyncio.gather(*tasks) == [True, True, True]
        assert peer.requests == 1
        assert not connection.is_available()

    run(test)


def test_a_peer_that_hung_up_is_sent_nothing() -> None:
    async def test() -> None:
        wire = Wire(Peer(nothing))
        connection = ResettingHTTP2(ORIGIN, wire, None)
        assert connection.is_available()
        wire.hung_up = True
        assert not connection.is_available()
        assert await fails(connection)
        assert b"upstream" not in wire.written

    run(test)


def test_who_finds_the_place_gone_is_not_sent() -> None:
    async def test() -> None:
        peer = Peer(nothing)
        wire = Wire(peer)
        connection = ResettingHTTP2(ORIGIN, wire, None)
        first = asyncio.create_task(fails(connection))
        for _ in range(1000):
            await asyncio.sleep(0)
        peer.http.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        connection._h2_state.receive_data(peer.http.data_to_send())  # httpcore has not taken it in yet
        assert await fails(connection)
        assert peer.requests == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    run(test)


@pytest.mark.parametrize("handed", [False, True])
def test_over_http_1_too(handed: bool) -> None:
    async def test() -> None:
        wire = Wire(lambda data: b"")
        wire.closed, wire.after_handing = not handed, handed
        assert await fails(TellingHTTP11(ORIGIN, wire, None)) is not handed

    run(test)
