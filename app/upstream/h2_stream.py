"""One request and its answer on an HTTP/2 connection, seen by whoever reads the answer.

    waiting ──HEADERS 1xx──> waiting
    waiting ──HEADERS──> reading ──DATA──> reading ──END_STREAM, trailers──> whole ──last byte read──> ended
       │                    │                                                  │
       └──RST_STREAM, GOAWAY below its id, connection lost, malformed──────────┴──> failed (after what had come)
       └──cancelled, aclose──> RST_STREAM(CANCEL), forgotten

At most ``WINDOW`` bytes wait here: the stream's window is opened again only by reading (B24). A read returns all
that waits, and opens the window in steps of half of it (RFC 9113 section 6.9). While it flows, what one read of
the socket brought goes to the sink in one piece, without a turn of the reader's task.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from app.upstream.h2_outbox import Body
from app.upstream.transport_base import Inbound, Source
from app.wire.h2_decode import BAD, Pair
from app.wire.h2_frames import CANCEL, FLOW_CONTROL_ERROR, PROTOCOL_ERROR, StreamFault
from app.wire.headers import first

WINDOW = 65_535
REFILL = 32_768
_UNKNOWN = 1 << 62
_OK = (":status", "200")
_NO_BODY = frozenset({204, 304})
_FORBIDDEN = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})


class H2Failure(Exception):
    """A stream came to nothing; the subclass says how much of it the peer may have processed."""


class Unprocessed(H2Failure):
    """Nothing was sent, or the peer said that it processed nothing: it does no harm to send it again."""


class Broken(H2Failure):
    """The connection broke while the peer may have been at work on it."""


class Reset(H2Failure):
    """The peer ended the stream, or what it sent is not HTTP."""


class Unsent(H2Failure):
    """The request's body could not be sent whole, so the request was cancelled."""


class Home(Protocol):
    """What a stream needs of its connection."""

    def let_go(self, stream: H2Stream, code: int) -> None:
        """Reset it and forget it."""
        ...

    def refill(self, stream_id: int, size: int) -> None:
        """Let the peer send ``size`` more bytes of it."""
        ...


class H2Stream(Inbound):
    """One exchange.

    Args:
        loop: The loop it lives on.
        method: Of the request.

    Attributes:
        home: Its connection; None before it was opened.
        stream_id: Its number; 0 before it was opened.
        head: Done when the response head came, or the stream failed.
        error: Why it failed; what had come before can still be read.
        body: What is left of the request's body to send.
        feed: The task that reads an upload's source.
        source: Of an upload.
    """

    __slots__ = (
        "_chunks",
        "_consumed",
        "_known",
        "_left",
        "_loop",
        "_no_body",
        "_reader",
        "_sink",
        "_whole",
        "_window",
        "body",
        "error",
        "feed",
        "head",
        "home",
        "source",
        "stream_id",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, method: str) -> None:
        self.status = 0  # what ``Inbound`` sets, without the call
        self.headers = []
        self.http_version = "HTTP/2"
        self.connection = ""
        self._closed = False
        self._ended = False
        self._slot = None
        self._loop = loop
        self._known: dict[str, str] | None = None
        self.home: Home | None = None
        self._no_body = method == "HEAD"
        self._chunks: list[bytes] = []
        self._reader: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._whole = False
        self._left = _UNKNOWN
        self._window = WINDOW
        self._consumed = 0
        self.stream_id = 0
        self.head: asyncio.Future[None] = loop.create_future()
        self.error: H2Failure | None = None
        self.body: Body | None = None
        self.feed: asyncio.Task[None] | None = None
        self.source: Source | None = None

    # --- what the connection tells

    def on_head(self, fields: list[Pair], end: bool) -> None:
        """A header block: an interim head, the head, or trailers (RFC 9113 section 8.1).

        Raises:
            StreamFault: It is malformed.
        """
        if self.status:
            if not end:
                raise StreamFault(PROTOCOL_ERROR, "A second head.")
            self.on_end()
            return
        status = 200 if fields and fields[0] == _OK else _status(fields)
        if status < 200:
            if end or status == 101:
                raise StreamFault(PROTOCOL_ERROR, "An interim head that ends the answer.")
            return
        rest = fields[1:]
        known = dict(rest)
        self._left = _length(rest, known, self._no_body or status in _NO_BODY)
        self._known = known if len(known) == len(rest) else None
        self.headers = rest
        self.status = status
        if not self.head.done():
            self.head.set_result(None)
        if end:
            self.on_end()

    def on_data(self, payload: bytes, size: int, end: bool) -> bool:
        """A piece of the body; ``size`` counts the frame's padding too.

        Returns:
            It is to be poured out once all that has come is there.

        Raises:
            StreamFault: No head yet, more than the window allows, or more than declared.
        """
        self._window -= size
        self._left -= len(payload)
        if self._window < 0 or self._left < 0 or not self.status:
            self._fault()
        if payload:
            self._chunks.append(payload)
        if end:
            self.on_end()
            return False
        if size > len(payload):
            self._read(size - len(payload))  # padding is consumed at once
        if self._sink is not None:
            return True
        if payload and self._reader is not None:
            self._wake()
        return False

    def pour(self) -> None:
        """Give what has come to the sink; what it does not take is for the reader."""
        chunks, sink = self._chunks, self._sink
        if not chunks or sink is None:
            return  # its end, or its failure, came with it
        piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if sink(piece):
            chunks.clear()
            if not self._whole:
                self._read(len(piece))
        else:
            self._sink = None
            self._wake()

    def _fault(self) -> None:
        if not self.status:
            raise StreamFault(PROTOCOL_ERROR, "DATA in front of the head.")
        if self._left < 0:
            raise StreamFault(PROTOCOL_ERROR, "More body than declared.")
        raise StreamFault(FLOW_CONTROL_ERROR, "More body than the window allows.")

    def on_end(self) -> None:
        """The peer sends no more; a body shorter than declared is a failure."""
        self._whole = True
        if 0 < self._left < _UNKNOWN >> 1:
            self.error = Reset(f"The answer ended {self._left} bytes short of its declared length.")
        if self._reader is not None:
            self._wake()

    def fail(self, error: H2Failure) -> None:
        """It is over; a peer that has answered did process it, whatever it says."""
        if self.status and isinstance(error, Unprocessed):
            error = Reset(str(error))
        if self.error is None and not self._whole:
            self.error = error
        self._wake()
        if not self.head.done():
            self.head.set_result(None)

    def stop_sending(self) -> bool:
        """No more of the request's body goes out; whether some was left."""
        feed, self.feed = self.feed, None
        if feed is not None and feed is not asyncio.current_task(self._loop):
            feed.cancel()
        body, self.body = self.body, None
        if body is None or body.dead:
            return False
        body.dead = True
        return True

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(None)

    # --- what the reader asks

    def failure(self, error: H2Failure) -> Exception:
        """The exception its reader gets for ``error``, ready to be raised."""
        return error

    def field(self, name: str) -> str | None:
        """See ``Inbound``; names are in lower case here (RFC 9113 section 8.2.1)."""
        return self._known.get(name) if self._known is not None else first(self.headers, name)

    def take(self) -> bytes:
        """See ``Inbound``; with the last byte the answer is over."""
        chunks = self._chunks
        piece = b""
        if chunks:
            piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            if not self._whole:
                self._read(len(piece))
                return piece
        if self._whole and self.error is None and not self._ended:
            self._finish()
        return piece

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """See ``Inbound``; cancelled, the stream is reset."""
        if self._chunks or self._whole or self._closed or self.error is not None:
            return
        self._sink = sink
        self._reader = self._loop.create_future()
        try:
            await self._reader
        except asyncio.CancelledError:
            self._reader = None
            self.abandon()
            raise
        finally:
            self._sink = None

    async def __anext__(self) -> bytes:
        """See ``Inbound``; cancelled while it waits, the stream is reset."""
        while True:
            if self._closed:
                raise StopAsyncIteration
            if piece := self.take():
                return piece
            if self.error is not None:
                self._finish()
                raise self.failure(self.error)
            if self._ended:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self._reader = None
                self.abandon()
                raise

    def _read(self, size: int) -> None:
        self._consumed += size
        if self._consumed >= REFILL and self.home is not None and self.error is None:
            self._window += self._consumed
            self.home.refill(self.stream_id, self._consumed)
            self._consumed = 0

    def abandon(self) -> None:
        """Nobody wants it any more: reset and forgotten unless it is over. Never waits."""
        self._chunks.clear()
        if self.home is not None and self.error is None:
            self.home.let_go(self, CANCEL)
        if not self._whole and self.error is None:
            self.error = Broken("The reader left.")
        self._finish()

    async def aclose(self) -> None:
        """See ``Inbound``; there is nothing to wait for."""
        if not self._closed:
            self._closed = True
            self.abandon()


def _status(fields: list[Pair]) -> int:
    """The status of a head whose first field it must be."""
    name, value = fields[0] if fields else BAD
    if name != ":status" or len(value) != 3 or not value.isascii() or not value.isdigit() or value < "100":
        raise StreamFault(PROTOCOL_ERROR, "A head without a status.")
    return int(value)


def _length(fields: list[Pair], known: dict[str, str], no_body: bool) -> int:
    """Bytes the body must have; refuses what RFC 9113 section 8.2 calls malformed."""
    if "" in known or ":status" in known or not _FORBIDDEN.isdisjoint(known):
        raise StreamFault(PROTOCOL_ERROR, "A malformed header.")
    length = known.get("content-length")
    if length is None:
        return _UNKNOWN
    if not (length.isascii() and length.isdigit() and len(length) < 18):
        raise StreamFault(PROTOCOL_ERROR, "A content-length that is no number.")
    if len(known) != len(fields) and any(n == "content-length" and v != length for n, v in fields):
        raise StreamFault(PROTOCOL_ERROR, "Two lengths.")
    return 0 if no_body else int(length)
