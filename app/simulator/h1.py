"""HTTP/1.1 server connection: keep-alive, pipelining, chunked bodies both ways.

Runs on: simulator loop.
"""

from __future__ import annotations

import time
from collections import deque

import httptools

from app.simulator.connection import Connection, Hub
from app.simulator.heads import Head, Pairs, h1_block, h1_status
from app.simulator.request import RequestHead
from app.simulator.sink import Sink

_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n\r\n"
_CLOSE = b"connection: close\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_BODYLESS = (204, 304)


class H1Sink(Sink):
    """One request of a connection.

    Attributes:
        keep: The connection outlives this exchange.
        early: Pieces of body that came before this request's turn; None once it is its turn.
        complete_early: Whether its body had ended by then.
    """

    __slots__ = ("_bodyless", "_chunked", "_conn", "_head_sent", "_http10", "complete_early", "early", "keep")

    def __init__(self, conn: H1Connection, request: RequestHead, *, keep: bool, http10: bool) -> None:
        super().__init__(conn.app, request)
        self._conn = conn
        self._head_sent = False
        self._chunked = False
        self._bodyless = request.method == "HEAD"
        self._http10 = http10
        self.keep = keep
        self.early: list[bytes] | None = []
        self.complete_early = False

    def begin(self) -> None:
        """It is this request's turn: earlier ones are answered."""
        early, self.early = self.early or [], None
        self.app.opened(self)
        if self.gone:
            return
        for data in early:
            self._conn.received(data, self)
        if self.complete_early:
            self.complete()

    def consumed(self, size: int) -> None:
        self._conn.consumed(size)

    @property
    def writable(self) -> bool:
        return not self.gone and not self._conn.congested

    def head(
        self, status: int, head: Head, *, request_id: bytes = b"", extra: Pairs = (), length: int | None = None
    ) -> None:
        if self.gone or self._head_sent:
            return
        self._head_sent = True
        if self.attempt is not None:
            head, extra = self.attempt.answered(status, head, extra)
        parts = [h1_status(status), head.h1]
        if head.dated:
            parts.append(self._conn.hub.dates.at(time.time()).h1)
        if request_id:
            parts.append(b"request-id: %s\r\n" % request_id)
        if extra:
            parts.append(h1_block(extra))
        self._bodyless = self._bodyless or status in _BODYLESS
        if length is not None:
            parts.append(b"" if status in _BODYLESS else b"content-length: %d\r\n" % length)
        elif self._http10:
            self.keep = False
        elif not self._bodyless:
            self._chunked = True
            parts.append(_CHUNKED)
        parts.append(_KEEP_ALIVE if self.keep else _CLOSE)
        self._conn.send(b"".join(parts))

    def write(self, data: bytes) -> None:
        if self.gone or self._bodyless or not data:
            return
        self.bytes_sent += len(data)
        self._conn.send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        if self.gone:
            return
        self.write(data)
        if self._chunked:
            self._conn.send(b"0\r\n\r\n")
        self.over(aborted=False)
        self._conn.answered(self)

    def reset(self) -> None:
        if self.over(aborted=False):
            self.app.stats.resets_sent += 1
            self._conn.abort()

    def cut(self) -> None:
        if self.over(aborted=False):
            self._conn.close_now()

    def refuse(self) -> None:
        if not self.gone:
            self.app.stats.refused_sent += 1
        self.cut()

    def goaway(self, *, processed: bool) -> None:
        if processed:
            self.keep = False
        else:
            self.cut()


class H1Connection(Connection):
    """One client connection; parser callbacks are httptools' names."""

    def __init__(self, hub: Hub, protocol: str) -> None:
        super().__init__(hub)
        self._protocol = protocol
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._in_head = True
        self._receiving: H1Sink | None = None
        self._queue: deque[H1Sink] = deque()
        self._unread = 0
        self._reading = True

    # ---- transport

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self.corked = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if nothing had been asked; the connection ends with that answer
        except httptools.HttpParserError:
            self.send(_BAD_REQUEST)
            self.close_now()
        finally:
            self.corked = False
            self.flush()

    def lost(self, *, aborted: bool) -> None:
        queue, self._queue = self._queue, deque()
        self._receiving = None
        for sink in queue:
            if sink.early is None:
                sink.over(aborted=aborted)

    def resumed(self) -> None:
        if self._queue:
            self._queue[0].wake()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def _control_reading(self) -> None:
        """Stops reading while a body waits to be read or a pipelined request waits for its turn."""
        limit = self.hub.options.initial_window_size
        reading = self._unread < limit and len(self._queue) < 2
        if reading != self._reading and self._transport is not None:
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    def consumed(self, size: int) -> None:
        """``size`` bytes of request body were read."""
        self._unread -= size
        if not self._reading:
            self._control_reading()

    def answered(self, sink: H1Sink) -> None:
        """The first request of the queue has its whole answer."""
        if self._queue and self._queue[0] is sink:
            self._queue.popleft()
        if not sink.keep or self._receiving is sink:  # a body that still arrives would be taken for a request
            self.close_now()
        elif self._queue:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        """Starts the pipelined request whose turn it is."""
        if self._queue and self._queue[0].early is not None:
            self._queue[0].begin()
            self._control_reading()

    # ---- parser

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are ignored."""
        if self._in_head:
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """A request's head is complete."""
        if self.closing:
            return
        method = self._parser.get_method().decode("latin-1")
        request = RequestHead(method, self._target.decode("latin-1"), self._headers, self._protocol)
        self._target, self._headers, self._in_head = b"", [], False
        keep = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        sink = H1Sink(self, request, keep=keep, http10=self._parser.get_http_version() == "1.0")
        self._receiving = sink
        self._queue.append(sink)
        if len(self._queue) == 1:
            sink.begin()
            if request.get("expect").lower() == "100-continue":
                self.send(_CONTINUE)
        else:
            self._control_reading()

    def on_body(self, data: bytes) -> None:
        """A piece of request body."""
        sink = self._receiving
        if sink is None or sink.gone:
            return
        if sink.early is not None:
            sink.early.append(data)
        else:
            self.received(data, sink)

    def received(self, data: bytes, sink: H1Sink) -> None:
        """Hands a piece of body to the request whose turn it is."""
        self._unread += len(data)
        sink.feed(data)
        if self._unread:
            self._control_reading()

    def on_message_complete(self) -> None:
        """A request's body has ended."""
        sink, self._receiving, self._in_head = self._receiving, None, True
        if sink is None or sink.gone:
            return
        if sink.early is not None:
            sink.complete_early = True
        else:
            sink.complete()
