"""The client for streams: what it finds in bytes that are cut anywhere."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from app.bench.client import Answer, Connection
from app.bench.stream_client import Scanner, StreamConnection, Streamed, Streams, stream_body
from app.simulator import content

STAMPS = (1_000_000_007, 2_000_000_011, 3_000_000_013)
BODY = b"".join(
    [
        content.stream_start("claude-sim-stream-3x1ms"),
        *(content.delta(index, b"@T:%d;" % stamp) for index, stamp in enumerate(STAMPS)),
        content.stream_stop(3),
    ]
)
NOW_NS = 5_000_000_000
DELAYS = [NOW_NS - stamp for stamp in STAMPS]


def _scanned(*pieces: bytes) -> Scanner:
    scanner = Scanner()
    for piece in pieces:
        scanner.feed(piece, NOW_NS)
    return scanner


def _chunked(*pieces: bytes) -> bytes:
    """A whole answer whose body comes in these chunks."""
    frames = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\n\r\n"


def test_every_stamp_is_found_wherever_the_body_is_cut() -> None:
    for at in range(len(BODY) + 1):
        found = _scanned(BODY[:at], BODY[at:])
        assert (found.delays_ns, found.stopped, found.size_bytes) == (DELAYS, True, len(BODY)), f"cut at {at}"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 200])
def test_every_stamp_is_found_in_small_pieces(size: int) -> None:
    found = _scanned(*(BODY[at : at + size] for at in range(0, len(BODY), size)))
    assert (found.delays_ns, found.stopped, found.size_bytes) == (DELAYS, True, len(BODY))


def test_a_stamp_is_as_old_as_its_last_byte_is_late() -> None:
    scanner = Scanner()
    scanner.feed(b"x@T:100", 200)
    scanner.feed(b"0;", 3000)
    scanner.feed(b"@T:2500;", 3000)
    assert scanner.delays_ns == [2000, 500]


def test_what_only_looks_like_a_stamp_is_none() -> None:
    found = _scanned(b"@", b"T:", b"x; a@b @T:; @T", b":12", b"34", b"56 ", b"; @T:99;")
    assert found.delays_ns == [NOW_NS - 99]


@pytest.mark.parametrize(
    ("rest", "stopped"),
    [
        (b"", True),
        (b"\n", True),
        (b"event: message_stop\ndata: {}\n\n", True),
        (b"event: error\ndata: {" + b" " * 200 + b"}\n\n", False),
        (b"event: ", False),
    ],
)
def test_the_end_is_a_whole_message_stop(rest: bytes, stopped: bool) -> None:
    assert _scanned(BODY, rest).stopped is stopped
    assert not _scanned(BODY[:-2], b"").stopped
    assert not _scanned(BODY[:-200]).stopped


class Wire:
    """A transport that keeps what is written, and answers by itself if it is told what."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.told = told
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.told()

    def abort(self) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50_000)


class Canned(Streams):
    """A client whose connections answer by themselves."""

    def __init__(self, answer: bytes, url: str = "http://127.0.0.1:1") -> None:
        super().__init__(url)
        self.answer = answer
        self.wire = Wire()

    async def connect(self) -> Connection:
        if not self.answer:
            raise ConnectionRefusedError("refused")
        connection = StreamConnection(self._count)

        def respond() -> None:
            for at in range(len(self.answer)):
                connection.data_received(self.answer[at : at + 1])

        def soon() -> None:
            asyncio.get_running_loop().call_soon(respond)

        self.wire = Wire(soon)
        connection.connection_made(cast("asyncio.Transport", self.wire))
        return connection


def test_a_chunk_may_end_within_a_stamp() -> None:
    async def main() -> None:
        at = BODY.index(b"@T:2") + 5
        client = Canned(_chunked(BODY[:at], BODY[at : at + 1], BODY[at + 1 :]))
        for turn in (1, 2):  # the second on the same connection
            one = await client.stream(b"{}", {"x-api-key": "k"})
            assert (one.status, len(one.delays_ns), one.stopped, one.size_bytes) == (200, 3, True, len(BODY))
            assert 0 < one.sent_s <= one.first_s <= one.body_s <= one.done_s
            assert one.body_s <= time.monotonic()
            assert client.begun == turn
        written = client.wire.written[0]
        assert written.startswith(b"POST /v1/messages HTTP/1.1\r\n")
        assert b"\r\naccept: text/event-stream\r\n" in written
        assert b"\r\nx-api-key: k\r\n" in written

    asyncio.run(main())


def test_what_was_read_of_a_broken_stream_is_kept() -> None:
    async def main() -> None:
        connection = StreamConnection()
        connection.connection_made(cast("asyncio.Transport", Wire()))
        task = asyncio.ensure_future(connection.exchange(b"GET", 30))
        await asyncio.sleep(0)
        connection.data_received(_chunked(BODY)[:-300])
        connection.connection_lost(ConnectionResetError("reset"))
        one = await task
        assert (one.status, len(one.delays_ns), one.stopped) == (0, 3, False)
        assert "reset" in one.fault
        assert one.body_s > 0

    asyncio.run(main())


def test_no_body_is_no_beginning() -> None:
    async def main() -> None:
        client = Canned(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "http://127.0.0.1:1/under")
        one = await client.stream(b"{}", {})
        assert (one.status, one.body_s, one.delays_ns, one.stopped, client.begun) == (503, 0.0, [], False, 0)
        assert client.wire.written[0].startswith(b"POST /under/v1/messages ")

    asyncio.run(main())


def test_no_connection_is_a_sample() -> None:
    async def main() -> None:
        one = await Canned(b"").stream(b"{}", {})
        assert isinstance(one, Streamed)
        assert isinstance(one, Answer)
        assert (one.status, one.stopped) == (0, False)
        assert "refused" in one.fault

    asyncio.run(main())


def test_a_body_asks_for_events() -> None:
    asked = json.loads(stream_body("m", "hello"))
    assert (asked["model"], asked["stream"], asked["messages"][0]["content"]) == ("m", True, "hello")
