"""Streams as the client sees them: bytes as they came and as soon as they came, signs of life in silence."""

from __future__ import annotations

import re
import time

import pytest

from app.simulator import golden
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import USUAL, Raw, message, opened, post, request, terminal_error, timed

COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.fixture(params=["comment", "ping"])
def beat(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def beating(farm: Farm, kind: str, beat: str, simulator: Running) -> Server:
    """A gateway that gives a sign of life after a second of silence."""
    return farm.shared(kind, STREAM_HEARTBEAT=1, STREAM_HEARTBEAT_KIND=beat)


def sign(beat: str) -> bytes:
    return PING if beat == "ping" else COMMENT


def test_awkward_events_pass_unchanged(server: Server) -> None:
    """B14: comments, ids, unknown events, odd spacing, characters cut across writes."""
    answer = post(server.port, "golden", stream=True)
    assert answer.body == golden.GOLDEN_SSE
    assert answer.get("content-type") == "text/event-stream; charset=utf-8"
    assert answer.get("cache-control") == "no-cache"
    assert answer.get("x-accel-buffering") == "no"


@pytest.mark.parametrize("kind", ["gevent", "gthread", "sync"])
def test_events_come_one_by_one(farm: Farm, kind: str, simulator: Running) -> None:
    """B20: each within a fraction of the second that lies between them."""
    raw, head = opened(farm.shared(kind).port, "stream-3x400ms")
    with raw:
        late = []
        for at, piece in timed(raw, head):
            late += [at - int(stamp) / 1e9 for stamp in re.findall(rb"@T:(\d+);", piece)]
    assert len(late) == 3
    assert max(late) < 0.3


def test_the_head_goes_before_the_first_event(server: Server) -> None:
    """B20: the upstream sends its head and one and a half events, then falls silent."""
    raw, head = opened(server.port, "stall-1", timeout_s=5)
    with raw:
        assert head.status == 200
        got = b""
        for piece in raw.pieces(head):
            got += piece
            if b"text_delta" in got:
                break
        assert got.endswith(b"\n\n")


def test_a_late_head_is_waited_for(server: Server) -> None:
    began = time.monotonic()
    answer = post(server.port, "slowhead-400", stream=True)
    assert time.monotonic() - began >= 0.4
    assert answer.body.endswith(b'data: {"type":"message_stop"          }\n\n')


def test_signs_of_life_between_events(beating: Server, beat: str) -> None:
    """B23: between whole events, never inside one, and nothing else changes."""
    answer = post(beating.port, "stream-1x1300ms", stream=True)
    pieces = answer.body.split(b"\n\n")
    assert pieces[-1] == b""
    assert all(piece.startswith((b"event: ", b": keep-alive")) for piece in pieces[:-1])
    given = answer.body.count(sign(beat)) - (1 if beat == "ping" else 0)  # the stream has a ping of its own
    assert 1 <= given <= 3
    assert answer.body.count(b"text_delta") == 1


def test_signs_of_life_before_the_first_byte(beating: Server, beat: str) -> None:
    """B23: status 200 is committed, then the upstream's own events follow unchanged."""
    raw, head = opened(beating.port, "slowhead-1500")
    with raw:
        assert head.status == 200
        assert head.get("content-type").startswith("text/event-stream")
        assert head.get("x-accel-buffering") == "no"
        body = raw.body(head)
    before, found, rest = body.partition(b"event: message_start\n")
    assert found
    assert before == sign(beat) * (len(before) // len(sign(beat)))
    assert 1 <= len(before) // len(sign(beat)) <= 2
    assert rest.endswith(b'data: {"type":"message_stop"          }\n\n')


def test_a_refusal_after_the_first_sign_becomes_the_error_event(farm: Farm, kind: str, simulator: Running) -> None:
    """B23: the upstream's own error object is kept."""
    server = farm.shared(kind, STREAM_HEARTBEAT=1, STREAM_HEARTBEAT_KIND="comment", REQUEST_TIMEOUT=2)
    raw, head = opened(server.port, "hang")
    with raw:
        assert head.status == 200
        body = raw.body(head)
    assert body.startswith(COMMENT)
    assert terminal_error(body)["error"]["type"] in ("api_error", "timeout_error")


def test_no_sign_of_life_for_what_is_no_stream(farm: Farm, kind: str, simulator: Running) -> None:
    server = farm.shared(kind, STREAM_HEARTBEAT=1, STREAM_HEARTBEAT_KIND="comment")
    answer = post(server.port, "delay-1300ms")
    assert answer.status == 200
    assert answer.json()["type"] == "message"


def test_many_streams_at_once(server: Server, simulator: Running) -> None:
    """20 at once on a handful of connections; each gets its own events and all of them."""
    raws = [Raw(server.port) for _ in range(20)]
    try:
        for number, raw in enumerate(raws):
            raw.send(request("/v1/messages", message(f"stream-{number + 1}x5ms", stream=True), USUAL))
        for number, raw in enumerate(raws):
            answer = raw.answer()
            assert answer.body.count(b"@T:") == number + 1
            assert f'"claude-sim-stream-{number + 1}x5ms"'.encode() in answer.body
    finally:
        for raw in raws:
            raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0)
