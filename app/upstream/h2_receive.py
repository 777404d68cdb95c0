"""The receiving half of one HTTP/2 connection: cuts frames out of what came and acts on them (RFC 9113 section 6).

    SETTINGS first, else fault ──> any frame ──HEADERS without END_HEADERS──> CONTINUATION only
                                       ^──────────────────END_HEADERS───────────────┘

A stream's fault resets that stream, a connection's fault ends the connection (section 5.4). The connection's
window is opened again as DATA arrives, whoever reads it or not: what may wait is bounded by the streams' windows,
so stalled or abandoned streams never take credit from their siblings.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.upstream.h2_outbox import Outbox
from app.upstream.h2_stream import Broken, H2Stream, Reset, Unprocessed
from app.wire import h2_frames as h2
from app.wire.h2_decode import ResponseDecoder
from app.wire.h2_encode import TABLE_OFF

CONNECTION_WINDOW = 16 * 1024 * 1024
HEADER_LIST_BYTES = 131_072
MAX_BLOCK_BYTES = 131_072
MAX_CONTINUATIONS = 64
MAX_EMPTY_FRAMES = 1000
MAX_OWED_ANSWERS = 10_000


class Receiver(asyncio.Protocol):
    """What comes in.

    Args:
        loop: The loop it lives on.
        capacity: Most streams at a time, whatever the peer allows.

    Attributes:
        loop: As given.
        out: What the connection has to say.
        streams: Those that are not over, by id.
        next_id: Of the next stream.
        max_streams: ``capacity``, or the peer's MAX_CONCURRENT_STREAMS where that is less.
        table_off: What the next header block starts with: a table size update, once the peer shrank its table.
        draining: No new streams.
        ended: It is over; ``why`` says why.
        ready: Done at the peer's SETTINGS, or at its end.
        heard: Something came since this was last set to False.
        calm: The peer said GOAWAY because it was asked too much.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self.loop = loop
        self.out = Outbox(loop)
        self.streams: dict[int, H2Stream] = {}
        self.next_id = 1
        self.max_streams = self._capacity = capacity
        self.table_off = b""
        self.draining = False
        self.ended = False
        self.why = ""
        self.ready: asyncio.Future[None] = loop.create_future()
        self.heard = True
        self.calm = False
        self._decoder = ResponseDecoder(list_bytes=HEADER_LIST_BYTES)
        self._rest = b""
        self._full: list[H2Stream] = []
        self._partial: list[bytes] = []
        self._partial_head = (0, 0, 0)
        self._credit = CONNECTION_WINDOW
        self._empty = 0
        self._owed = 0
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            h2.HEADERS: self._on_headers,
            h2.CONTINUATION: self._on_continuation,
            h2.RST_STREAM: self._on_rst_stream,
            h2.SETTINGS: self._on_settings,
            h2.PUSH_PROMISE: self._on_push_promise,
            h2.PING: self._on_ping,
            h2.GOAWAY: self._on_goaway,
            h2.WINDOW_UPDATE: self._on_window_update,
        }

    # --- what the connection does about it

    def over(self, stream: H2Stream) -> None:
        """The answer is whole."""
        raise NotImplementedError

    def drop(self, stream: H2Stream, error: Unprocessed | Broken | Reset) -> None:
        """The stream failed."""
        raise NotImplementedError

    def admit(self) -> None:
        """There may be places for those who wait."""
        raise NotImplementedError

    def retire(self, why: str) -> None:
        """No new streams."""
        raise NotImplementedError

    def shut(self, code: int, why: str) -> None:
        """Say GOAWAY and close."""
        raise NotImplementedError

    # --- frames

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete."""
        if self.ended:
            return
        self.heard = True
        if self._rest:
            data = self._rest + data
        at, total, unpack = 0, len(data), h2.HEADER.unpack_from
        stream_id = 0
        try:
            while total - at >= h2.HEADER_BYTES:
                word, flags, stream_id = unpack(data, at)
                start = at + h2.HEADER_BYTES
                end = start + (word >> 8)
                if word >> 8 > h2.DEFAULT_FRAME_SIZE:
                    raise h2.ConnectionFault(h2.FRAME_SIZE_ERROR, "A frame larger than allowed.")
                if end > total:
                    break
                at = end
                kind = word & 0xFF
                try:
                    if kind == h2.DATA:
                        self._on_data(flags, stream_id & h2.MAX_WINDOW, data[start:end])
                    else:
                        self._on_other(kind, flags, stream_id & h2.MAX_WINDOW, data[start:end])
                except h2.StreamFault as fault:
                    self._reset(stream_id & h2.MAX_WINDOW, fault)
        except h2.ConnectionFault as fault:
            self.shut(fault.code, f"The peer broke the protocol: {fault}")
            return
        self._rest = data[at:] if at < total else b""
        if self._full:
            self._pour()

    def _pour(self) -> None:
        """Streams that flow give up what has come in one piece each."""
        full, self._full = self._full, []
        for stream in full:
            stream.pour()

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._credit -= size
        if self._credit < CONNECTION_WINDOW >> 1:
            if self._credit < 0:
                raise h2.ConnectionFault(h2.FLOW_CONTROL_ERROR, "More than the connection's window allows.")
            self.out.push(h2.window_update(0, CONNECTION_WINDOW - self._credit))
            self._credit = CONNECTION_WINDOW
        if flags & h2.PADDED:
            payload = h2.unpadded(h2.PADDED, payload)
        end = flags & h2.END_STREAM != 0
        if not payload and not end:
            self._count_empty()
        if self._partial:
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "A header block was interrupted.")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            return
        if stream.on_data(payload, size, end):
            self._full.append(stream)
        if end:
            self.over(stream)

    def _count_empty(self) -> None:
        self._empty += 1
        if self._empty > MAX_EMPTY_FRAMES:
            raise h2.ConnectionFault(h2.ENHANCE_YOUR_CALM, "Too many empty frames.")

    def _check_known(self, stream_id: int) -> None:
        """A frame of a stream that is over is late; one of a stream that never was is a fault (section 5.1)."""
        if not stream_id & 1 or stream_id >= self.next_id:
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "A frame of a stream that was never opened.")

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._partial and kind != h2.CONTINUATION:
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "A header block was interrupted.")
        if kind != h2.SETTINGS and not self.ready.done():
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "The peer did not begin with SETTINGS.")
        handler = self._handlers.get(kind)
        if handler is not None:  # PRIORITY and unknown types ask for nothing (section 5.5)
            handler(flags, stream_id, payload)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (h2.PADDED | h2.PRIORITY_FLAG):
            payload = h2.unpadded(flags, payload)
        if flags & h2.END_HEADERS:
            self._on_block(flags, stream_id, payload)
            return
        self._partial = [payload]
        self._partial_head = (flags, stream_id, len(payload))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        first, opener, size = self._partial_head
        if not self._partial or opener != stream_id:
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "CONTINUATION without a header block.")
        self._partial.append(payload)
        size += len(payload)
        if size > MAX_BLOCK_BYTES or len(self._partial) > MAX_CONTINUATIONS:
            raise h2.ConnectionFault(h2.ENHANCE_YOUR_CALM, "A header block larger than allowed.")
        self._partial_head = (first, opener, size)
        if flags & h2.END_HEADERS:
            block, self._partial = b"".join(self._partial), []
            self._on_block(first, stream_id, block)

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        fields = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            return
        end = flags & h2.END_STREAM != 0
        stream.on_head(fields, end)
        if end:
            self.over(stream)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        code = h2.parse_u32(payload)
        self._check_known(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        text = f"The upstream reset the stream: {h2.code_name(code)}."
        self.drop(stream, Unprocessed(text) if code == h2.REFUSED_STREAM else Reset(text))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS of a stream.")
        if flags & h2.ACK:
            return
        values = h2.parse_settings(payload)
        self._answer(h2.SETTINGS_ACK)  # in front of DATA that the new window allows (section 6.5.3)
        for key, value in values:
            if key == h2.MAX_CONCURRENT_STREAMS:
                self.max_streams = min(value, self._capacity)
            elif key == h2.MAX_FRAME_SIZE:
                self.out.frame_size = value
            elif key == h2.HEADER_TABLE_SIZE and value < 4096:
                self.table_off = TABLE_OFF
            elif key == h2.INITIAL_WINDOW_SIZE:
                bodies = [stream.body for stream in self.streams.values() if stream.body is not None]
                if not self.out.resize(bodies, value):
                    raise h2.ConnectionFault(h2.FLOW_CONTROL_ERROR, "A window of more than 2^31-1 bytes.")
        if not self.ready.done():
            self.ready.set_result(None)
        self.admit()

    def _answer(self, frame: bytes) -> None:
        """Send what the peer is owed, unless it asks for ever more and reads nothing."""
        self._owed += self.out.full
        if self._owed > MAX_OWED_ANSWERS:
            raise h2.ConnectionFault(h2.ENHANCE_YOUR_CALM, "The peer asks and does not read.")
        self.out.push(frame)

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise h2.ConnectionFault(h2.PROTOCOL_ERROR, "Push was refused.")

    def _on_ping(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise h2.ConnectionFault(h2.FRAME_SIZE_ERROR, "PING of other than 8 bytes.")
        if not flags & h2.ACK:
            self._answer(h2.ping(payload, ack=True))

    def _on_goaway(self, _flags: int, _stream_id: int, payload: bytes) -> None:
        last, code = h2.parse_goaway(payload)
        why = f"The upstream said GOAWAY ({h2.code_name(code)})."
        self.draining = True
        self.calm = code == h2.ENHANCE_YOUR_CALM
        for stream in [stream for stream_id, stream in self.streams.items() if stream_id > last]:
            self.drop(stream, Unprocessed(why))
        self.retire(why)

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        increment = h2.parse_u32(payload) & h2.MAX_WINDOW
        if not stream_id:
            self.out.window = h2.widened(self.out.window, increment, 0)
            self.out.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
        elif stream.body is not None:
            stream.body.window = h2.widened(stream.body.window, increment, stream_id)
            self.out.line_up(stream.body)

    def _reset(self, stream_id: int, fault: h2.StreamFault) -> None:
        self.out.push(h2.rst_stream(stream_id, fault.code))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.drop(stream, Reset(f"The upstream broke the protocol: {fault}"))
