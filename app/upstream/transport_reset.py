"""httpcore's HTTP/2 with what it lacks: a stream that is abandoned is reset, and its unread bytes are given back.

Context: httpcore closes a stream in its own books only; the peer goes on generating, and the connection window
shrinks with every abandoned body (facts 8; encode/httpcore#943, #1022).
Choice: two small subclasses that put a RST_STREAM where httpcore does its book-keeping.
Price: they stand on httpcore 1.0's private names; httpcore is pinned to 1.x by httpx, and the contract suite
fails if they move. What it cannot mend: the h2 library is closed by a GOAWAY, so exchanges in flight end with
RemoteProtocolError where hyper would finish them.
Runs on: loop.
"""

from __future__ import annotations

import h2.errors
import h2.events
import h2.exceptions
import httpcore
from httpcore._async.connection import AsyncHTTPConnection
from httpcore._async.http2 import AsyncHTTP2Connection

_NOTHING = httpcore.Request("GET", "http://reset.invalid/")
"""Stands for the request where httpcore only looks up timeouts."""


class ResettingHTTP2(AsyncHTTP2Connection):
    """One HTTP/2 connection."""

    async def _response_closed(self, stream_id: int) -> None:
        state = self._h2_state
        stream = state.streams.get(stream_id)
        if stream is not None and not stream.closed:
            for event in self._events.get(stream_id, ()):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    state.acknowledge_received_data(event.flow_controlled_length, stream_id)
            try:
                state.reset_stream(stream_id, error_code=h2.errors.ErrorCodes.CANCEL)
                await self._write_outgoing_data(_NOTHING)
            except (h2.exceptions.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException):
                pass  # the connection is gone, and the stream with it
        await super()._response_closed(stream_id)


class ResettingConnection(AsyncHTTPConnection):
    """A connection that becomes a ``ResettingHTTP2`` where the peer speaks HTTP/2."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As httpcore's own, which then finds the connection made."""
        async with self._request_lock:
            if self._connection is None:
                await self._establish(request)
        return await super().handle_async_request(request)

    async def _establish(self, request: httpcore.Request) -> None:
        try:
            stream = await self._connect(request)
        except BaseException:
            self._connect_failed = True
            raise
        found = stream.get_extra_info("ssl_object")
        if found is not None and found.selected_alpn_protocol() == "h2":
            self._connection = ResettingHTTP2(self._origin, stream, self._keepalive_expiry)
        else:
            self._connection = httpcore.AsyncHTTP11Connection(self._origin, stream, self._keepalive_expiry)


class ResettingPool(httpcore.AsyncConnectionPool):
    """A pool of such connections."""

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """One connection, not yet made."""
        return ResettingConnection(
            origin=origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=self._keepalive_expiry,
            http1=self._http1,
            http2=self._http2,
            retries=self._retries,
            network_backend=self._network_backend,
        )
