"""wire/sse: where whole events end, however the stream is cut, and what the gateway's own events look like (B22).

Pure.
"""

from __future__ import annotations

import json

import pytest

from app.wire.sse import COMMENT, PING, complete, error_event, error_event_from

EVENTS = [
    b'event: message_start\ndata: {"type": "message_start"}\n\n',
    b": comment\n\n",
    'event: x\ndata: "\u00e9\u2028\U0001f600"\n\n'.encode(),
    b"data: a\ndata: b\n\n",
    b"event: message_stop\ndata: {}\n\n",
]
ENDINGS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


@pytest.mark.parametrize("ending", list(ENDINGS))
@pytest.mark.parametrize("size", range(1, 40))
def test_b14_cut_anywhere_the_same_whole_events_come_out(ending: str, size: int) -> None:
    events = [event.replace(b"\n", ENDINGS[ending]) for event in EVENTS]
    stream = b"".join(events)
    boundaries = {0}
    for event in events:
        boundaries.add(max(boundaries) + len(event))
    out, rest = b"", b""
    for start in range(0, len(stream), size):
        rest += stream[start : start + size]
        end = complete(rest)
        out, rest = out + rest[:end], rest[end:]
        assert len(out) in boundaries, "cut inside an event"
    assert (out, rest) == (stream, b"")


@pytest.mark.parametrize("half", [b"", b"data: x", b"data: x\n", b"data: x\r\n", b"data: x\r\n\r"])
def test_half_an_event_is_not_whole(half: bytes) -> None:
    assert complete(half) == 0
    assert complete(b"data: y\n\n" + half) == len(b"data: y\n\n")


@pytest.mark.parametrize("event", [COMMENT, PING, error_event("api_error", "x", "r")])
def test_our_own_events_are_whole(event: bytes) -> None:
    assert complete(event) == len(event)
    assert event.count(b"\n\n") == 1


def test_b22_the_error_event_is_anthropics() -> None:
    event = error_event("overloaded_error", 'line\n"quoted"', "req-1")
    name, data = event.rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": 'line\n"quoted"'},
        "request_id": "req-1",
    }


def test_b23_an_upstreams_error_object_goes_out_whole_on_one_line() -> None:
    body = (
        '{\n "type": "error",\n "error": {"type": "rate_limit_error", "message": "\u00e9", "extra": 1}\n}'.encode()
    )
    event = error_event_from(body)
    assert event.count(b"\n") == 3
    assert json.loads(event.split(b"data: ")[1]) == json.loads(body)
    assert "\u00e9".encode() in event


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"type": "message"}', b"\xff", b'"error"'])
def test_what_is_no_error_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        error_event_from(body)
