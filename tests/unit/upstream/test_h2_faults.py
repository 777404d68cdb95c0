"""A peer that breaks the protocol: who pays for it, and that everybody else is left alone.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.upstream.h2_connection import H2Connection
from app.upstream.h2_receive import CONNECTION_WINDOW
from app.upstream.h2_stream import Broken, H2Stream, Reset, Unprocessed
from app.upstream.h2_watch import Watch
from app.wire import h2_frames as h2
from app.wire.h2_encode import header

STATUS = b"\x88"  # :status 200
HELLO = h2.settings(())


class Wire(asyncio.Transport):
    """A transport that only remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = self.closed or "abort"


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each."""
    out, at = [], 0
    while at < len(data):
        word, flags, stream_id = h2.HEADER.unpack_from(data, at)
        out.append((word & 0xFF, flags, stream_id, data[at + 9 : at + 9 + (word >> 8)]))
        at += 9 + (word >> 8)
    return out


class Line:
    """Our connection with two requests open, and raw bytes for it."""

    def __init__(self, hello: bytes = HELLO) -> None:
        self.ours = H2Connection(asyncio.get_running_loop(), lambda why: None)
        self.wire = Wire()
        self.ours.attach(self.wire)
        self.ours.data_received(hello)
        self.streams = [H2Stream(self.ours.loop, "POST") for _ in range(2)]
        for stream in self.streams:
            self.ours.open(stream, b"\x82", b"")
        self.ours.out.flush()
        self.wire.sent = b""

    def feed(self, *data: bytes) -> list[tuple[int, int, int, bytes]]:
        """What we answer to ``data``."""
        if data:
            self.ours.data_received(b"".join(data))
        self.ours.out.flush()
        sent, self.wire.sent = self.wire.sent, b""
        return frames(sent)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def head(stream_id: int, *fields: bytes, end: bool = False, status: bytes = STATUS) -> bytes:
    return h2.headers(stream_id, status + b"".join(fields), end, 16_384)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return h2.frame(h2.DATA, flags, stream_id, payload)


CONNECTION_FAULTS = [
    (h2.frame(h2.DATA, 0, 1, b"x" * 16_385), h2.FRAME_SIZE_ERROR),
    (h2.frame(h2.SETTINGS, 0, 1), h2.PROTOCOL_ERROR),
    (h2.settings(((h2.ENABLE_PUSH, 1),)), h2.PROTOCOL_ERROR),
    (h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), h2.PROTOCOL_ERROR),
    (h2.frame(h2.PING, 0, 0, b"short"), h2.FRAME_SIZE_ERROR),
    (h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), h2.PROTOCOL_ERROR),
    (h2.window_update(0, 2**31 - 1), h2.FLOW_CONTROL_ERROR),
    (h2.frame(h2.GOAWAY, 0, 0, b"\0"), h2.FRAME_SIZE_ERROR),
    (h2.frame(h2.RST_STREAM, 0, 1, b"\0"), h2.FRAME_SIZE_ERROR),
    (h2.rst_stream(5, 8), h2.PROTOCOL_ERROR),  # never opened
    (data(99, b"x"), h2.PROTOCOL_ERROR),
    (data(2, b"x"), h2.PROTOCOL_ERROR),
    (data(0, b"x"), h2.PROTOCOL_ERROR),
    (head(7), h2.PROTOCOL_ERROR),
    (h2.window_update(9, 1), h2.PROTOCOL_ERROR),
    (data(1, b"\x05abc", h2.PADDED), h2.PROTOCOL_ERROR),
    (h2.frame(h2.CONTINUATION, 4, 1, b""), h2.PROTOCOL_ERROR),
    (h2.frame(h2.HEADERS, 0, 1, STATUS) + h2.ping(b"12345678"), h2.PROTOCOL_ERROR),
    (h2.frame(h2.HEADERS, 0, 1, STATUS) + data(1, b"x"), h2.PROTOCOL_ERROR),
    (h2.frame(h2.HEADERS, 0, 1, STATUS) + h2.frame(h2.CONTINUATION, 4, 3, b""), h2.PROTOCOL_ERROR),
    (h2.frame(h2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), h2.COMPRESSION_ERROR),
    (h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1) * 70, h2.ENHANCE_YOUR_CALM),
    (h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1, b"x" * 16_000) * 9, h2.ENHANCE_YOUR_CALM),
    (head(1) + data(1, b"") * 1001, h2.ENHANCE_YOUR_CALM),
]


@pytest.mark.parametrize(("wrong", "code"), CONNECTION_FAULTS)
def test_a_fault_of_the_connection_ends_it_with_its_code(wrong: bytes, code: int) -> None:
    async def work() -> None:
        line = Line()
        answers = line.feed(wrong)
        assert answers[-1] == (h2.GOAWAY, 0, 0, b"\0\0\0\0" + code.to_bytes(4, "big"))
        assert (line.ours.ended, line.wire.closed) == (True, "close")
        assert all(isinstance(stream.error, Reset) and stream.head.done() for stream in line.streams)
        assert line.feed(h2.ping(b"12345678")) == []

    run(work)


def test_more_than_the_connections_window_ends_it() -> None:
    async def work() -> None:
        line = Line()
        line.ours._credit = 10
        assert line.feed(data(1, b"x" * 11))[-1][3][-4:] == h2.FLOW_CONTROL_ERROR.to_bytes(4, "big")

    run(work)


def test_a_peer_that_does_not_begin_with_settings_is_not_talked_to() -> None:
    async def work() -> None:
        line = Line(hello=h2.ping(b"12345678"))
        assert line.ours.ended
        assert line.ours.ready.done()

    run(work)


STREAM_FAULTS = [
    (data(1, b"x"), h2.PROTOCOL_ERROR),  # in front of the head
    (head(1, status=b""), h2.PROTOCOL_ERROR),
    (head(1, status=header(":status", "20")), h2.PROTOCOL_ERROR),
    (head(1, status=header(":status", "\xb2\xb2\xb2")), h2.PROTOCOL_ERROR),
    (head(1, status=header(":status", "101")), h2.PROTOCOL_ERROR),
    (head(1, status=header(":status", "103"), end=True), h2.PROTOCOL_ERROR),
    (head(1, STATUS), h2.PROTOCOL_ERROR),  # two of them
    (head(1, header("a", "1"), status=b""), h2.PROTOCOL_ERROR),
    (head(1, header("A", "1")), h2.PROTOCOL_ERROR),
    (head(1, b"\x00\x01a\x06x\r\ny:1"), h2.PROTOCOL_ERROR),
    (head(1, b"\x00\x01a\x03x\0y"), h2.PROTOCOL_ERROR),
    (head(1, header("transfer-encoding", "chunked")), h2.PROTOCOL_ERROR),
    (head(1, header("connection", "close")), h2.PROTOCOL_ERROR),
    (head(1, header("content-length", "+1")), h2.PROTOCOL_ERROR),
    (head(1, header("content-length", "1"), header("content-length", "2")), h2.PROTOCOL_ERROR),
    (head(1) + head(1), h2.PROTOCOL_ERROR),  # a second head
    (head(1, header("content-length", "2")) + data(1, b"abc"), h2.PROTOCOL_ERROR),
    (head(1) + data(1, b"x" * 16_384) * 4, h2.FLOW_CONTROL_ERROR),
]


@pytest.mark.parametrize(("wrong", "code"), STREAM_FAULTS)
def test_a_fault_of_a_stream_ends_that_stream_only(wrong: bytes, code: int) -> None:
    async def work() -> None:
        line = Line()
        assert line.feed(wrong)[-1] == (h2.RST_STREAM, 0, 1, code.to_bytes(4, "big"))
        assert isinstance(line.streams[0].error, Reset)
        line.feed(head(3), data(3, b"fine", h2.END_STREAM))
        assert await anext(line.streams[1]) == b"fine"
        assert line.ours.usable

    run(work)


def test_a_window_update_beyond_the_bounds_ends_its_stream() -> None:
    async def work() -> None:
        line = Line()
        stream = H2Stream(line.ours.loop, "POST")
        line.ours.open(stream, b"\x83", b"x" * 70_000)
        line.ours.out.flush()
        line.wire.sent = b""
        assert line.feed(h2.window_update(5, 2**31 - 1)) == []  # it had sent everything of its window
        assert line.feed(h2.window_update(5, 2**31 - 1))[-1] == (h2.RST_STREAM, 0, 5, b"\0\0\0\3")
        assert isinstance(stream.error, Reset)

    run(work)


def test_a_shrunken_initial_window_makes_windows_negative() -> None:
    async def work() -> None:
        line = Line(hello=h2.settings(((h2.INITIAL_WINDOW_SIZE, 10),)))
        line.ours.open(H2Stream(line.ours.loop, "POST"), b"\x83", b"x" * 20)
        line.ours.out.flush()
        line.wire.sent = b""
        assert line.feed(h2.settings(((h2.INITIAL_WINDOW_SIZE, 4),))) == [(h2.SETTINGS, h2.ACK, 0, b"")]
        assert line.feed(h2.window_update(5, 6)) == []  # the window is 0 now
        assert line.feed(h2.window_update(5, 2)) == [(h2.DATA, 0, 5, b"xx")]
        grown = line.feed(h2.settings(((h2.INITIAL_WINDOW_SIZE, 100),)))
        assert (h2.DATA, h2.END_STREAM, 5, b"x" * 8) in grown

    run(work)


@pytest.mark.parametrize("length", ["3", "0000005", "12345678901234567"])
def test_a_body_shorter_than_declared_raises_after_what_came(length: str) -> None:
    async def work() -> None:
        line = Line()
        line.feed(head(1, header("content-length", length)), data(1, b"ab", h2.END_STREAM))
        assert await anext(line.streams[0]) == b"ab"
        with pytest.raises(Reset, match="short"):
            await anext(line.streams[0])
        with pytest.raises(Reset):
            await anext(line.streams[0])

    run(work)


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
def test_a_length_without_a_body_is_no_truncation(method: str, status: str) -> None:
    async def work() -> None:
        line = Line()
        stream = H2Stream(line.ours.loop, method)
        line.ours.open(stream, b"\x82", b"")
        line.feed(head(5, header("content-length", "99"), status=header(":status", status), end=True))
        assert [piece async for piece in stream] == []
        assert stream.headers == [("content-length", "99")]

    run(work)


def test_late_frames_of_a_stream_that_is_over_are_taken_in_silence() -> None:
    async def work() -> None:
        line = Line()
        await line.streams[0].aclose()
        line.feed()
        late = line.feed(
            head(1), data(1, b"x" * 16_000), h2.window_update(1, 5), h2.rst_stream(1, 0),
            h2.frame(h2.PRIORITY, 0, 1), h2.frame(0xEE, 0, 0, b"unknown"), head(3), data(3, b"ok"),
        )  # fmt: skip
        assert late == []
        assert line.ours._credit == CONNECTION_WINDOW - 16_002
        assert await anext(line.streams[1]) == b"ok"

    run(work)


def test_a_peer_that_asks_and_does_not_read_is_left() -> None:
    async def work() -> None:
        line = Line()
        line.ours.pause_writing()
        answers = line.feed(h2.ping(b"12345678") * 10_000)
        assert len(answers) == 10_000
        assert line.feed(h2.ping(b"12345678"))[-1][3][-4:] == h2.ENHANCE_YOUR_CALM.to_bytes(4, "big")

    run(work)


def test_an_idle_connection_retires_and_a_busy_one_does_not() -> None:
    async def work() -> None:
        line = Line()
        watch = Watch(keepalive_expiry_s=60)
        line.ours.idle_since -= 61
        watch._idle(line.ours)
        assert line.ours.usable
        for stream in line.streams:
            stream.abandon()
        watch._idle(line.ours)
        assert line.ours.usable, "it was not idle for long"
        line.ours.idle_since -= 61
        watch._idle(line.ours)
        assert line.wire.closed == "close"
        assert line.ours.why == "It was idle."

    run(work)


@pytest.mark.parametrize("body", [b"", b"{}", None])
def test_what_waits_when_the_peer_hangs_up_was_not_sent(body: bytes | None) -> None:
    async def test() -> None:
        line = Line()
        late = H2Stream(line.ours.loop, "POST")
        line.ours.open(late, b"\x82", body)
        line.ours.eof_received()
        assert not line.ours.usable
        await asyncio.sleep(0)
        assert line.feed() == [], "the transport closes itself by now and swallows what it is given"
        line.ours.connection_lost(None)
        assert isinstance(late.error, Unprocessed)
        assert [type(stream.error) for stream in line.streams] == [Broken, Broken]

    run(test)


def test_a_connection_lost_in_the_turn_of_sending_sent_nothing() -> None:
    async def test() -> None:
        for closing in (True, False):
            line = Line()
            late = H2Stream(line.ours.loop, "POST")
            line.ours.open(late, b"\x82", b"{}")
            if closing:
                line.wire.abort()
                assert line.feed() == []
            line.ours.connection_lost(BrokenPipeError())
            assert isinstance(late.error, Unprocessed)
            assert [type(stream.error) for stream in line.streams] == [Broken, Broken]

    run(test)


@pytest.mark.parametrize("refusal", [h2.rst_stream(1, h2.REFUSED_STREAM), h2.goaway(h2.NO_ERROR)])
def test_who_has_answered_has_processed_it(refusal: bytes) -> None:
    async def test() -> None:
        line = Line()
        line.feed(head(1), refusal)
        assert isinstance(line.streams[0].error, Reset)
        if refusal == h2.goaway(h2.NO_ERROR):
            assert isinstance(line.streams[1].error, Unprocessed)

    run(test)
