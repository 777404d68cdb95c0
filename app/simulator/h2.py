"""HTTP/2 server connection: frames in, streams out, flow control both ways.

    preface, SETTINGS -> open --goaway--> draining (no new streams) --last stream over--> closed
                          +--FrameError--> GOAWAY(code), closed

Written for throughput: everything that one turn of the loop produces leaves in one write, header blocks of
answers are static bytes, and decoded request heads are remembered per block of bytes.

Runs on: simulator loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import hpack
from hpack.exceptions import HPACKError

from app.simulator import frames
from app.simulator.connection import Connection, Hub
from app.simulator.flow import ReceiveWindow
from app.simulator.frames import END_HEADERS, END_STREAM, ErrorCode, FrameError, FrameType, Setting, frame_header
from app.simulator.h2_stream import H2Stream
from app.simulator.heads import h2_table_off
from app.simulator.hpack_cache import HeadDecoder
from app.simulator.request import RequestHead

CONNECTION_WINDOW = 16 * 1024 * 1024
FRAME_SIZE = 65_536
_HEADER_LIMIT = 1024 * 1024

_Handler = Callable[[int, int, bytes], None]


class H2Connection(Connection):
    """One client connection.

    Attributes:
        window: Bytes the peer lets this connection send.
        peer_window: Its initial window for new streams.
        peer_frame_size: The largest frame it takes.
        window_size: The initial window this side announced.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.window = frames.DEFAULT_WINDOW
        self.peer_window = frames.DEFAULT_WINDOW
        self.peer_frame_size = frames.DEFAULT_FRAME_SIZE
        self.window_size = hub.options.initial_window_size
        self.dates = hub.dates
        self._streams: dict[int, H2Stream] = {}
        self._blocked: deque[H2Stream] = deque()
        self._reader = frames.FrameReader(FRAME_SIZE)
        self._decoder = HeadDecoder()
        self._receive_window = ReceiveWindow(CONNECTION_WINDOW)
        self._last_id = 0
        self._table_off = False
        self._partial: tuple[int, int, bytes] | None = None
        self._handlers: dict[int, _Handler] = {
            FrameType.DATA: self._on_data,
            FrameType.HEADERS: self._on_headers,
            FrameType.RST_STREAM: self._on_rst_stream,
            FrameType.SETTINGS: self._on_settings,
            FrameType.PUSH_PROMISE: self._on_push_promise,
            FrameType.PING: self._on_ping,
            FrameType.WINDOW_UPDATE: self._on_window_update,
            FrameType.CONTINUATION: self._on_continuation,
        }

    # ---- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app.stats.h2_sessions += 1
        self.send(
            frames.settings(
                [
                    (Setting.MAX_CONCURRENT_STREAMS, self.hub.options.max_concurrent_streams),
                    (Setting.INITIAL_WINDOW_SIZE, self.window_size),
                    (Setting.MAX_FRAME_SIZE, FRAME_SIZE),
                    (Setting.MAX_HEADER_LIST_SIZE, _HEADER_LIMIT),
                ]
            )
            + frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        )
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.corked = True
        try:
            for kind, flags, stream_id, payload in self._reader.feed(data):
                if self.closing:
                    break
                if self._partial is not None and kind != FrameType.CONTINUATION:
                    raise FrameError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
                handler = self._handlers.get(kind)
                if handler is not None:  # PRIORITY, GOAWAY and unknown types ask for nothing
                    handler(flags, stream_id, payload)
        except FrameError as fault:
            self._fail(fault)
        finally:
            self.corked = False
            self.flush()

    def lost(self, *, aborted: bool) -> None:
        for stream in list(self._streams.values()):
            stream.drop(aborted=aborted)
        self._blocked.clear()

    def resumed(self) -> None:
        self._pump()
        for stream in list(self._streams.values()):
            if stream.on_writable is not None and stream.writable:
                stream.wake()

    @property
    def busy(self) -> bool:
        return bool(self._streams)

    def _fail(self, fault: FrameError) -> None:
        """Ends the connection because the peer broke the protocol."""
        self.send(frames.goaway(self._last_id, fault.code, str(fault).encode()))
        self.app.stats.goaways_sent += 1
        self.close_now()

    def retire(self) -> None:
        self.goaway(before=None)

    def goaway(self, before: H2Stream | None) -> None:
        """Takes no new streams; those from ``before`` on were never processed, the others may finish."""
        last = self._last_id
        if before is not None:
            last = max((stream_id for stream_id in self._streams if stream_id < before.id), default=0)
        self.draining = True
        self.app.stats.goaways_sent += 1
        self.send(frames.goaway(last, ErrorCode.NO_ERROR))
        for stream in [stream for stream_id, stream in self._streams.items() if stream_id > last]:
            stream.drop(aborted=False)
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.draining and not self._streams:
            self.close_now()

    # ---- streams

    def table_prefix(self) -> bytes:
        """What the next header block starts with: a table size update once the peer shrank its table."""
        if not self._table_off:
            return b""
        self._table_off = False
        return h2_table_off()

    def forget(self, stream: H2Stream) -> None:
        """The stream is over."""
        if self._streams.pop(stream.id, None) is not None and self.draining:
            self._close_if_drained()

    def pump_stream(self, stream: H2Stream) -> None:
        """Sends what the windows allow of one stream, or queues it for their opening."""
        if stream not in self._blocked:
            self._blocked.append(stream)
        if self.window > 0 and not self.congested:
            self._pump()

    def _pump(self) -> None:
        """Sends waiting data, one frame a turn from each stream that may."""
        held: list[H2Stream] = []
        blocked = self._blocked
        while blocked and not self.congested:
            stream = blocked.popleft()
            if stream.gone:
                continue
            out = stream.out
            data = out.take(min(out.window, self.window, self.peer_frame_size))
            if not data and out.size:
                held.append(stream)
                continue
            last = out.ended and not out.size
            self.window -= len(data)
            self.send(frame_header(len(data), FrameType.DATA, END_STREAM if last else 0, stream.id) + data)
            if last:
                stream.finished()
            elif out.size:
                blocked.append(stream)
            elif stream.on_writable is not None:
                self.loop.call_soon(self._wake, stream)
        blocked.extend(held)

    def _wake(self, stream: H2Stream) -> None:
        """Lets an application that waited for room go on."""
        if stream.writable:
            stream.wake()

    # ---- frames

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window.receive(size)
        increment = self._receive_window.consume(size)
        if increment:
            self.send(frames.window_update(0, increment))
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or (stream_id > self._last_id and not self.draining):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
            return
        data = frames.strip_padding(flags, payload) if flags & frames.PADDED else payload
        stream.receive(size, data, ended=bool(flags & END_STREAM))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that no client opens")
        if flags & (frames.PADDED | frames.PRIORITY_FLAG):
            payload = frames.strip_padding(flags, payload, priority=True)
        if flags & END_HEADERS:
            self._on_block(flags, stream_id, payload)
        else:
            self._partial = (flags, stream_id, payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._partial is None or self._partial[1] != stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        first, _, block = self._partial
        block += payload
        if len(block) > _HEADER_LIMIT:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "header block too large")
        if flags & END_HEADERS:
            self._partial = None
            self._on_block(first, stream_id, block)
        else:
            self._partial = (first, stream_id, block)

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        """A whole header block: a request, or trailers."""
        try:
            request = self._decoder.decode(block)
        except (HPACKError, hpack.HPACKDecodingError) as fault:
            raise FrameError(ErrorCode.COMPRESSION_ERROR, str(fault)) from fault
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive(0, b"", ended=True)
        elif not self.draining and stream_id > self._last_id:  # else trailers too late, or after our GOAWAY
            self._last_id = stream_id
            self._open(stream_id, request, ended=bool(flags & END_STREAM))

    def _open(self, stream_id: int, request: RequestHead | None, *, ended: bool) -> None:
        """A new request."""
        if request is None:
            self.send(frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        if len(self._streams) >= self.hub.options.max_concurrent_streams:
            self.app.stats.refused_sent += 1
            self.send(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        stream = self._streams[stream_id] = H2Stream(self, stream_id, request)
        stream.remote_open = not ended
        self.app.opened(stream)
        if ended:
            stream.complete()

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        frames.parse_u32(payload)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.drop(aborted=True)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        for key, value in frames.parse_settings(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._resize_windows(value)
            elif key == Setting.MAX_FRAME_SIZE:
                self.peer_frame_size = value
            elif key == Setting.HEADER_TABLE_SIZE and value < 4096:
                self._table_off = True
        self.send(frames.SETTINGS_ACK)
        self.resumed()

    def _resize_windows(self, value: int) -> None:
        """The peer's initial window changed: all open streams' windows move with it."""
        if value > frames.MAX_WINDOW:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        change, self.peer_window = value - self.peer_window, value
        for stream in self._streams.values():
            stream.out.widen(change)

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise FrameError(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "PING payload must be 8 bytes")
        if not flags & frames.ACK:
            self.send(frames.ping_ack(payload))

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = frames.parse_u32(payload)
        if not increment:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        if stream_id:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.out.widen(increment)
        elif self.window + increment > frames.MAX_WINDOW:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")
        else:
            self.window += increment
        if self._blocked:
            self._pump()
