"""The simulator's HTTP/2 frame by frame: flow control, GOAWAY, refusal, resets, protocol errors."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple

import hpack
import pytest

from app.simulator import frames
from app.simulator.frames import END_HEADERS, END_STREAM, ErrorCode, FrameType, Setting
from app.simulator.options import Options
from app.simulator.running import Running
from app.simulator.streams import octets
from app.simulator.thread import running_in_thread

MAX_STREAMS = 3
WINDOW = 100_000


@pytest.fixture(scope="module")
def simulator() -> Iterator[Running]:
    with running_in_thread(Options(max_concurrent_streams=MAX_STREAMS, initial_window_size=WINDOW)) as running:
        yield running


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer:
    """A client that sends and receives single frames."""

    def __init__(
        self, simulator: Running, *, settings: tuple[tuple[int, int], ...] = (), preface: bytes = frames.PREFACE
    ):
        context = ssl.create_default_context(cafile=simulator.ca_path)
        context.set_alpn_protocols(["h2"])
        port = int(simulator.tls_url.rsplit(":", 1)[1])
        raw = socket.create_connection(("127.0.0.1", port), timeout=3)
        self._socket = context.wrap_socket(raw, server_hostname="localhost")
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._rest = b""
        self.send(preface + frames.settings(settings))

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def block(self, path: str = "/v1/messages", *more: tuple[str, str]) -> bytes:
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", path), *more]
        return self._encoder.encode(fields)

    def ask(self, stream: int, scenario: str, *, sse: bool = True, user: str = "u") -> None:
        """A whole messages request."""
        body = {"model": f"claude-sim-{scenario}", "stream": sse, "metadata": {"user_id": user}}
        self.send(frames.headers(stream, self.block(), end_stream=False))
        self.send(frames.frame(FrameType.DATA, END_STREAM, stream, json.dumps(body).encode()))

    def frames(self) -> Iterator[Frame]:
        """Received frames until the connection ends."""
        while True:
            while len(self._rest) >= 9:
                length = int.from_bytes(self._rest[:3], "big")
                if len(self._rest) < 9 + length:
                    break
                head, payload = self._rest[:9], self._rest[9 : 9 + length]
                self._rest = self._rest[9 + length :]
                found = Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
                if found.kind == FrameType.HEADERS:
                    found = found._replace(payload=repr(self._decoder.decode(payload)).encode())
                yield found
            data = self._socket.recv(65_536)
            if not data:
                return
            self._rest += data

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of that type."""
        return next(f for f in self.frames() if f.kind == kind and stream in (None, f.stream))

    def data(self, stream: int) -> bytes:
        """The body of a stream to its end."""
        body = b""
        for found in self.frames():
            if found.kind == FrameType.DATA and found.stream == stream:
                body += found.payload
                if found.flags & END_STREAM:
                    return body
        raise AssertionError("the connection ended first")


@pytest.fixture
def peer(simulator: Running) -> Iterator[Peer]:
    simulator.reset()
    made = Peer(simulator)
    yield made
    made.close()


def _error(found: Frame) -> int:
    return int.from_bytes(found.payload[-4:], "big")


def _goaway(found: Frame) -> tuple[int, int]:
    return int.from_bytes(found.payload[:4], "big"), int.from_bytes(found.payload[4:8], "big")


def test_settings_are_announced_and_acknowledged(peer: Peer) -> None:
    announced = dict(frames.parse_settings(peer.until(FrameType.SETTINGS).payload))
    assert announced[Setting.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
    assert announced[Setting.INITIAL_WINDOW_SIZE] == WINDOW
    assert peer.until(FrameType.SETTINGS).flags == frames.ACK


def test_a_stream_above_the_limit_is_refused(peer: Peer, simulator: Running) -> None:
    for stream in (1, 3, 5, 7):
        peer.ask(stream, "hang")
    refused = peer.until(FrameType.RST_STREAM)
    assert (refused.stream, _error(refused)) == (7, ErrorCode.REFUSED_STREAM)
    assert simulator.stats()["open_streams"] == MAX_STREAMS
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    peer.ask(9, "json-0ms", sse=False)
    assert json.loads(peer.data(9))["model"] == "claude-sim-json-0ms"
    stats = simulator.stats()
    assert (stats["open_streams"], stats["client_aborts"], stats["refused_sent"]) == (2, 1, 1)


def test_refused_and_reset_streams_have_their_codes(peer: Peer) -> None:
    peer.ask(1, "refused")
    refused = peer.until(FrameType.RST_STREAM)
    assert (refused.stream, _error(refused)) == (1, ErrorCode.REFUSED_STREAM)
    peer.ask(3, "reset-1")
    assert _error(peer.until(FrameType.RST_STREAM, 3)) == ErrorCode.INTERNAL_ERROR


def test_goaway_lets_streams_finish_and_takes_no_new_ones(peer: Peer, simulator: Running) -> None:
    peer.ask(1, "stream-30x5ms")
    peer.ask(3, "goaway-2")
    assert _goaway(peer.until(FrameType.GOAWAY)) == (3, ErrorCode.NO_ERROR)
    peer.ask(5, "json-0ms")
    seen = list(peer.frames())
    ended = {f.stream for f in seen if f.kind == FrameType.DATA and f.flags & END_STREAM}
    assert ended == {1, 3}
    assert not [f for f in seen if f.stream == 5]
    stats = simulator.stats()
    assert (stats["goaways_sent"], stats["client_aborts"], stats["requests"]["h2"]) == (1, 0, 2)


def test_goaway_may_say_that_a_stream_was_not_processed(peer: Peer, simulator: Running) -> None:
    peer.ask(1, "stream-10x5ms")
    peer.ask(3, "goaway-now")
    assert _goaway(peer.until(FrameType.GOAWAY)) == (1, ErrorCode.NO_ERROR)
    assert {f.stream for f in peer.frames() if f.kind == FrameType.DATA} == {1}
    again = Peer(simulator)
    again.ask(1, "goaway-now", sse=False)
    assert json.loads(again.data(1))["type"] == "message"
    again.close()


def test_goaway_on_an_idle_answer_closes_at_once(peer: Peer) -> None:
    peer.ask(1, "goaway-1", sse=False)
    kinds = [f.kind for f in peer.frames() if f.kind not in (FrameType.SETTINGS, FrameType.WINDOW_UPDATE)]
    assert kinds == [FrameType.GOAWAY, FrameType.HEADERS, FrameType.DATA]


def test_data_waits_for_the_streams_window(simulator: Running) -> None:
    peer = Peer(simulator, settings=((Setting.INITIAL_WINDOW_SIZE, 10),))
    peer.ask(1, "json-0ms", sse=False)
    assert len(peer.until(FrameType.DATA).payload) == 10
    peer.send(frames.window_update(1, 7))
    assert len(peer.until(FrameType.DATA).payload) == 7
    peer.send(frames.settings([(Setting.INITIAL_WINDOW_SIZE, 5)]))  # the window is now -5
    peer.send(frames.window_update(1, 5))
    peer.send(frames.frame(FrameType.PING, 0, 0, b"12345678"))
    kinds = []
    for found in peer.frames():
        kinds.append(found.kind)
        if found.kind == FrameType.PING:
            assert found.payload == b"12345678"
            break
    assert FrameType.DATA not in kinds
    peer.send(frames.window_update(1, 3))
    assert len(peer.until(FrameType.DATA).payload) == 3
    peer.send(frames.settings([(Setting.INITIAL_WINDOW_SIZE, 100_000)]))
    assert peer.data(1).endswith(b"}}")
    peer.close()


def test_data_waits_for_the_connections_window_and_takes_turns(simulator: Running) -> None:
    peer = Peer(simulator, settings=((Setting.INITIAL_WINDOW_SIZE, 1_000_000),))
    peer.ask(1, "big-100k", sse=False)
    peer.ask(3, "big-100k", sse=False)
    got = {1: b"", 3: b""}
    order = []
    for found in peer.frames():
        if found.kind != FrameType.DATA:
            continue
        got[found.stream] += found.payload
        order.append(found.stream)
        if len(got[1]) + len(got[3]) == frames.DEFAULT_WINDOW:
            peer.send(frames.window_update(0, 200_000))
        if len(got[1]) == len(got[3]) == 102_400:
            break
    assert got[1] == got[3] == b"".join(octets(102_400))
    assert sum(first != second for first, second in itertools.pairwise(order)) >= 4
    peer.close()


def test_frames_are_no_larger_than_the_peer_takes(simulator: Running) -> None:
    peer = Peer(simulator, settings=((Setting.MAX_FRAME_SIZE, 20_000), (Setting.HEADER_TABLE_SIZE, 0)))
    peer.ask(1, "big-30k", sse=False)
    sizes = [len(peer.until(FrameType.DATA).payload) for _ in range(2)]
    assert sizes == [20_000, 30 * 1024 - 20_000]
    peer.close()


def test_upload_windows_are_refilled_as_bytes_are_read(peer: Peer) -> None:
    peer.send(frames.headers(1, peer.block("/v1/files"), end_stream=False))
    peer.send(frames.frame(FrameType.DATA, frames.PADDED, 1, b"\x05" + b"a" * 60_000 + b"\0" * 5))
    assert int.from_bytes(peer.until(FrameType.WINDOW_UPDATE, 1).payload, "big") == 60_006
    peer.send(frames.frame(FrameType.DATA, 0, 1, b"b" * 20))
    peer.send(frames.headers(1, hpack.Encoder().encode([("x-trailer", "1")]), end_stream=True))
    assert json.loads(peer.data(1))["received_bytes"] == 60_020


def test_a_slow_reader_keeps_the_window_shut(peer: Peer) -> None:
    block = peer.block("/v1/files", ("x-sim-scenario", "slowread-2000"))
    peer.send(frames.headers(1, block, end_stream=False))
    start = time.monotonic()
    for _ in range(2):
        peer.send(frames.frame(FrameType.DATA, 0, 1, b"a" * 50_000))
    updates = [int.from_bytes(peer.until(FrameType.WINDOW_UPDATE, 1).payload, "big") for _ in range(1)]
    assert time.monotonic() - start > 0.015
    assert 50_000 <= updates[0] < 100_000
    peer.send(frames.frame(FrameType.DATA, END_STREAM, 1))
    assert json.loads(peer.data(1))["received_bytes"] == 100_000


def test_padding_priority_and_continuations(peer: Peer) -> None:
    block = peer.block("/echo", ("x-long", "v" * 300))
    padded = b"\x03" + b"\0\0\0\0\x10" + block[:20] + b"\0\0\0"
    flags = frames.PADDED | frames.PRIORITY_FLAG | END_STREAM
    peer.send(frames.frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0\x10"))
    peer.send(frames.frame(FrameType.HEADERS, flags, 1, padded))
    peer.send(frames.frame(FrameType.CONTINUATION, 0, 1, block[20:40]))
    peer.send(frames.frame(FrameType.CONTINUATION, END_HEADERS, 1, block[40:]))
    assert json.loads(peer.data(1))["headers"] == [["x-long", "v" * 300]]


def test_frames_on_closed_streams_are_ignored(peer: Peer) -> None:
    peer.ask(1, "json-0ms", sse=False)
    peer.data(1)
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL) + frames.window_update(1, 5))
    peer.send(frames.frame(FrameType.DATA, 0, 1, b"late") + frames.frame(0x77, 0, 1, b"unknown"))
    peer.send(frames.headers(1, hpack.Encoder().encode([("x-late", "1")]), end_stream=True))
    peer.ask(3, "json-0ms", sse=False)
    assert json.loads(peer.data(3))["type"] == "message"


def test_a_request_without_a_path_is_reset(peer: Peer) -> None:
    peer.send(frames.headers(1, hpack.Encoder().encode([(":method", "GET")]), end_stream=True))
    assert _error(peer.until(FrameType.RST_STREAM, 1)) == ErrorCode.PROTOCOL_ERROR


_HEAD = frames.headers(1, hpack.Encoder().encode([(":method", "POST"), (":path", "/echo")]), end_stream=False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frames.frame(FrameType.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frames.headers(2, b"\x82\x84", end_stream=True), ErrorCode.PROTOCOL_ERROR),
        (frames.headers(1, b"\xff\xff\xff", end_stream=True), ErrorCode.COMPRESSION_ERROR),
        (frames.frame(FrameType.CONTINUATION, END_HEADERS, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(FrameType.HEADERS, 0, 1, b"\x82") + frames.ping_ack(b"12345678"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(FrameType.PING, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, frames.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (_HEAD + frames.window_update(1, frames.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.settings([(Setting.INITIAL_WINDOW_SIZE, 2**31)]), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.frame_header(100_000, FrameType.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (
            _HEAD + frames.frame(FrameType.DATA, END_STREAM, 1) + frames.frame(FrameType.DATA, 0, 1),
            None,
        ),
    ],
)
def test_broken_protocol_ends_the_connection(peer: Peer, data: bytes, code: ErrorCode | None) -> None:
    peer.send(data)
    if code is None:
        assert peer.data(1)
        return
    assert _goaway(peer.until(FrameType.GOAWAY))[1] == code
    assert list(peer.frames()) == []


def test_data_after_the_end_of_a_running_request_is_refused(peer: Peer) -> None:
    peer.ask(1, "hang")
    peer.send(frames.frame(FrameType.DATA, 0, 1, b"more"))
    assert _goaway(peer.until(FrameType.GOAWAY)) == (1, ErrorCode.STREAM_CLOSED)


def test_a_window_that_is_ignored_is_an_error(peer: Peer) -> None:
    block = peer.block("/v1/files", ("x-sim-scenario", "slowread-1"))
    peer.send(frames.headers(1, block, end_stream=False))
    for _ in range(2):
        peer.send(frames.frame(FrameType.DATA, 0, 1, b"a" * 60_000))
    assert _goaway(peer.until(FrameType.GOAWAY))[1] == ErrorCode.FLOW_CONTROL_ERROR


def test_another_protocol_on_an_h2_connection(simulator: Running) -> None:
    peer = Peer(simulator, preface=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert _goaway(peer.until(FrameType.GOAWAY))[1] == ErrorCode.PROTOCOL_ERROR
    peer.close()


def test_a_preface_in_pieces(simulator: Running) -> None:
    peer = Peer(simulator, preface=b"")
    peer.close()
    context = ssl.create_default_context(cafile=simulator.ca_path)
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", int(simulator.tls_url.rsplit(":", 1)[1])), timeout=3)
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(frames.PREFACE[:10])
        connection.sendall(frames.PREFACE[10:] + frames.settings([]))
        assert connection.recv(9)[3] == FrameType.SETTINGS


def test_a_stream_waits_for_a_client_that_does_not_read(simulator: Running) -> None:
    peer = Peer(simulator, settings=((Setting.INITIAL_WINDOW_SIZE, 1000),))
    simulator.reset()
    peer.ask(1, "stream-2000x0ms-200b")
    peer.until(FrameType.DATA)
    last = -1
    while last != (sent := simulator.stats()["events_sent"]):
        last = sent
        time.sleep(0.02)
    assert sent < 300  # 64 KiB wait in the stream, no more
    peer.send(frames.window_update(1, 10_000_000) + frames.window_update(0, 10_000_000))
    assert peer.data(1).count(b"@T:") > 1900
    peer.close()


def test_answers_without_a_body_and_to_head(peer: Peer) -> None:
    block = hpack.Encoder().encode([(":method", "HEAD"), (":scheme", "https"), (":path", "/echo")])
    peer.send(frames.headers(1, block, end_stream=True))
    assert peer.data(1) == b""
    peer.ask(3, "status-204", sse=False)
    assert peer.data(3) == b""


def test_an_early_answer_calls_the_upload_off(peer: Peer, simulator: Running) -> None:
    peer.send(frames.headers(1, peer.block("/v1/files", ("x-sim-scenario", "early-413")), end_stream=False))
    assert json.loads(peer.data(1))["error"]["type"] == "request_too_large"
    assert _error(peer.until(FrameType.RST_STREAM, 1)) == ErrorCode.NO_ERROR
    peer.send(frames.frame(FrameType.DATA, 0, 1, b"a" * 1000))
    peer.send(frames.headers(3, peer.block("/v1/files", ("x-sim-scenario", "early-400")), end_stream=True))
    assert json.loads(peer.data(3))["error"]["type"] == "invalid_request_error"
    assert simulator.stats()["open_streams"] == 0


def test_uploads_under_way_when_the_client_leaves(peer: Peer, simulator: Running) -> None:
    peer.send(frames.headers(1, peer.block("/v1/files"), end_stream=False))
    peer.send(frames.frame(FrameType.DATA, 0, 1, b"a"))
    peer.until(FrameType.SETTINGS)
    peer.close()
    end = time.monotonic() + 2
    while simulator.stats()["client_aborts"] < 1:
        assert time.monotonic() < end
        time.sleep(0.005)
