"""httpcore with what it lacks: abandoned streams are reset, a GOAWAY kills nobody, what was not sent is told.

    reset    httpcore closes a stream in its own books only; the peer goes on generating, and the connection window
             shrinks with every abandoned body (facts 8; encode/httpcore#943, #1022)
    GOAWAY   the h2 library takes no frame after it, though streams up to its last id may finish (RFC 9113 6.8);
             those beyond it were not processed
    unsent   httpcore does not say whether anything of a request was written; here a stream whose HEADERS were
             not, and an HTTP/1.1 request of which nothing was, fail like a refused stream (``Unprocessed``)

httpcore's pool goes to another connection by itself only with what it has not begun to write: a request whose
connection was closed, taken by another request or used up before its turn. That is no second try.

Choice: subclasses of httpcore's connection and pool and of h2's connection.
Price: they stand on private names of httpcore 1.x and h2 4.x; the contract suite fails if they move.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpcore
from httpcore._async.connection import AsyncHTTPConnection
from httpcore._async.http2 import AsyncHTTP2Connection

_NOTHING = httpcore.Request("GET", "http://reset.invalid/")
"""Stands for the request where httpcore only looks up timeouts."""


class GoAway(h2.events.Event):
    """The peer takes no new streams, and processed none beyond this one."""

    def __init__(self, last_stream_id: int) -> None:
        self.last_stream_id = last_stream_id


class Unprocessed(h2.events.StreamReset):
    """A stream beyond the GOAWAY's last, or one that never left."""

    def __init__(self, stream_id: int) -> None:  # on purpose not h2's: it differs between releases
        self.stream_id = stream_id
        self.error_code = h2.errors.ErrorCodes.REFUSED_STREAM
        self.remote_reset = True


class PatientH2(h2.connection.H2Connection):
    """The HTTP/2 state machine, which stays open after a GOAWAY."""

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[h2.events.Event]]:
        return [], [GoAway(frame.last_stream_id)]


class ResettingHTTP2(AsyncHTTP2Connection):
    """One HTTP/2 connection."""

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, expiry_s: float | None
    ) -> None:
        super().__init__(origin, stream, expiry_s)
        self._h2_state = PatientH2(config=self.CONFIG)
        self._last_processed: int | None = None
        self._reading: asyncio.Future[None] | None = None

    def is_available(self) -> bool:
        """New requests may come, unless the peer said GOAWAY or hung up."""
        gone = self._last_processed is not None or self._network_stream.get_extra_info("is_closed")
        return not gone and super().is_available()

    def has_expired(self) -> bool:
        """Idle for too long, or closed by the peer while idle (httpcore looks at that for HTTP/1.1 only)."""
        return super().has_expired() or (self.is_idle() and self._network_stream.get_extra_info("is_closed"))

    async def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        """One reads for all, the others wait for that and look again.

        httpcore's own queues them on a lock: one whose events are there already can then wait behind one whose are
        not, which reads, for as long as the peer has nothing more to say (seen: 23 of 60 answers held back by a
        neighbour's slow head).
        """
        if self._reading is not None:
            await asyncio.shield(self._reading)
            return
        self._reading = asyncio.get_running_loop().create_future()
        try:
            await super()._receive_events(request, stream_id)
        finally:
            self._reading.set_result(None)
            self._reading = None

    async def _read_incoming_data(self, request: httpcore.Request) -> list[h2.events.Event]:
        """As httpcore's own; a GOAWAY ends the streams beyond it here."""
        kept: list[h2.events.Event] = []
        for event in await super()._read_incoming_data(request):
            if isinstance(event, GoAway):
                self._last_processed = last = event.last_stream_id
                kept += [Unprocessed(stream_id) for stream_id in self._events if stream_id > last]
            else:
                kept.append(event)
        return kept

    async def _write_outgoing_data(self, request: httpcore.Request) -> None:
        """As httpcore's own; a peer that said GOAWAY may be gone while its last answers wait to be read here."""
        try:
            await super()._write_outgoing_data(request)
        except httpcore.WriteError:
            if self._last_processed is None:
                raise

    async def _send_request_headers(self, request: httpcore.Request, stream_id: int) -> None:
        """As httpcore's own; says so where the HEADERS did not leave.

        Raises:
            httpcore.RemoteProtocolError: With ``Unprocessed`` if nothing of the request was written.
        """
        if not self.is_available():  # it waited for a place here, and the peer said GOAWAY meanwhile
            raise httpcore.RemoteProtocolError(Unprocessed(stream_id))
        handed = self._network_stream.get_extra_info("handed")
        try:
            await super()._send_request_headers(request, stream_id)
        except (httpcore.WriteError, h2.exceptions.TooManyStreamsError) as error:
            if self._network_stream.get_extra_info("handed") == handed:  # nobody's bytes left, so neither did ours
                raise httpcore.RemoteProtocolError(Unprocessed(stream_id)) from error
            raise

    async def _wait_for_outgoing_flow(self, request: httpcore.Request, stream_id: int) -> int:
        """How much of the body may be sent now, at least a byte.

        httpcore's own waits on for a stream that the peer has refused or that lies beyond its GOAWAY.

        Raises:
            httpcore.RemoteProtocolError: The stream is over; with what ended it.
        """
        while True:
            for event in self._events[stream_id]:
                if isinstance(event, h2.events.StreamReset):
                    raise httpcore.RemoteProtocolError(event)
            state = self._h2_state
            flow = min(state.local_flow_control_window(stream_id), state.max_outbound_frame_size)
            if flow > 0:
                return flow
            await self._receive_events(request)

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
        if self._last_processed is not None and not self._events:
            await self.aclose()


class TellingHTTP11(httpcore.AsyncHTTP11Connection):
    """One HTTP/1.1 connection."""

    async def _send_request_headers(self, request: httpcore.Request) -> None:
        """As httpcore's own, which takes a failed write for an early answer and reads on; here nothing can come.

        Raises:
            httpcore.RemoteProtocolError: With ``Unprocessed``: nothing of the request was written.
        """
        handed = self._network_stream.get_extra_info("handed")
        try:
            await super()._send_request_headers(request)
        except httpcore.WriteError as error:
            if self._network_stream.get_extra_info("handed") == handed:
                raise httpcore.RemoteProtocolError(Unprocessed(0)) from error
            raise


class ResettingConnection(AsyncHTTPConnection):
    """A connection that becomes a ``ResettingHTTP2`` where the peer speaks HTTP/2."""

    _failure: Exception | None = None

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As httpcore's own, which then finds the connection made."""
        async with self._request_lock:
            if self._failure is not None:
                raise type(self._failure)(str(self._failure)) from self._failure
            if self._connection is None:
                await self._establish(request)
        return await super().handle_async_request(request)

    async def _establish(self, request: httpcore.Request) -> None:
        try:
            stream = await self._connect(request)
        except BaseException as error:
            self._connect_failed = True
            if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
                self._failure = error  # all who wait for this connection fail with it, not one after the other
            raise
        found = stream.get_extra_info("ssl_object")
        if found is not None and found.selected_alpn_protocol() == "h2":
            self._connection = ResettingHTTP2(self._origin, stream, self._keepalive_expiry)
        else:
            self._connection = TellingHTTP11(self._origin, stream, self._keepalive_expiry)


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
