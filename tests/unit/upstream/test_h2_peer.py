"""Our connection against the ``h2`` library as an independent server, without sockets.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from app.upstream.h2_connection import H2Connection
from app.upstream.h2_receive import CONNECTION_WINDOW
from app.upstream.h2_stream import WINDOW, Broken, H2Stream, Reset, Unprocessed
from app.wire.h2_encode import RequestEncoder

ENCODER = RequestEncoder("https", "x")
OK = [(b":status", b"200"), (b"content-type", b"text/plain"), (b"x-a", b"1"), (b"x-a", b"2")]


class Wire(asyncio.Transport):
    """A transport that only remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = self.closed or "abort"


class Pair:
    """Our connection and an h2 server, and what each has seen."""

    def __init__(self, settings: dict[int, int] | None = None, capacity: int = 2**31) -> None:
        self.closed: list[str] = []
        self.ours = H2Connection(asyncio.get_running_loop(), self.closed.append, capacity)
        self.wire = Wire()
        self.ours.attach(self.wire)
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.server = h2.connection.H2Connection(config)
        self.server.initiate_connection()
        if settings:
            self.server.update_settings(settings)
        self.events: list[Any] = []
        self.recorded: list[bytes] = []

    async def turn(self) -> list[Any]:
        """Let both sides say what they have to; the server's new events."""
        seen = len(self.events)
        for _ in range(50):
            await asyncio.sleep(0)
            sent, self.wire.writes = b"".join(self.wire.writes), []
            if sent:
                self.events += self.server.receive_data(sent)
            back = self.server.data_to_send()
            if back:
                self.recorded.append(back)
                self.ours.data_received(back)
            elif not sent:
                break
        return self.events[seen:]

    def open(self, body: bytes | None = b"", method: str = "POST", headers: Any = ()) -> H2Stream:
        """Send a request."""
        stream = H2Stream(self.ours.loop, method)
        length = len(body) if body is not None else None
        self.ours.open(stream, ENCODER.block(method, "/v1/messages?a=%20", headers, length) or b"", body)
        return stream

    def of(self, kind: type) -> list[Any]:
        """The server's events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


Test = Callable[[], Coroutine[Any, Any, None]]


def run(test: Test) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def rest(stream: H2Stream) -> bytes:
    return b"".join([piece async for piece in stream])


def test_a_request_and_its_answer_are_exact() -> None:
    async def work() -> None:
        pair = Pair()
        stream = pair.open(b"body", headers=(("X-B", "1"), ("x-a", "caf\xe9"), ("X-B", "2")))
        await pair.turn()
        request = pair.of(h2.events.RequestReceived)[0]
        assert [(bytes(n), bytes(v)) for n, v in request.headers] == [
            (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x"),
            (b":path", b"/v1/messages?a=%20"),
            (b"x-b", b"1"), (b"x-a", b"caf\xe9"), (b"x-b", b"2"), (b"content-length", b"4"),
        ]  # fmt: skip
        assert b"".join(event.data for event in pair.of(h2.events.DataReceived)) == b"body"
        assert len(pair.of(h2.events.StreamEnded)) == 1
        pair.server.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
        pair.server.send_headers(1, OK)
        pair.server.send_data(1, b"hello ", pad_length=30)
        pair.server.send_data(1, b"world")
        pair.server.send_headers(1, [(b"x-trailer", b"1")], end_stream=True)
        await pair.turn()
        assert stream.head.done()
        assert (stream.status, stream.headers) == (200, [(n.decode(), v.decode()) for n, v in OK[1:]])
        assert await anext(stream) == b"hello world"
        assert await rest(stream) == b""
        assert (pair.ours.streams, stream.http_version) == ({}, "HTTP/2")

    run(work)


def test_the_hello_byte_for_byte() -> None:
    async def work() -> None:
        pair = Pair()
        assert pair.wire.writes == [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + bytes.fromhex(
                "000012040000000000 000200000000 00040000ffff 000600020000 000004080000000000 00ff0001"
            )
        ]

    run(work)


def test_a_burst_of_requests_is_one_write() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.turn()
        for _ in range(50):
            pair.open(b"{}")
        await asyncio.sleep(0)
        assert len(pair.wire.writes) == 1
        await pair.turn()
        assert len(pair.of(h2.events.StreamEnded)) == 50

    run(work)


async def conversation(feed: Callable[[H2Connection, bytes], None], recorded: bytes) -> tuple[Any, ...]:
    """What two streams come to when the server's bytes are fed as ``feed`` does."""
    ours = H2Connection(asyncio.get_running_loop(), lambda why: None)
    ours.attach(Wire())
    streams = [H2Stream(ours.loop, "POST") for _ in range(2)]
    for stream in streams:
        ours.open(stream, b"", b"")
    feed(ours, recorded)
    return tuple([(s.status, s.headers, await rest(s), s.error) for s in streams]), ours.max_streams, ours.ended


def test_the_same_bytes_cut_anywhere_mean_the_same() -> None:
    async def work() -> None:
        pair = Pair({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 77})
        pair.open(), pair.open()
        await pair.turn()
        long = [(b"x-long", b"v" * 20_000)]  # HEADERS and CONTINUATION
        pair.server.send_headers(1, OK + long)
        pair.server.send_headers(3, OK)
        for number in range(5):
            pair.server.send_data(1, b"one %d " % number, pad_length=number)
            pair.server.send_data(3, b"three %d " % number)
        pair.server.ping(b"12345678")
        pair.server.send_data(1, b"", end_stream=True)
        pair.server.send_headers(3, [(b"x-t", b"1")], end_stream=True)
        await pair.turn()
        recorded = b"".join(pair.recorded)
        whole = await conversation(lambda ours, data: ours.data_received(data), recorded)
        assert whole[0][0][2] == b"one 0 one 1 one 2 one 3 one 4 "
        assert whole[1:] == (77, False)

        def byte_by_byte(ours: H2Connection, data: bytes) -> None:
            for at in range(len(data)):
                ours.data_received(data[at : at + 1])

        assert await conversation(byte_by_byte, recorded) == whole
        for at in [*range(1, 400), *range(len(recorded) - 400, len(recorded))]:

            def in_two(ours: H2Connection, data: bytes, at: int = at) -> None:
                ours.data_received(data[:at])
                ours.data_received(data[at:])

            assert await conversation(in_two, recorded) == whole, at

    run(work)


def test_a_stream_nobody_reads_holds_its_window_and_no_more() -> None:
    async def work() -> None:
        pair = Pair()
        streams = [pair.open() for _ in range(11)]
        await pair.turn()
        for number in range(10):
            pair.server.send_headers(2 * number + 1, OK)
            for size in (16_384, 16_384, 16_384, 16_383):
                pair.server.send_data(2 * number + 1, b"x" * size)
        await pair.turn()
        for number in range(10):
            assert pair.server.local_flow_control_window(2 * number + 1) == 0
            assert sum(map(len, streams[number]._chunks)) == WINDOW
        pair.server.send_headers(21, OK)
        for _ in range(700):  # more than the connection's window: the reader's siblings do not starve it
            pair.server.send_data(21, b"y" * 16_384)
            await pair.turn()
            pair.server.send_data(21, b"y" * 16_384)
            await pair.turn()
            assert len(await anext(streams[10])) == 32_768
            await pair.turn()
        assert len(await anext(streams[0])) == WINDOW
        await pair.turn()
        assert pair.server.local_flow_control_window(1) == WINDOW
        assert pair.server.outbound_flow_control_window == pair.ours._credit, "both sides count the same"
        assert pair.ours._credit > CONNECTION_WINDOW // 2 - WINDOW

    run(work)


def test_small_reads_open_the_window_in_steps_of_half() -> None:
    async def work() -> None:
        pair = Pair()
        stream = pair.open()
        await pair.turn()
        pair.server.send_headers(1, OK)
        for _ in range(200):
            pair.server.send_data(1, b"e" * 500, pad_length=11)
            await pair.turn()
            assert await anext(stream) == b"e" * 500
        await pair.turn()
        updates = [event for event in pair.of(h2.events.WindowUpdated) if event.stream_id == 1]
        assert len(updates) == 200 * 512 // 32_768
        assert pair.server.local_flow_control_window(1) == WINDOW - (200 * 512 - sum(e.delta for e in updates))

    run(work)


def test_leaving_resets_at_once_and_keeps_the_connections_credit() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.turn()
        before = pair.open()
        reading = pair.open()
        closing = pair.open()
        await pair.turn()
        for stream_id in (3, 5):
            pair.server.send_headers(stream_id, OK)
            pair.server.send_data(stream_id, b"z" * 16_000)
        await pair.turn()
        assert await anext(reading) == b"z" * 16_000
        waiting = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        waiting.cancel()
        before.abandon()
        await closing.aclose()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        late = pair.server.data_to_send()
        assert not late
        pair.server.send_data(3, b"late")  # crosses the reset
        pair.ours.data_received(pair.server.data_to_send())
        await pair.turn()
        assert sorted((e.stream_id, e.error_code) for e in pair.of(h2.events.StreamReset)) == [
            (1, 8),
            (3, 8),
            (5, 8),
        ]
        assert pair.ours.streams == {}
        assert pair.ours._credit == CONNECTION_WINDOW - 32_004
        assert [piece async for piece in closing] == []
        await closing.aclose()
        assert await pair.turn() == []

    run(work)


def test_bodies_wait_for_windows() -> None:
    async def work() -> None:
        settings = h2.settings.SettingCodes
        pair = Pair({settings.INITIAL_WINDOW_SIZE: 10, settings.MAX_FRAME_SIZE: 16_384})
        await pair.turn()
        first, second = pair.open(b"a" * 25), pair.open(b"b" * 5)
        await pair.turn()

        def got(stream_id: int) -> bytes:
            return b"".join(e.data for e in pair.of(h2.events.DataReceived) if e.stream_id == stream_id)

        assert (got(1), got(3)) == (b"a" * 10, b"b" * 5)
        pair.server.increment_flow_control_window(2, 1)
        await pair.turn()
        assert got(1) == b"a" * 12
        pair.server.update_settings({settings.INITIAL_WINDOW_SIZE: 15})
        await pair.turn()
        assert got(1) == b"a" * 17
        assert len(pair.of(h2.events.StreamEnded)) == 1
        pair.server.increment_flow_control_window(100, 1)
        await pair.turn()
        assert got(1) == b"a" * 25
        assert len(pair.of(h2.events.StreamEnded)) == 2
        assert (first.error, second.error) == (None, None)

    run(work)


def test_large_bodies_share_the_connections_window_and_stop_when_the_transport_is_full() -> None:
    async def work() -> None:
        settings = h2.settings.SettingCodes
        pair = Pair({settings.INITIAL_WINDOW_SIZE: 1_000_000})
        await pair.turn()
        for _ in range(3):
            pair.open(b"x" * 60_000)
        small = pair.open(b"tiny")
        await pair.turn()
        data = pair.of(h2.events.DataReceived)
        assert sum(len(event.data) for event in data) == 65_535
        pair.server.increment_flow_control_window(40_000)
        turns = [event.stream_id for event in await pair.turn() if isinstance(event, h2.events.DataReceived)]
        assert turns == [3, 5, 7, 3], "bodies take turns"
        pair.ours.pause_writing()
        pair.server.increment_flow_control_window(10_000_000)
        assert not [e for e in await pair.turn() if isinstance(e, h2.events.DataReceived)]
        pair.ours.resume_writing()
        await pair.turn()
        assert sum(len(event.data) for event in pair.of(h2.events.DataReceived)) == 180_004
        assert len(pair.of(h2.events.StreamEnded)) == 4
        assert small.error is None

    run(work)


def test_an_answer_before_the_body_is_out_stops_the_body() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.turn()
        stream = pair.open(b"x" * 100_000)
        await pair.turn()
        pair.server.send_headers(1, [(b":status", b"413")], end_stream=True)
        events = await pair.turn()
        assert [event.error_code for event in events if isinstance(event, h2.events.StreamReset)] == [8]
        assert (stream.status, await rest(stream), pair.ours.streams) == (413, b"", {})
        pair.server.increment_flow_control_window(100_000)
        assert not [e for e in await pair.turn() if isinstance(e, h2.events.DataReceived)]

    run(work)


def test_goaway_tells_apart_what_was_never_processed() -> None:
    async def work() -> None:
        pair = Pair()
        done, not_done = pair.open(), pair.open()
        await pair.turn()
        pair.server.send_headers(1, OK)
        pair.server.close_connection(last_stream_id=1)
        frames = pair.server.data_to_send()
        pair.ours.data_received(frames)
        assert isinstance(not_done.error, Unprocessed)
        assert not_done.head.done()
        assert (pair.ours.usable, pair.ours.ended, pair.wire.closed) == (False, False, "")
        pair.ours.data_received(bytes.fromhex("000002000100000001 6f6b"))  # DATA, END_STREAM
        assert await rest(done) == b"ok"
        assert (pair.ours.ended, pair.wire.closed) == (True, "close")
        assert pair.closed == ["The upstream said GOAWAY (NO_ERROR)."]

    run(work)


def test_resets_are_told_apart() -> None:
    async def work() -> None:
        pair = Pair()
        refused, broken = pair.open(), pair.open()
        await pair.turn()
        pair.server.reset_stream(1, 7)
        pair.server.send_headers(3, OK)
        pair.server.send_data(3, b"some")
        pair.server.reset_stream(3, 2)
        await pair.turn()
        assert isinstance(refused.error, Unprocessed)
        assert await anext(broken) == b"some", "what had come can be read"
        with pytest.raises(Reset, match="INTERNAL_ERROR"):
            await anext(broken)
        assert pair.ours.usable

    run(work)


def test_a_lost_connection_knows_what_was_sent() -> None:
    async def work() -> None:
        pair = Pair()
        sent = pair.open()
        await pair.turn()
        unsent = pair.open()
        pair.ours.connection_lost(ConnectionResetError("reset"))
        assert isinstance(sent.error, Broken)
        assert isinstance(unsent.error, Unprocessed)
        assert pair.closed == ["ConnectionResetError: reset"]
        pair.ours.connection_lost(None)
        await asyncio.sleep(0)
        assert len(pair.closed) == 1

    run(work)


def test_what_a_closing_transport_swallows_was_never_sent() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.turn()
        pair.wire.closed = "by the peer"
        swallowed = pair.open()
        await asyncio.sleep(0)
        pair.ours.connection_lost(None)
        assert isinstance(swallowed.error, Unprocessed)
        other = Pair()
        assert other.ours.usable
        other.ours.eof_received()
        assert not other.ours.usable

    run(work)


def test_a_peer_without_a_header_table_is_told_so() -> None:
    async def work() -> None:
        pair = Pair({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
        await pair.turn()
        pair.open(), pair.open()
        await pair.turn()  # h2 faults where the update is missing
        assert len(pair.of(h2.events.RequestReceived)) == 2
        assert (pair.ours.ended, pair.ours.table_off) == (False, b"")

    run(work)


def test_pings_and_settings_are_answered() -> None:
    async def work() -> None:
        pair = Pair()
        pair.server.ping(b"abcdefgh")
        await pair.turn()
        assert pair.of(h2.events.PingAckReceived)[0].ping_data == b"abcdefgh"
        assert len(pair.of(h2.events.SettingsAcknowledged)) == 1
        pair.ours.heard = False
        pair.ours.ask()
        await pair.turn()
        assert pair.ours.heard

    run(work)


def test_those_over_the_peers_limit_wait_in_their_order() -> None:
    async def work() -> None:
        codes = h2.settings.SettingCodes
        pair = Pair({codes.MAX_CONCURRENT_STREAMS: 2}, capacity=100)
        await pair.turn()
        assert pair.ours.max_streams == 2
        streams, order = [pair.open(), pair.open()], []

        async def one(number: int) -> None:
            assert not pair.ours.has_room
            if await pair.ours.room():
                order.append(number)
                streams.append(pair.open())

        tasks = [asyncio.ensure_future(one(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        streams[0].abandon()
        assert pair.ours.in_flight == 2, "the place is promised"
        tasks[0].cancel()  # in the turn in which it was promised a place
        await asyncio.sleep(0.01)
        assert (order, pair.ours.in_flight) == ([2], 2)
        pair.server.update_settings({codes.MAX_CONCURRENT_STREAMS: 3})
        await pair.turn()
        assert (order, pair.ours.in_flight) == ([2, 3], 3)
        last = asyncio.ensure_future(pair.ours.room())
        await asyncio.sleep(0)
        pair.ours.retire("enough")
        assert await last is False

    run(work)
