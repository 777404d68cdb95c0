"""httpcore (pure Python) as one lane's transport: the fallback, and the one that sends any target byte for byte.

HTTP/2 here serves JSON exchanges only (with ``transport_reset``'s mending): one slow reader or one timeout in its
HTTP/2 holds up or kills all siblings (facts 8), so what may stream goes over HTTP/1.1. The pool makes that choice.

Nothing is added to a request but ``Host`` and the body's framing. Connections are counted by httpcore's
trace events, so the figures are exact; what a request waits for a connection that another one opens is not told,
nor is a connection's end. Its loggers are switched off on import: ``Logger.isEnabledFor`` takes a
lock that gevent patches, and the loop thread must not touch it (facts 3).

Whether a peer lives: httpcore sends no PING over HTTP/2, and HTTP/1.1 has none. The kernel's keep-alive finds a
host that is gone within the ping interval and timeout (on Linux also where something was sent); a host that is
there and says nothing is found by the silence and request timeouts only.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import hpack.hpack
import hpack.table
import httpcore
import httpx
from httpcore._async import connection, http2, http11

from app.exchange import Outbound
from app.upstream.transport_base import Inbound, NotProcessed, Pairs, Source, exchange, forwardable
from app.upstream.transport_reset import ResettingPool
from app.upstream.transport_streams import Backend
from app.upstream.trust import trust

for _logger in (connection.logger, http11.logger, http2.logger, hpack.hpack.log, hpack.table.log):
    _logger.disabled = True

_MAP: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)

FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAKS = re.compile(r"[\r\n\0]")
"""RFC 9110 sections 5.6.2 and 5.5; h11 checks for itself, h2 does not."""

Opened = Callable[[bool], None]


def mapped(error: BaseException) -> httpx.TransportError:
    """The httpx exception for one of ``FAILURES``, by type."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpcore.LocalProtocolError) and _of_h2(error):
        return httpx.RemoteProtocolError(text)
    if isinstance(error, httpcore.RemoteProtocolError) and _refused(error):
        return NotProcessed(text)
    for theirs, ours in _MAP:
        if isinstance(error, theirs):
            return ours(text)
    return httpx.ReadError(text)


def _of_h2(error: httpcore.LocalProtocolError) -> bool:
    """httpcore calls it local when the peer broke HTTP/2 for all streams; then something may have been sent."""
    return bool(error.args) and isinstance(error.args[0], h2.exceptions.ProtocolError)


def _refused(error: httpcore.RemoteProtocolError) -> bool:
    """The peer reset the stream with REFUSED_STREAM."""
    event = error.args[0] if error.args else None
    return isinstance(event, h2.events.StreamReset) and event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM


class HttpcoreInbound(Inbound):
    """An answer of httpcore."""

    __slots__ = ("_chunks", "_response", "connect_ms", "tls_ms")

    def __init__(self, response: httpcore.Response) -> None:
        version = response.extensions.get("http_version", b"HTTP/1.1").decode("ascii")
        pairs: Pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in response.headers]
        super().__init__(response.status, pairs, version)
        self._response = response
        self._chunks = response.aiter_stream()
        self.connect_ms = self.tls_ms = 0.0

    async def __anext__(self) -> bytes:
        """See ``Inbound``."""
        if self._closed or self._ended:
            raise StopAsyncIteration
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            await self._response.aclose()  # what makes the connection free again
            self._finish()
            raise
        except FAILURES as error:
            self._finish()  # httpcore has closed it
            raise mapped(error) from error

    async def _close(self) -> None:
        await self._response.aclose()


class HttpcoreTransport(httpx.AsyncBaseTransport):
    """One httpcore pool for one origin.

    Args:
        http2: Offer HTTP/2 by ALPN; False speaks HTTP/1.1 only.
        max_connections: Cap of open connections.
        max_keepalive: Idle connections kept.
        keepalive_expiry_s: Idle connections are not used again after this, and closed by the next request.
        connect_timeout_s: For DNS and TCP, and once more for TLS.
        write_timeout_s: Longest wait for the peer to take a piece of the request.
        context: From ``trust``; None builds one.
        ca_pem: Certificates trusted in addition to the system's, where ``context`` is None.
        opened: Called whenever a connection is ready; with True after its TLS handshake.
        probe_after_s: Silence after which the kernel probes whether the peer's host is there; 0 is off.
        probe_for_s: How long its answer may take.
    """

    def __init__(
        self,
        *,
        http2: bool = False,
        max_connections: int = 100,
        max_keepalive: int = 100,
        keepalive_expiry_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        write_timeout_s: float = 15.0,
        context: ssl.SSLContext | None = None,
        ca_pem: bytes | None = None,
        opened: Opened | None = None,
        probe_after_s: float = 0.0,
        probe_for_s: float = 10.0,
    ) -> None:
        self._opened = opened
        self._write_timeout_s = write_timeout_s
        self._timeouts = {"connect": connect_timeout_s, "write": write_timeout_s, "read": None, "pool": None}
        self._pool = ResettingPool(
            ssl_context=context if context is not None else trust(ca_pem, http2=http2),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive,
            keepalive_expiry=keepalive_expiry_s,
            http1=True,
            http2=http2,
            retries=0,
            network_backend=Backend(probe_after_s, probe_for_s, max(probe_after_s + probe_for_s, write_timeout_s)),
        )

    def connections(self) -> int:
        """Connections that are open, or being opened."""
        return sum(1 for connection in self._pool.connections if not connection.is_closed())

    async def send(self, outbound: Outbound) -> Inbound:
        """Send one request, return at its response head; cancelling closes the HTTP/1.1 connection.

        Raises:
            httpx.TransportError: As listed in ``transport_base``.
        """
        body = outbound.body
        source = None if isinstance(body, bytes) else Source(body, self._write_timeout_s)
        watch = _Watch(self._opened)
        request = self._request(outbound, source, watch)
        try:
            response = await _alone(self._pool.handle_async_request(request), source)
        except (*FAILURES, httpx.TransportError) as error:
            if source is not None and source.failed is not None:
                raise source.failed from source.cause
            raise mapped(error) from error
        inbound = HttpcoreInbound(response)
        inbound.connection = "new" if watch.opened else "reused"
        inbound.connect_ms, inbound.tls_ms = watch.connect_ms, watch.tls_ms
        return inbound

    def _request(self, outbound: Outbound, source: Source | None, watch: _Watch) -> httpcore.Request:
        origin = httpcore.URL(outbound.origin)
        headers = [("host", outbound.origin.partition("://")[2])]
        headers += forwardable(outbound.headers, source is None)
        if source is None:
            if outbound.body or outbound.method in ("POST", "PUT", "PATCH"):
                headers.append(("content-length", str(len(outbound.body))))  # type: ignore[arg-type]
        elif not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("transfer-encoding", "chunked"))
        if not _TOKEN.fullmatch(outbound.method) or not all(
            _TOKEN.fullmatch(name) and not _BREAKS.search(value) for name, value in headers
        ):
            raise httpx.LocalProtocolError("The method, or a header's name or value, is not valid HTTP.")
        return httpcore.Request(
            method=outbound.method.encode("latin-1"),
            url=httpcore.URL(
                scheme=origin.scheme, host=origin.host, port=origin.port, target=outbound.target.encode("latin-1")
            ),
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            content=outbound.body if source is None else source,
            extensions={"timeout": self._timeouts, "trace": watch},
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """httpx's interface, built on ``send``."""
        return await exchange(self.send, request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _Watch:
    """httpcore's trace callback for one request: notices a connection being made, and how long it took.

    Attributes:
        opened: A connection was made.
        connect_ms: DNS and TCP; ``tls_ms``: the TLS handshake.
    """

    __slots__ = ("_report", "_started", "connect_ms", "opened", "tls_ms")

    def __init__(self, report: Opened | None) -> None:
        self._report = report
        self._started = 0.0
        self.opened = False
        self.connect_ms = self.tls_ms = 0.0

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.started", "connection.start_tls.started"):
            self._started = time.monotonic()
        elif event == "connection.connect_tcp.complete":
            self.connect_ms = self._tell(tls=False)
        elif event == "connection.start_tls.complete":
            self.tls_ms = self._tell(tls=True)

    def _tell(self, *, tls: bool) -> float:
        self.opened = True
        if self._report is not None:
            self._report(tls)
        return (time.monotonic() - self._started) * 1000.0


async def _alone(work: Coroutine[Any, Any, httpcore.Response], source: Source | None) -> httpcore.Response:
    """Run in a task of its own, so that however often the caller is cancelled, the work is cancelled once.

    A second cancel in the middle of httpcore's clean-up leaks the pooled connection (encode/httpx#3782).
    """
    task = asyncio.get_running_loop().create_task(work)
    if source is not None:
        source.watch(task.cancel)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if source is not None and source.failed is not None:
            raise source.failed from None  # it was the write timeout that cancelled
        task.cancel()
        task.add_done_callback(_forget)
        raise
    finally:
        if source is not None:
            source.rest()


def _forget(task: asyncio.Task[httpcore.Response]) -> None:
    """Take the outcome of an abandoned exchange; an answer that came all the same is closed."""
    if not task.cancelled() and task.exception() is None:
        closing = asyncio.ensure_future(task.result().aclose())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()


__all__ = ["FAILURES", "HttpcoreInbound", "HttpcoreTransport", "mapped", "trust"]
