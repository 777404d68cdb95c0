"""The Rust client (pyqwest: reqwest, hyper, rustls) as one lane's transport.

Context: httpx over HTTP/2 never resets a stream, so a client that leaves is still billed (facts 8).
Choice: pyqwest 0.12. Of the two Rust clients only this one resets a stream that is cancelled before its response
head (500 of 500 seen upstream within 0.1 s; pyreqwest 0.15: 0 of 500, its task is detached).
Price: hyper's HTTP/2 windows are fixed (2 MiB a stream, 5 MiB a connection), so a lane with stalled readers gets
no new streams (``lanes``); targets go through the WHATWG URL parser, so some requests are sent by httpcore
instead (``transport_exact``).

What it would do by itself: reqwest sends a request up to twice more when the peer refuses its stream, or says
GOAWAY before it (its default for protocol NACKs), and pyqwest has no option for that. It repeats only what it can
clone, so over HTTP/2 a body in memory is handed over as a stream of one piece, and nothing is sent again (price:
0.21 ms CPU per JSON request instead of 0.17). What is left: a request without a body (GET, HEAD) that is refused
is sent 3 times in all, since an empty stream would not leave as no body does over HTTP/1.1, which ALPN may still
choose. Over HTTP/1.1 nothing is ever refused, so nothing is repeated. A request of which hyper has written nothing
yet may move on to another connection; the upstream sees it once.

What pyqwest would add or divert is switched off here: redirects, decompression, cookies, telemetry, total
timeout, proxies from the environment (a proxy that excludes every host keeps reqwest from reading HTTP_PROXY), and
``accept: */*`` (hyper strips what a ``connection`` header names from HTTP/2 requests).

What it does not offer: HTTP/2 PINGs (hyper has them, pyqwest 0.12 no option for them), the idle time before the
kernel's keep-alive probes, or anything about its connections: how long one took to open is not known, and a peer
that is there and says nothing is found by the silence and request timeouts only.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pyqwest

from app.exchange import Outbound
from app.upstream.transport_base import Inbound, NotProcessed, Pairs, Source, exchange, forwardable

FAILURES = (
    OSError,  # ConnectionError, TimeoutError and pyqwest.ConnectTimeout are OSErrors
    pyqwest.ReadError,
    pyqwest.WriteError,
    pyqwest.RemoteProtocolError,
    ValueError,
)
"""What pyqwest raises: its own six, and ValueError for a request that cannot be built."""

_LOST_RACE = "ALPN upgraded to HTTP/2"
"""hyper's word for a request whose new connection came up beside another one: it was handed to neither."""

RACES = 20
"""Times a request that was handed to no connection is handed over anew; none of them reaches the upstream."""

_DIRECT = pyqwest.Proxy("http://127.0.0.1:9", no_proxy="*,0.0.0.0/0,::/0")


def mapped(error: BaseException) -> httpx.TransportError:
    """The httpx exception for one of ``FAILURES``, told by type (and by text where hyper has no type for it).

    pyqwest raises ConnectionError for the connect phase only (refused, reset or closed during the handshake, DNS,
    untrusted certificate) and ConnectTimeout where that phase was too slow; a reset later on is a WriteError or
    ReadError (measured with pyqwest 0.12.0; the contract suite holds it to that).
    """
    text = str(error) or type(error).__name__
    if isinstance(error, ConnectionError):
        return httpx.ConnectTimeout(text) if isinstance(error, TimeoutError) else httpx.ConnectError(text)
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout(text)
    if isinstance(error, pyqwest.StreamError) and error.code == pyqwest.StreamErrorCode.REFUSED_STREAM:
        return NotProcessed(text)
    if lost_race(error):
        return NotProcessed(text)
    if isinstance(error, pyqwest.RemoteProtocolError):
        return httpx.RemoteProtocolError(text)
    if isinstance(error, pyqwest.WriteError):
        return httpx.WriteError(text)
    if isinstance(error, ValueError):
        return httpx.LocalProtocolError(text)
    return httpx.ReadError(text)


def lost_race(error: BaseException) -> bool:
    """Nothing was sent: see ``_LOST_RACE`` (where the peer allows fewer streams than the lane takes)."""
    return isinstance(error, pyqwest.WriteError) and _LOST_RACE in str(error)


def _request(outbound: Outbound, headers: Pairs, content: bytes | AsyncIterator[bytes]) -> pyqwest.Request:
    url = outbound.origin + outbound.target
    return pyqwest.Request(outbound.method, url, pyqwest.Headers(headers), content)


class _Once:
    """A whole body as a stream of one piece, which the Rust client cannot send again."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, b""
        if not body:
            raise StopAsyncIteration
        return body


class ReqwestInbound(Inbound):
    """An answer of pyqwest."""

    __slots__ = ("_content", "_response")

    def __init__(self, response: pyqwest.Response) -> None:
        version = "HTTP/2" if response.http_version == pyqwest.HTTPVersion.HTTP2 else "HTTP/1.1"
        super().__init__(response.status, list(response.headers.items()), version)
        self._response = response
        self._content = response.content

    async def __anext__(self) -> bytes:
        """See ``Inbound``."""
        if self._closed or self._ended:
            raise StopAsyncIteration
        try:
            return bytes(await self._content.__anext__())
        except StopAsyncIteration:
            self._finish()
            raise
        except FAILURES as error:
            self._finish()
            raise mapped(error) from error

    async def _close(self) -> None:
        await self._response.aclose()


class ReqwestTransport(httpx.AsyncBaseTransport):
    """One pyqwest client for one origin.

    Args:
        http2: Offer HTTP/2 by ALPN; False speaks HTTP/1.1 only. Plain ``http://`` is always HTTP/1.1.
        max_connections: Cap of open connections of this client (per address).
        max_keepalive: Idle connections kept.
        keepalive_expiry_s: Idle connections are closed after this.
        connect_timeout_s: For DNS, TCP and TLS together.
        write_timeout_s: Longest wait for the peer to take a piece of an upload.
        ca_pem: Certificates trusted in addition to the system's.
        mark: TCP keep-alive interval in seconds; it is how ``sockets`` tells this client's connections apart.
    """

    def __init__(
        self,
        *,
        http2: bool = True,
        max_connections: int = 4,
        max_keepalive: int = 100,
        keepalive_expiry_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        write_timeout_s: float = 15.0,
        ca_pem: bytes | None = None,
        mark: int = 30,
    ) -> None:
        self._write_timeout_s = write_timeout_s
        self._repeats = http2
        self._client = pyqwest.HTTPTransport(
            tls_include_system_certs=True,
            tls_ca_cert=ca_pem,
            http_version=None if http2 else pyqwest.HTTPVersion.HTTP1,
            proxy=_DIRECT,
            timeout=None,
            read_timeout=None,
            connect_timeout=connect_timeout_s,
            pool_idle_timeout=keepalive_expiry_s,
            pool_max_idle_per_host=max_keepalive,
            max_connections_per_address=max_connections,
            tcp_keepalive_interval=float(mark),
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
            enable_cookie_store=False,
            follow_redirects=False,
            enable_otel=False,
        )

    async def send(self, outbound: Outbound) -> Inbound:
        """Send one request, return at its response head; cancelling resets the stream.

        Raises:
            httpx.TransportError: As listed in ``transport_base``.
        """
        body = outbound.body
        headers = forwardable(outbound.headers, isinstance(body, bytes))
        if not any(name.lower() == "accept" for name, _ in headers):
            headers.append(("connection", "accept"))
        if not isinstance(body, bytes):
            return await self._upload(outbound, headers, Source(body, self._write_timeout_s))
        once = self._repeats and body != b""
        if once:
            headers.append(("content-length", str(len(body))))
        races = RACES
        while True:
            content = _Once(body) if once else body
            try:
                return ReqwestInbound(await self._client.execute(_request(outbound, headers, content)))
            except FAILURES as error:
                races -= 1
                if not races or not lost_race(error):
                    raise mapped(error) from error

    async def _upload(self, outbound: Outbound, headers: Pairs, source: Source) -> Inbound:
        try:
            sending = asyncio.ensure_future(self._client.execute(_request(outbound, headers, source)))
            source.watch(sending.cancel)
            return ReqwestInbound(await sending)
        except (*FAILURES, asyncio.CancelledError) as error:
            if source.failed is not None:
                raise source.failed from source.cause
            if isinstance(error, asyncio.CancelledError):
                raise
            raise mapped(error) from error
        finally:
            source.rest()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """httpx's interface, built on ``send``; httpx's per-phase timeouts are not used."""
        return await exchange(self.send, request)

    async def aclose(self) -> None:
        """Close the client and its idle connections."""
        await self._client.aclose()


__all__ = ["FAILURES", "Pairs", "ReqwestInbound", "ReqwestTransport", "mapped"]
