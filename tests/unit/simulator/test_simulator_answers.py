"""What is sent has the provider's shapes."""

from __future__ import annotations

import gzip
import json

import hpack
import pytest

from app.simulator import content, golden
from app.simulator.heads import DateLine, Head, h1_status, h2_content_length, h2_status, h2_table_off
from app.simulator.replay import parse
from app.simulator.scripts import Tally
from app.simulator.streams import octets


def _events(data: bytes) -> list[tuple[str, dict[str, object]]]:
    found = []
    for block in data.decode().split("\n\n"):
        lines = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        if "data" in lines:
            found.append((lines["event"].strip(), json.loads(lines["data"])))
    return found


def test_static_head_blocks_decode_on_any_connection() -> None:
    pairs = [("x-a", "1"), ("X-Long", "v" * 300), ("set-cookie", "a"), ("set-cookie", "b")]
    head = Head(pairs)
    block = h2_table_off() + h2_status(429) + head.h2 + h2_content_length(1234)
    for _ in range(2):
        decoder = hpack.Decoder()
        fields = [(str(name), str(value)) for name, value in decoder.decode(block)]
        lowered = [(name.lower(), value) for name, value in pairs]
        assert fields == [(":status", "429"), *lowered, ("content-length", "1234")]
        assert not decoder.header_table.dynamic_entries
    assert head.h1.startswith(b"x-a: 1\r\nX-Long: vvv")
    assert [str(value) for _, value in hpack.Decoder().decode(h2_status(200))] == ["200"]


@pytest.mark.parametrize(
    ("status", "line"),
    [(200, b"HTTP/1.1 200 OK"), (529, b"HTTP/1.1 529 Overloaded"), (599, b"HTTP/1.1 599 Status")],
)
def test_status_lines(status: int, line: bytes) -> None:
    assert h1_status(status) == line + b"\r\n"


def test_the_date_is_encoded_once_a_second() -> None:
    dates = DateLine()
    first = dates.at(1_000_000_000.2)
    assert first.h1 == b"date: Sun, 09 Sep 2001 01:46:40 GMT\r\n"
    assert dates.at(1_000_000_000.9) is first
    assert dates.at(1_000_000_001.0) is not first


def test_a_message_is_json_whatever_the_model_is_called() -> None:
    message = json.loads(content.message('odd "name" \n é', b"text"))
    assert message["model"] == 'odd "name" \n é'
    assert message["content"] == [{"type": "text", "text": "text"}]
    assert len(content.text_of(2)) == 2048


def test_a_stream_has_all_its_events_and_cumulative_usage() -> None:
    data = (
        content.stream_start("m", 9) + content.delta(0, b"a") + content.delta(1, b"b") + content.stream_stop(2, 9)
    )
    events = _events(data)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == body["type"] for name, body in events)
    assert events[-2][1]["usage"] == {
        "input_tokens": 9,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 2,
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, "rate_limit_error"),
        (529, "overloaded_error"),
        (500, "api_error"),
        (418, "invalid_request_error"),
        (503, "api_error"),
    ],
)
def test_errors_have_the_apis_types(status: int, kind: str) -> None:
    error = json.loads(content.error(status, b"req_1"))
    assert (error["type"], error["error"]["type"], error["request_id"]) == ("error", kind, "req_1")


def test_golden_bytes_are_legal() -> None:
    assert json.loads(golden.GOLDEN_JSON)["usage"]["output_tokens"] == 6
    assert gzip.decompress(golden.GOLDEN_GZIP) == golden.GOLDEN_JSON
    events = _events(golden.GOLDEN_SSE)
    assert events[0][0] == "message_start"
    assert events[-1][0] == "message_stop"
    assert b"".join(golden.golden_pieces()) == golden.GOLDEN_SSE
    assert all(len(piece) == golden.PIECE_BYTES for piece in golden.golden_pieces()[:-1])


def test_octets_are_the_same_each_time() -> None:
    data = b"".join(octets(200_000))
    assert len(data) == 200_000
    assert data == b"".join(octets(200_000))
    assert data[:4] == bytes((0, 7, 14, 21))
    assert list(octets(0)) == []


def test_a_tally_forgets_the_oldest() -> None:
    tally = Tally(limit=2)
    assert [tally.add("a"), tally.add("a"), tally.add("b"), tally.add("c"), tally.add("a")] == [0, 1, 0, 0, 0]
    tally.clear()
    assert tally.add("a") == 0


def test_recordings_keep_their_bytes_and_lose_their_framing() -> None:
    row = {
        "status": 200,
        "response_headers": [
            ["Content-Type", "text/event-stream"],
            ["Connection", "close"],
            ["Content-Length", "9"],
        ],
        "response_body_b64": "YToxCgpiOjIKCnJlc3Q=",
        "is_stream": True,
    }
    plain = {"status": 404, "response_headers": [], "response_body_b64": "", "is_stream": False}
    stream, empty = parse([json.dumps(row), "", json.dumps(plain)])
    assert stream.headers == [("Content-Type", "text/event-stream")]
    assert stream.pieces() == [b"a:1\n\n", b"b:2\n\n", b"rest"]
    assert stream.body == b"a:1\n\nb:2\n\nrest"
    assert not stream.head.dated
    assert (empty.status, empty.pieces()) == (404, [])
    assert parse([json.dumps({**row, "is_stream": False})])[0].pieces() == [stream.body]
