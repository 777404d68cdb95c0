"""Penstock's own HTTP/2 client: one connection to one origin, opened when needed, replaced when it is over.

    cold ──connect, first send──> opening ──peer's SETTINGS──> open ──GOAWAY, idle, lost──> cold
                                     └──failed: every waiting send gets the error──> cold

Context: in a gunicorn gevent worker the Rust client costs 0.49 ms CPU per request, a quarter of it its threads'
fight for the GIL; its windows are fixed; it adds headers and rewrites targets; it tells nothing of connections.
Choice: everything on the loop's own thread, in Python, written for short paths.
Price: our own HTTP/2; hence the unit tests against another implementation and the contract suite.

How a failure reaches the caller (``transport_base`` has the rest):

    no connection, or closed unused   httpx.ConnectError, httpx.ConnectTimeout
    peer speaks HTTP/1.1 only         ``NotHttp2``
    nothing was processed             ``NotProcessed``: refused, beyond a GOAWAY, or lost before it was written
    connection broke in mid-exchange  httpx.ReadError
    reset, malformed, truncated       httpx.RemoteProtocolError
    upload's source failed, too slow  httpx.WriteError, httpx.WriteTimeout

One send puts a request on the wire once at most: whoever may repeat it is asked (``attempts``). A request that
waits for a place on a connection which then takes no more goes to the next connection; it was never written.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from app.exchange import Outbound
from app.upstream.h2_connect import (
    Closed,
    ConnectTooSlowError,
    NoConnectionError,
    NoHttp2Error,
    Opened,
    connect,
)
from app.upstream.h2_connection import CLOSE_LIMIT_S, H2Connection
from app.upstream.h2_stream import Broken, H2Failure, H2Stream, Unprocessed, Unsent
from app.upstream.h2_upload import upload
from app.upstream.h2_watch import Watch
from app.upstream.transport_base import Inbound, NotProcessed, Source, exchange, forwardable
from app.upstream.trust import trust
from app.wire.h2_encode import RequestEncoder, UnfitHeaderError
from app.wire.h2_frames import NO_ERROR

_SENDS_LENGTH = frozenset({"POST", "PUT", "PATCH"})


class NotHttp2(httpx.ConnectError):
    """The peer does not speak HTTP/2; nothing was sent."""


_RAISED: tuple[tuple[type[H2Failure], type[httpx.TransportError]], ...] = (
    (Unprocessed, NotProcessed),
    (Unsent, httpx.WriteError),
    (Broken, httpx.ReadError),
    (H2Failure, httpx.RemoteProtocolError),
)


class H2Inbound(H2Stream):
    """An answer of this transport."""

    __slots__ = ()

    def failure(self, error: H2Failure) -> Exception:
        """The httpx exception for ``error``; an upload's own failure as it was."""
        if isinstance(error, Unsent) and self.source is not None and self.source.failed is not None:
            return self.source.failed
        kind = next(theirs for ours, theirs in _RAISED if isinstance(error, ours))
        raised = kind(str(error))
        raised.__cause__ = error
        return raised


class H2Transport(httpx.AsyncBaseTransport):
    """One HTTP/2 connection at a time to one origin.

    Args:
        origin: ``https://host[:port]``.
        context: From ``trust``, shared by all connections; None makes one.
        ca_pem: Certificates trusted in addition to the system's, where ``context`` is None.
        max_streams: Streams at a time, where the peer allows more.
        keepalive_expiry_s: An idle connection is closed after this.
        connect_timeout_s: For DNS, TCP, TLS and the peer's SETTINGS together.
        write_timeout_s: Longest wait for the peer to take a piece of an upload.
        ping_interval_s: Silence after which a connection in use is sent a PING; 0 = never. See ``h2_watch``.
        ping_timeout_s: Silence after that PING for which the connection counts as dead.
        opened: Called with the figures of every connection that was opened.
        closed: Called with what there is to say when a connection that was opened is over.

    Attributes:
        origin: As given.
        handshakes: TLS handshakes that led to a connection, so connections opened.
        connect_ms: DNS and TCP of the last one; ``tls_ms``: its TLS handshake.
    """

    def __init__(
        self,
        origin: str,
        *,
        context: ssl.SSLContext | None = None,
        ca_pem: bytes | None = None,
        max_streams: int = 100,
        keepalive_expiry_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        write_timeout_s: float = 15.0,
        ping_interval_s: float = 0.0,
        ping_timeout_s: float = 5.0,
        opened: Callable[[Opened], None] | None = None,
        closed: Callable[[Closed], None] | None = None,
    ) -> None:
        parts = urlsplit(origin)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
            raise httpx.UnsupportedProtocol("HTTP/2 needs an origin of the form https://host[:port].")
        self.origin = origin
        self._host, self._port = parts.hostname, parts.port or 443
        self._encoder = RequestEncoder("https", parts.netloc.rpartition("@")[2])
        self._context = context if context is not None else trust(ca_pem)
        self._max_streams = max_streams
        self._connect_timeout_s = connect_timeout_s
        self._write_timeout_s = write_timeout_s
        self._watch = Watch(keepalive_expiry_s, ping_interval_s, ping_timeout_s)
        self._tell_opened = opened
        self._tell_closed = closed
        self._connection: H2Connection | None = None
        self._fresh = False
        self._leaving: set[H2Connection] = set()
        self._opening: asyncio.Task[H2Connection] | None = None
        self._shut = False
        self.handshakes = 0
        self.connect_ms = 0.0
        self.tls_ms = 0.0

    # --- what a pool asks

    @property
    def usable(self) -> bool:
        """A connection is open and takes new streams."""
        return self._connection is not None and self._connection.usable

    @property
    def carries(self) -> int:
        """Streams at a time that a connection which takes new ones carries; 0: there is none."""
        connection = self._connection
        return 0 if connection is None or connection.draining else connection.max_streams

    @property
    def capacity(self) -> int:
        """Streams at a time: the peer's limit or ours, the smaller one; ours while there is no connection."""
        return self._connection.max_streams if self._connection is not None else self._max_streams

    @property
    def in_flight(self) -> int:
        """Streams that are not over on the connection that takes new ones."""
        return self._connection.in_flight if self._connection is not None else 0

    @property
    def connections(self) -> int:
        """Connections that are open: the one that takes streams, and those that only finish theirs."""
        return len(self._leaving) + (self._connection is not None)

    @property
    def opening(self) -> bool:
        """A connection is being opened."""
        return self._opening is not None

    def tell(self, opened: Callable[[Opened], None], closed: Callable[[Closed], None]) -> None:
        """Call these from now on, as the arguments of the same names."""
        self._tell_opened, self._tell_closed = opened, closed

    async def connect(self) -> None:
        """Open the connection unless it is open; nothing is sent on it but the preface.

        Raises:
            httpx.ConnectTimeout: Not within ``connect_timeout_s``.
            NotHttp2: The peer does not speak it.
            httpx.ConnectError: Anything else; the text says what.
        """
        await self._connected()
        self._fresh = False

    async def ready(self) -> None:
        """The same for a request that follows at once, which finds ``capacity`` known.

        Raises:
            As ``connect``.
        """
        await self._connected()

    # --- connections

    async def _connected(self) -> H2Connection:
        connection = self._connection
        if connection is not None and connection.usable:
            return connection
        if self._shut:
            raise httpx.ConnectError("The transport is closed.")
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except ConnectTooSlowError as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except NoHttp2Error as error:
            raise NotHttp2(str(error)) from error
        except NoConnectionError as error:
            raise httpx.ConnectError(str(error)) from error
        except asyncio.CancelledError:
            if opening.cancelled() and self._shut:
                raise httpx.ConnectError("The transport is closed.") from None
            raise

    async def _open(self) -> H2Connection:
        made: list[H2Connection] = []
        connection, opened = await connect(
            self._host,
            self._port,
            self._context,
            self._connect_timeout_s,
            lambda why: self._over(made, why),
            self._max_streams,
        )
        made.append(connection)
        self.handshakes += 1
        self.connect_ms, self.tls_ms = opened.connect_ms, opened.tls_ms
        self._retire_current()
        self._connection, self._fresh = connection, True
        self._watch.begin(connection)
        if self._tell_opened is not None:
            self._tell_opened(opened)
        return connection

    def _retire_current(self) -> None:
        if self._connection is not None and not self._connection.ended:
            self._leaving.add(self._connection)

    def _opened(self, task: asyncio.Task[H2Connection]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # every waiting send raises it; nobody else need hear of it

    def _over(self, made: list[H2Connection], why: str) -> None:
        if not made:
            return  # it never was open: connect raises
        over = made[0]
        self._leaving.discard(over)
        if self._connection is over:
            self._connection = None
        if over.calm:
            self._watch = self._watch.calmer()
        if self._tell_closed is not None:
            age_s = over.loop.time() - over.made_at
            unresponsive = over.owes and not over.heard
            self._tell_closed(Closed(why, age_s, over.next_id // 2, over.broken, unresponsive))

    # --- requests

    async def send(self, outbound: Outbound) -> Inbound:
        """Send one request, return at its response head; cancelling resets the stream at once.

        Raises:
            httpx.TransportError: As listed above.
        """
        if outbound.origin != self.origin:
            raise httpx.LocalProtocolError("The request is for another origin.")
        block = self._block(outbound)
        connection = self._connection
        if connection is None or not connection.has_room:
            connection = await self._with_room()
        stream = H2Inbound(connection.loop, outbound.method)
        stream.connection = "new" if self._fresh else "reused"
        self._fresh = False
        body = outbound.body
        if isinstance(body, bytes):
            connection.open(stream, block, body)
        else:
            connection.open(stream, block, None)
            stream.source = Source(body, self._write_timeout_s)
            upload(connection, stream, stream.source, outbound.headers, httpx.TransportError)
        try:
            await stream.head
        except asyncio.CancelledError:
            stream.abandon()
            raise
        if not stream.status:
            error = stream.error or Broken("No answer.")
            raise stream.failure(error)
        return stream

    async def _with_room(self) -> H2Connection:
        """A connection on which a stream is to be opened at once."""
        while True:
            connection = self._connection
            if connection is None or not connection.usable:
                connection = await self._connected()
                if not connection.usable:  # as good as none; asking again and again would be a storm
                    raise httpx.ConnectError(f"A new connection was closed at once: {connection.why}")
            if connection.has_room or await connection.room():
                return connection

    def _block(self, outbound: Outbound) -> bytes:
        body = outbound.body
        length: int | None = None
        if isinstance(body, bytes):
            length = len(body) if body or outbound.method in _SENDS_LENGTH else -1
        try:
            block = self._encoder.block(outbound.method, outbound.target, outbound.headers, length)
            if block is None:  # a Connection header names others
                left = forwardable(outbound.headers, length is not None)
                block = self._encoder.block(outbound.method, outbound.target, left, length)
        except UnfitHeaderError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        return block or b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """httpx's interface, built on ``send``; httpx's per-phase timeouts are not used."""
        return await exchange(self.send, request)

    async def aclose(self) -> None:
        """Close the connections; streams in flight fail. Safe to call twice."""
        self._shut = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        connections = [*self._leaving, *([self._connection] if self._connection is not None else [])]
        for connection in connections:
            connection.shut(NO_ERROR, "The gateway closed the connection.")
        if connections:
            await asyncio.wait([connection.gone for connection in connections], timeout=2 * CLOSE_LIMIT_S)


__all__ = ["H2Inbound", "H2Transport", "NotHttp2", "NotProcessed"]
