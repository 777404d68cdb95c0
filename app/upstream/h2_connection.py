"""One HTTP/2 client connection: its beginning, the streams opened on it, its end (RFC 9113).

    made ──peer's SETTINGS──> open ──GOAWAY, ids used up, retire──> draining ──last stream over──> closed
      └────── lost, protocol error, silence after a PING ────────────────┴────────────────────────> closed

What the end of the connection means for a stream: above GOAWAY's last id, or still unsent: not processed; else
broken.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.upstream.h2_line import Line
from app.upstream.h2_outbox import Body
from app.upstream.h2_receive import CONNECTION_WINDOW, HEADER_LIST_BYTES, Receiver
from app.upstream.h2_stream import WINDOW, Broken, H2Stream, Reset, Unprocessed
from app.upstream.sockets import taken_bytes
from app.wire import h2_frames as h2

LAST_ID = 2**31 - 3
CLOSE_LIMIT_S = 2.0

_HELLO = (
    h2.PREFACE
    + h2.settings(
        (
            (h2.ENABLE_PUSH, 0),
            (h2.INITIAL_WINDOW_SIZE, WINDOW),
            (h2.MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES),
        )
    )
    + h2.window_update(0, CONNECTION_WINDOW - h2.DEFAULT_WINDOW)
)


class H2Connection(Receiver):
    """One connection.

    Args:
        loop: The loop it lives on.
        closed: Called once with the reason when it is over.
        capacity: Most streams at a time, whatever the peer allows.

    Attributes:
        line: Who waits for a place.
        made_at: ``loop.time()`` of its beginning; ``idle_since``: of the last end of a stream.
        stale: It has been idle and silent for so long that the next stream is to call this, which sends a PING.
        owes: The answer to a PING is late.
        broken: Streams that were not over at its end.
        gone: Done when the socket is closed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, closed: Callable[[str], None], capacity: int = 2**31
    ) -> None:
        super().__init__(loop, capacity)
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self.line = Line(loop)
        self.made_at = self.idle_since = loop.time()
        self.stale: Callable[[], None] | None = None
        self.owes = False
        self.broken = 0
        self.gone: asyncio.Future[None] = loop.create_future()
        self.out.push(_HELLO)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        self.attach(transport)  # type: ignore[arg-type]

    def attach(self, transport: asyncio.Transport) -> None:
        """TLS is up (``start_tls`` does not call ``connection_made``)."""
        self._transport = transport
        self.out.attach(transport)

    def eof_received(self) -> None:
        """The peer sends no more: no new streams; the transport closes itself.

        From here on it swallows what it is given, so nothing is given to it: what waits counts as unsent.
        """
        self.draining = self.out.shut = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._end(f"{type(exc).__name__}: {exc}" if exc else "The peer closed the connection.")
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        """The transport's buffer is full: no DATA for now."""
        self.out.full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.out.full = False
        self._owed = 0
        self.out.pump()

    # --- streams

    @property
    def usable(self) -> bool:
        """It takes new streams."""
        return not (self.draining or self.ended)

    @property
    def has_room(self) -> bool:
        """A stream can be opened now, so it is ``usable`` too."""
        line = self.line
        return not (self.draining or line.waiting) and len(self.streams) + line.promised < self.max_streams

    @property
    def in_flight(self) -> int:
        """Streams that are not over, and places promised to those who waited for one."""
        return len(self.streams) + self.line.promised

    def open(self, stream: H2Stream, block: bytes, body: bytes | None) -> None:
        """Send a request; call only while ``usable``. A ``body`` of None follows piece by piece (``queue``)."""
        stream_id = self.next_id
        self.next_id = stream_id + 2
        if stream_id >= LAST_ID:
            self.draining = True
        self.streams[stream_id] = stream
        stream.home, stream.stream_id = self, stream_id
        if self.table_off:
            block, self.table_off = self.table_off + block, b""
        if self.stale is not None:
            self.stale()
        out = self.out
        if out.open(stream_id, block, body):
            return
        stream.body = Body(stream_id, out.initial_window, _nothing)
        if body is not None:
            out.queue(stream.body, body, True)

    def let_go(self, stream: H2Stream, code: int) -> None:
        """Reset a stream and forget it, unless it is over."""
        if self.streams.get(stream.stream_id) is stream:
            self.out.push(h2.rst_stream(stream.stream_id, code))
            self._forget(stream)

    def refill(self, stream_id: int, size: int) -> None:
        """Its reader took ``size`` bytes."""
        if not self.ended:
            self.out.push(h2.window_update(stream_id, size))

    async def room(self) -> bool:
        """Wait for a place; False: the connection takes no more. ``open`` must follow a True at once."""
        if not self.usable:
            return False
        return await self.line.wait(self.admit) and self.usable

    def admit(self) -> None:
        """Promise the places that are free to those who wait."""
        if self.usable:
            self.line.admit(self.max_streams - len(self.streams))

    def over(self, stream: H2Stream) -> None:
        """The answer is whole; a request that is not needs no rest (section 8.1)."""
        if stream.body is not None and stream.stop_sending():
            self.out.push(h2.rst_stream(stream.stream_id, h2.CANCEL))
        self._forget(stream)

    def drop(self, stream: H2Stream, error: Unprocessed | Broken | Reset) -> None:
        """The stream failed."""
        self._forget(stream)
        stream.fail(error)

    def _forget(self, stream: H2Stream) -> None:
        del self.streams[stream.stream_id]
        if stream.body is not None:  # as long as it is sent, by a feed or without
            stream.stop_sending()
        if not self.streams:
            self.idle_since = self.loop.time()
            if self.draining:
                self._close_if_drained()
        if self.line.waiting:
            self.admit()

    # --- the end

    def retire(self, why: str) -> None:
        """No new streams; closed when the last one is over."""
        self.draining = True
        self.why = why
        self.line.dissolve()
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.draining and not self.streams:
            self.shut(h2.NO_ERROR, self.why)

    def ask(self) -> None:
        """Send a PING; whatever comes next shows that the peer lives."""
        self.out.push(h2.ping(b"penstock"))

    def taken_bytes(self) -> int:
        """Bytes that the peer's kernel has taken so far; 0 where that is not known."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return 0 if sock is None else taken_bytes(sock.fileno())

    def shut(self, code: int, why: str) -> None:
        """Say GOAWAY and close; streams that are not over fail."""
        if self.ended:
            return
        self.out.push(h2.goaway(code))
        self.out.flush()
        self._end(why, Reset if code else Broken)
        if self._transport is not None:
            self._transport.close()

    def abort(self, why: str) -> None:
        """Close without a word: the peer is dead."""
        self.why = why
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: str, kind: type[Broken] | type[Reset] = Broken) -> None:
        if self.ended:
            return
        self.ended = self.draining = self.out.shut = True
        self.why = self.why or why
        streams, self.streams = list(self.streams.items()), {}
        self.broken = len(streams)
        for stream_id, stream in streams:
            stream.stop_sending()
            unsent = stream_id > self.out.sent_id
            stream.fail(Unprocessed(why) if unsent else kind(why))
        self.line.dissolve()
        if not self.ready.done():
            self.ready.set_result(None)
        self._closed(self.why)


def _nothing() -> None:
    """Nobody waits for a whole body to be framed."""
