"""What every transport shares: the shape of an answer, the headers that go out, the exceptions that come up.

A transport is one client of one kind (HTTP/2 by ALPN, or HTTP/1.1 only) for one origin. It sends an ``Outbound``
and hands up an ``Inbound`` as soon as the response head is there; the body is read by iterating over it.
Exceptions are httpx's, with the library's own error as ``__cause__``:

    ConnectError, ConnectTimeout      no connection: nothing was sent
    LocalProtocolError                the request cannot be put on the wire: nothing was sent
    WriteError                        the connection broke, or the upload's source failed, while sending
    ReadError, RemoteProtocolError    broken off, or not HTTP; something may have been sent
    NotProcessed                      a RemoteProtocolError: certainly nothing was processed; safe to send again
    ReadTimeout                       the library's own clock ran out in mid-exchange

``send`` puts a request on the wire once: sending again is decided in one place (``attempts``). Where a library
cannot be kept from repeating a request by itself, its transport's docstring says when.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import httpx

from app.exchange import Headers, Outbound
from app.wire.headers import HOP_BY_HOP, first

Pairs = list[tuple[str, str]]

_OURS = HOP_BY_HOP | {"host"}


class NotProcessed(httpx.RemoteProtocolError):
    """Nothing was processed: safe to send again.

    The peer refused the stream (REFUSED_STREAM, RFC 9113 8.7), it lies beyond the last one of a GOAWAY (6.8), or
    the connection was lost before anything of it was written.
    """


class Asker(Protocol):
    """On whose behalf a request is sent.

    Attributes:
        connect_ms: What of the request's time went into getting a connection is added to this.
    """

    connect_ms: float

    @property
    def request_id(self) -> str:
        """Of the exchange, or ""."""
        ...


class Slot(Protocol):
    """A place on a lane."""

    def stalled(self, waiting: bool) -> None:
        """The stream on it is, or is no longer, held back by its reader."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Inbound:
    """One answer: its head at once, its body as it comes.

    Attributes:
        status: HTTP status.
        headers: Header pairs in the order received, repeats kept, latin-1 text.
        http_version: ``HTTP/2`` or ``HTTP/1.1``.
        connection: ``new`` or ``reused`` where the pool knows, else ``""``.
        connect_ms: DNS and TCP of a connection that was opened for it, where the library tells; ``tls_ms``: its
            TLS handshake. Our own client tells its pool instead.
    """

    connect_ms = 0.0
    tls_ms = 0.0
    __slots__ = ("_closed", "_ended", "_slot", "connection", "headers", "http_version", "status")

    def __init__(self, status: int, headers: Pairs, http_version: str) -> None:
        self.status = status
        self.headers = headers
        self.http_version = http_version
        self.connection = ""
        self._closed = False
        self._ended = False
        self._slot: Slot | None = None

    def own(self, slot: Slot) -> None:
        """Tie this answer to a slot, which is released exactly once: at the body's end, or by ``aclose``."""
        self._slot = slot

    def stalled(self, waiting: bool) -> None:
        """The reader says that it cannot take more for now (True), or that it can again (False)."""
        if self._slot is not None:
            self._slot.stalled(waiting)

    @property
    def over(self) -> bool:
        """Nothing is left to be read, nor to be let go."""
        return self._ended

    def take(self) -> bytes:
        """What of the body waits to be read; empty where that takes an ``anext``, or nothing does."""
        return b""

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Hand every piece to ``sink`` as it comes, until it takes one no more or there is none; then read on.

        What it did not take waits to be read. Transports that cannot do so return at once.
        """

    def field(self, name: str) -> str | None:
        """Value of the first header called ``name`` (lower case), or None."""
        return first(self.headers, name)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Next piece of the body, raw, as soon as it came.

        Raises:
            StopAsyncIteration: The body is complete.
            httpx.TransportError: The peer broke it off; what was read so far is truncated.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of the answer; an unfinished upstream stream is reset. Safe to call twice, and when cancelled."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._ended:
                await asyncio.shield(asyncio.ensure_future(self._close()))
        finally:
            self._finish()

    def _finish(self) -> None:
        self._ended = True
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    async def _close(self) -> None:
        raise NotImplementedError


async def drain(inbound: Inbound) -> None:
    """Read an answer to its end and throw it away."""
    try:
        async for _ in inbound:
            pass
    finally:
        await inbound.aclose()


class Transport(Protocol):
    """What the pool needs of a transport."""

    async def send(self, outbound: Outbound) -> Inbound:
        """Send one request and return at its response head."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def forwardable(headers: Headers, framed: bool) -> Pairs:
    """Header pairs that may go out: hop-by-hop ones, those ``Connection`` names, and ``host`` are taken out.

    Args:
        headers: As planned.
        framed: The transport sets the length itself (whole body in memory), so ``content-length`` goes too.
    """
    out: Pairs = []
    named: set[str] = set()
    for pair in headers:
        name = pair[0].lower()
        if name in _OURS:
            if name == "connection":
                named.update(token.strip().lower() for token in pair[1].split(","))
            continue
        if framed and name == "content-length":
            continue
        out.append(pair)
    return [pair for pair in out if pair[0].lower() not in named] if named else out


class Source:
    """An upload's body on its way out: remembers why it failed, so that the error can name it.

    A library that is handed a failing iterator aborts the request but may lose the exception.

    Attributes:
        failed: Set once the source has failed; raise it, from ``cause``, in place of the library's own error.
    """

    __slots__ = ("_body", "_stuck", "_timeout_s", "_timer", "cause", "failed")

    def __init__(self, body: AsyncIterator[bytes], write_timeout_s: float) -> None:
        self._body = body
        self._timeout_s = write_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: Callable[[], object] | None = None
        self.failed: httpx.TransportError | None = None
        self.cause: BaseException | None = None

    def __enter__(self) -> None:
        """Whatever the source raises comes out as a WriteError, remembered for the caller."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StopAsyncIteration | asyncio.CancelledError | GeneratorExit):
            return
        self.cause = error
        self.failed = httpx.WriteError("The upload's source failed; the request was aborted.")
        raise self.failed from error

    def watch(self, stuck: Callable[[], object]) -> None:
        """Call ``stuck`` when a piece is not taken in ``write_timeout_s`` (the next one is not asked for)."""
        self._stuck = stuck

    def rest(self) -> None:
        """Watch no longer."""
        self._stuck = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self.failed = httpx.WriteTimeout(f"The upstream took nothing of the upload for {self._timeout_s:g} s.")
        if self._stuck is not None:
            self._stuck()

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> bytes:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self:
            piece = await self._body.__anext__()
        if self._stuck is not None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._too_slow)
        return piece


class BodyStream(httpx.AsyncByteStream):
    """An ``Inbound`` as an httpx response body."""

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inbound:
            yield piece

    async def aclose(self) -> None:
        """Reset the stream if it is not over."""
        await self._inbound.aclose()


def outbound_of(request: httpx.Request) -> Outbound:
    """The same request as an ``Outbound``; httpx's own defaults stay as the caller's httpx put them."""
    stream = request.stream
    body: bytes | AsyncIterator[bytes]
    if isinstance(stream, httpx.ByteStream):
        body = b"".join(stream)
    elif isinstance(stream, httpx.AsyncByteStream):
        body = aiter(stream)
    else:
        raise httpx.UnsupportedProtocol("The request body must be bytes or asynchronous.", request=request)
    url = request.url
    return Outbound(
        method=request.method,
        origin=f"{url.scheme}://{url.netloc.decode('ascii')}",
        target=request.extensions.get("target", url.raw_path).decode("latin-1"),
        headers=tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers.raw),
        body=body,
    )


def response_of(inbound: Inbound) -> httpx.Response:
    """The same answer as an httpx response, body unread."""
    return httpx.Response(
        inbound.status,
        headers=[(n.encode("latin-1"), v.encode("latin-1")) for n, v in inbound.headers],
        stream=BodyStream(inbound),
        extensions={"http_version": inbound.http_version.encode("ascii")},
    )


async def exchange(send: Callable[[Outbound], Awaitable[Inbound]], request: httpx.Request) -> httpx.Response:
    """``handle_async_request`` of any transport: httpx's interface on top of ``send``."""
    try:
        return response_of(await send(outbound_of(request)))
    except httpx.TransportError as error:
        error.request = request
        raise
