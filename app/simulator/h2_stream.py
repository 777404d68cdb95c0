"""One HTTP/2 stream: a request and the answer that flow control lets through.

Runs on: simulator loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app.simulator import frames
from app.simulator.flow import ReceiveWindow, SendBuffer
from app.simulator.frames import END_HEADERS, END_STREAM, ErrorCode, FrameError, FrameType, frame_header
from app.simulator.heads import Head, Pairs, h2_block, h2_content_length, h2_status
from app.simulator.request import RequestHead
from app.simulator.sink import HIGH_WATER_BYTES, Sink

if TYPE_CHECKING:
    from app.simulator.h2 import H2Connection

_REQUEST_ID = b"\x00\x0arequest-id"
_BODYLESS = (204, 304)


class H2Stream(Sink):
    """A stream between its HEADERS and the end of its answer.

    Attributes:
        id: Stream identifier.
        remote_open: The request body has not ended.
        out: What waits for the peer's window.
    """

    __slots__ = ("_bodyless", "_conn", "_head_sent", "_window", "id", "out", "remote_open")

    def __init__(self, conn: H2Connection, stream_id: int, request: RequestHead) -> None:
        super().__init__(conn.app, request)
        self._conn = conn
        self._head_sent = False
        self._bodyless = request.method == "HEAD"
        self._window: ReceiveWindow | None = None
        self.id = stream_id
        self.remote_open = True
        self.out = SendBuffer(conn.peer_window)

    # ---- request

    def receive(self, size: int, data: bytes, *, ended: bool) -> None:
        """Takes a DATA frame of ``size`` bytes, padding included, that carried ``data``.

        Raises:
            FrameError: The peer ignored the stream's window.
        """
        if not self.remote_open:
            raise FrameError(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if self._window is None:
            self._window = ReceiveWindow(self._conn.window_size)
        self._window.receive(size)
        if ended:
            self.remote_open = False
        elif size > len(data):
            self.consumed(size - len(data))
        if data:
            self.feed(data)
        if ended:
            self.complete()

    def consumed(self, size: int) -> None:
        if self.gone or not self.remote_open or self._window is None or not size:
            return
        increment = self._window.consume(size)
        if increment:
            self._conn.send(frames.window_update(self.id, increment))

    # ---- answer

    @property
    def writable(self) -> bool:
        return not self.gone and not self._conn.congested and self.out.size < HIGH_WATER_BYTES

    def head(
        self, status: int, head: Head, *, request_id: bytes = b"", extra: Pairs = (), length: int | None = None
    ) -> None:
        if self.gone or self._head_sent:
            return
        self._head_sent = True
        if self.attempt is not None:
            head, extra = self.attempt.answered(status, head, extra)
        block = self._conn.table_prefix() + h2_status(status) + head.h2
        if head.dated:
            block += self._conn.dates.at(time.time()).h2
        if request_id:
            block += b"%s%c%s" % (_REQUEST_ID, len(request_id), request_id)
        if extra:
            block += h2_block(extra)
        if length is not None and status not in _BODYLESS:
            block += h2_content_length(length)
        self._bodyless = self._bodyless or status in _BODYLESS
        if len(block) <= frames.DEFAULT_FRAME_SIZE:
            self._conn.send(frame_header(len(block), FrameType.HEADERS, END_HEADERS, self.id) + block)
        else:
            self._conn.send(frames.headers(self.id, block, end_stream=False))

    def write(self, data: bytes) -> None:
        if self.gone or self._bodyless or not data:
            return
        size = len(data)
        self.bytes_sent += size
        if self._fits(size):
            self._conn.window -= size
            self.out.window -= size
            self._conn.send(frame_header(size, FrameType.DATA, 0, self.id) + data)
        else:
            self.out.push(data)
            self._conn.pump_stream(self)

    def end(self, data: bytes = b"") -> None:
        if self.gone:
            return
        if self._bodyless:
            data = b""
        size = len(data)
        self.bytes_sent += size
        if self._fits(size):
            self._conn.window -= size
            self.out.window -= size
            self._conn.send(frame_header(size, FrameType.DATA, END_STREAM, self.id) + data)
            self.finished()
        else:
            self.out.push(data)
            self.out.ended = True
            self._conn.pump_stream(self)

    def _fits(self, size: int) -> bool:
        """Whether ``size`` bytes may go out now as one frame, with nothing waiting before them."""
        conn, out = self._conn, self.out
        return (
            not out.size
            and size <= out.window
            and size <= conn.window
            and size <= conn.peer_frame_size
            and not conn.congested
        )

    def finished(self) -> None:
        """END_STREAM was sent; a request body that still runs is called off (RFC 9113 section 8.1)."""
        if self.remote_open:
            self._conn.send(frames.rst_stream(self.id, ErrorCode.NO_ERROR))
        self.over(aborted=False)
        self._conn.forget(self)

    def drop(self, *, aborted: bool) -> None:
        """The peer, or the connection's end, took the stream away."""
        self.out.clear()
        self.over(aborted=aborted)
        self._conn.forget(self)

    # ---- faults

    def _break(self, code: ErrorCode) -> None:
        if not self.gone:
            self._conn.send(frames.rst_stream(self.id, code))
            self.drop(aborted=False)

    def reset(self) -> None:
        if not self.gone:
            self.app.stats.resets_sent += 1
        self._break(ErrorCode.INTERNAL_ERROR)

    def refuse(self) -> None:
        if not self.gone:
            self.app.stats.refused_sent += 1
        self._break(ErrorCode.REFUSED_STREAM)

    def cut(self) -> None:
        self.over(aborted=False)
        self._conn.close_now()

    def goaway(self, *, processed: bool) -> None:
        self._conn.goaway(before=None if processed else self)
