"""gateway/body: whole events only, heartbeats between them, one terminal event at most (B14, B20-B24).

Pure: the crossing is a script.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from app.bridge.call import Crossing
from app.errors import (
    BreakerOpen,
    ClientGone,
    DeadlinePassed,
    Draining,
    GatewayError,
    NoCredential,
    QueueTimeout,
    StreamBroken,
)
from app.exchange import Journey, Reply
from app.gateway.body import HOLD_LIMIT_BYTES, Body, BodyRules, EventStream, Watch, plain, split
from app.gateway.pace import Pace
from app.wire import sse

BEAT = b": beat\n\n"
RULES = BodyRules(8192, 15.0, BEAT)
START = b'event: message_start\ndata: {"type": "message_start"}\n\n'
DELTA = 'event: content_block_delta\ndata: {"text": "\u00e9"}\n\n'.encode()
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'
HALF = b'event: content_block_delta\ndata: {"te'
BROKE = StreamBroken("broke")


class Script:
    """Plays a crossing: bytes are taken, exceptions raised, then the end."""

    def __init__(self, *steps: bytes | BaseException) -> None:
        self.steps = list(steps)
        self.closed = 0
        self.timeouts: list[float | None] = []

    def take(self, tick: Callable[[], None], timeout_s: float | None = None) -> list[bytes]:
        self.timeouts.append(timeout_s)
        tick()
        if not self.steps:
            return []
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return [step]

    def close(self) -> None:
        self.closed += 1


def stream(
    *steps: bytes | BaseException,
    rules: BodyRules = RULES,
    tick: Any = lambda: None,
    erred: Callable[[str], None] = lambda kind: None,
) -> EventStream:
    return EventStream(cast(Crossing, Script(*steps)), tick, rules, "req-1", erred)


def drained(pieces: Iterator[bytes]) -> tuple[list[bytes], GatewayError | None]:
    """The pieces, and what the iterator ended with."""
    got = []
    while True:
        try:
            got.append(next(pieces))
        except StopIteration as stop:
            return got, stop.value


def played(*steps: bytes | BaseException, rules: BodyRules = RULES) -> tuple[bytes, GatewayError | None]:
    pieces, error = drained(stream(*steps, rules=rules).events())
    return b"".join(pieces), error


def terminal(event: bytes) -> dict[str, Any]:
    """What the one error event at the end says."""
    head, found, data = event.rpartition(b"event: error\ndata: ")
    assert found
    assert event.endswith(b"\n\n")
    assert b"event: error" not in head
    said: dict[str, Any] = json.loads(data)
    return said


def reply(status: int = 200, stream: bool = True, **headers: str) -> Reply:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, pairs, stream, "HTTP/2", Journey(), 0.0, 0.0, 0.0)


# -------------------------------------------------------------------- events
@pytest.mark.parametrize("at", range(len(START + DELTA + STOP) + 1))
def test_b14_cut_at_every_byte_the_same_events_go_out(at: int) -> None:
    whole = START + DELTA + STOP
    pieces, error = drained(stream(*[part for part in (whole[:at], whole[at:]) if part]).events())
    assert (b"".join(pieces), error) == (whole, None)
    boundaries = {0, len(START), len(START + DELTA), len(whole)}
    sent = 0
    for piece in pieces:
        sent += len(piece)
        assert sent in boundaries


def test_b20_the_head_goes_out_before_the_first_event() -> None:
    assert next(stream().events()) == b""


@pytest.mark.parametrize("at", range(len(DELTA)))
def test_b22_death_after_half_an_event_is_one_error_at_the_boundary(at: int) -> None:
    out, error = played(START, DELTA[:at] or DELTA, BROKE)
    kept = START + (DELTA if at == 0 else b"")
    assert out.startswith(kept + b"event: error\n")
    assert terminal(out[len(kept) :]) == {
        "type": "error",
        "error": {"type": "api_error", "message": "broke"},
        "request_id": "req-1",
    }
    assert error is BROKE


@pytest.mark.parametrize("refused", [Draining(), QueueTimeout(), BreakerOpen(), NoCredential()])
def test_b22_a_drain_or_a_refusal_is_overloaded_error(refused: GatewayError) -> None:
    out, error = played(START, refused)
    assert terminal(out)["error"]["type"] == "overloaded_error"
    assert error is refused


@pytest.mark.parametrize(
    "last", [STOP, STOP.replace(b"\n", b"\r\n"), b"event:error\ndata: {}\n\n", b"data: [DONE]\n\n"]
)
def test_b22_nothing_follows_the_streams_own_last_word(last: bytes) -> None:
    assert played(START, last, BROKE) == (START + last, None)


def error(kind: object, event: bytes = b"event: error\n") -> bytes:
    data = json.dumps({"type": "error", "error": {"type": kind, "message": "x"}})
    return event + b"data: " + data.encode() + b"\n\n"


def erred(*steps: bytes | BaseException) -> list[str]:
    """What a stream says of the upstream's error events."""
    told: list[str] = []
    pieces, _ = drained(stream(*steps, erred=told.append).events())
    assert b"".join(pieces) == b"".join(step for step in steps if isinstance(step, bytes))
    return told


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (error("overloaded_error"), "overloaded_error"),
        (error("api_error", b""), "api_error"),
        (error("api_error").replace(b"\n", b"\r\n"), "api_error"),
        (error("a" * 64), "a" * 64),
        (error("a" * 65), "error"),
        (error("Not a name\n"), "error"),
        (error("api_error\n"), "error"),
        (error(7), "error"),
        (b"event: error\ndata: {broken\n\n", "error"),
        (b"event: error\ndata: \xff\n\n", "error"),
        (b"event: error\n\n", "error"),
        (b"event: error\ndata: [" + b"[" * 50_000 + b"\n\n", "error"),
    ],
)
def test_b40_an_error_event_of_the_upstreams_is_told_of_by_its_type(last: bytes, kind: str) -> None:
    assert erred(START, DELTA, last) == [kind]
    assert erred(START + DELTA + last) == [kind]
    assert erred(START, *[last[at : at + 1] for at in range(len(last))][:2000], last[2000:]) == [kind]


@pytest.mark.parametrize("last", [STOP, b"data: [DONE]\n\n", DELTA.replace(b"text", b"error")])
def test_b40_no_other_end_is_told_of(last: bytes) -> None:
    spoken = b'event: content_block_delta\ndata: {"text": "event: error data: {\\"type\\": \\"error\\""}\n\n'
    assert erred(START, spoken, last) == []
    assert erred(START, STOP, error("api_error")) == []


def test_b22_a_word_about_the_end_is_not_the_end() -> None:
    talk = b'event: x\ndata: {"text": "event: message_stop"}\n\n'
    assert terminal(played(talk, BROKE)[0])


def test_b22_nothing_follows_the_last_word_and_a_comment() -> None:
    assert played(START, STOP, b": bye\n\n", BROKE) == (START + STOP + b": bye\n\n", None)


def test_an_unfinished_event_of_a_finished_stream_is_passed_on() -> None:
    assert played(START, HALF) == (START + HALF, None)


def test_pieces_are_at_most_the_chunk_size() -> None:
    data = b"data: " + b"x" * 20_000 + b"\n\n"
    pieces, _ = drained(stream(data, rules=BodyRules(4096, 0.0, BEAT)).events())
    assert max(map(len, pieces)) == 4096
    assert b"".join(pieces) == data


def test_several_pieces_that_wait_are_joined() -> None:
    made = stream()
    made._crossing.take = lambda *_: pieces.pop() if pieces else []  # type: ignore[method-assign]
    pieces = [[START[:5], START[5:]]]
    assert b"".join(drained(made.events())[0]) == START
    assert list(split([b"ab", b"cd"], 3)) == [b"abc", b"d"]


def test_b21_a_client_that_left_is_raised_not_rendered() -> None:
    with pytest.raises(ClientGone):
        drained(stream(START, ClientGone()).events())
    with pytest.raises(ClientGone):
        drained(stream(ClientGone()).early(lambda _: reply()))


# ---------------------------------------------------------------- heartbeats
def test_b23_a_heartbeat_only_between_events() -> None:
    out, error = played(START, TimeoutError(), HALF, TimeoutError(), DELTA[len(HALF) :], TimeoutError(), STOP)
    assert error is None
    whole = HALF + DELTA[len(HALF) :]
    assert out == START + BEAT + BEAT + whole + BEAT + STOP  # the half event is held: between events still


def test_b23_no_heartbeat_inside_a_torn_event() -> None:
    giant = b"data: " + b"x" * (HOLD_LIMIT_BYTES + 1)
    out, _ = played(giant, TimeoutError(), b"y\n\n", TimeoutError(), STOP)
    assert out == giant + b"y\n\n" + BEAT + STOP


def test_b23_off_means_wait_without_end() -> None:
    made = stream(START, rules=BodyRules(8192, 0.0, BEAT))
    drained(made.events())
    assert set(cast(Any, made._crossing).timeouts) == {None}


# ---------------------------------------------------------------- giant events
def test_b24_a_giant_event_goes_out_torn_and_unchanged() -> None:
    giant = b"data: " + b"x" * (3 * HOLD_LIMIT_BYTES)
    steps = [giant[n : n + 50_000] for n in range(0, len(giant), 50_000)]
    pieces, error = drained(stream(*steps, b"\n\n" + START + HALF, DELTA[len(HALF) :]).events())
    assert (b"".join(pieces), error) == (giant + b"\n\n" + START + DELTA, None)


def test_b22_death_inside_a_torn_event_closes_it_first() -> None:
    giant = b"data: " + b"x" * (HOLD_LIMIT_BYTES + 1)
    out, _ = played(giant, BROKE)
    assert out.startswith(giant + b"\n\nevent: error\n")
    assert terminal(out)


def test_b22_the_end_of_a_torn_event_is_seen_wherever_it_is_cut() -> None:
    giant = b"data: " + b"x" * HOLD_LIMIT_BYTES + b"\n"
    out, _ = played(giant, b"\n" + HALF, BROKE)
    assert out.startswith(giant + b"\nevent: error\n")


# --------------------------------------------------------------------- early
def early(*heads: Reply | BaseException, steps: tuple[bytes | BaseException, ...] = ()) -> tuple[bytes, Any]:
    left = list(heads)

    def head(timeout_s: float) -> Reply:
        assert timeout_s == RULES.heartbeat_s
        step = left.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    pieces, error = drained(stream(*steps).early(head))
    return b"".join(pieces), error


def test_b23_before_the_head_too() -> None:
    out, error = early(TimeoutError(), TimeoutError(), reply(), steps=(START, STOP))
    assert (out, error) == (BEAT * 3 + START + STOP, None)


def test_b23_a_later_refusal_becomes_the_error_event() -> None:
    body = b'{"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}'
    out, error = early(reply(429, False), steps=(body[:9], body[9:]))
    assert terminal(out) == json.loads(body)
    assert isinstance(error, StreamBroken)


@pytest.mark.parametrize("body", [b"<html>502</html>", b"", b"x" * (HOLD_LIMIT_BYTES + 1), b"{}"])
def test_b23_a_refusal_that_is_no_error_object_is_an_api_error(body: bytes) -> None:
    out, error = early(reply(502, False), steps=(body, b"more") if body else ())
    assert terminal(out)["error"] == {"type": "api_error", "message": "The upstream answered status 502."}
    assert error is not None


def test_b23_a_refusal_nested_too_deeply_is_an_api_error() -> None:
    assert terminal(early(reply(502, False), steps=(b"[" * 60_000,))[0])


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_b23_a_coded_stream_is_decoded_after_the_head_was_committed(coding: str, size: int) -> None:
    whole = START + DELTA + STOP
    coded = zlib.compress(whole) if coding == "deflate" else gzip.compress(whole)
    parts = tuple(coded[n : n + size] for n in range(0, len(coded), size))
    assert early(reply(content_encoding=coding), steps=parts) == (BEAT + whole, None)


def test_b23_a_coded_refusal_is_decoded() -> None:
    body = b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}'
    out, _ = early(reply(529, False, content_encoding="gzip"), steps=(gzip.compress(body),))
    assert terminal(out) == json.loads(body)
    out, _ = early(reply(529, False, content_encoding="gzip"), steps=(b"no gzip",))
    assert terminal(out)["error"]["type"] == "api_error"


def test_a_coding_that_cannot_be_decoded_and_a_damaged_one_end_in_the_error_event() -> None:
    out, error = early(reply(content_encoding="br"))
    assert "'br'" in terminal(out)["error"]["message"]
    out, error = early(reply(content_encoding="gzip"), steps=(b"no gzip",))
    assert isinstance(error, StreamBroken)
    assert "damaged" in terminal(out)["error"]["message"]


def test_b23_an_upstream_that_fails_after_the_commit() -> None:
    out, error = early(DeadlinePassed())
    assert out.startswith(BEAT)
    assert terminal(out)["error"]["type"] == "api_error"
    assert isinstance(error, DeadlinePassed)


# ---------------------------------------------------------------------- body
class Finish:
    """Notes what a body ended with."""

    def __init__(self) -> None:
        self.calls: list[tuple[GatewayError | None, bool, int]] = []

    def __call__(self, error: GatewayError | None, left: bool, sent: int) -> None:
        self.calls.append((error, left, sent))


def body_of(*steps: bytes | BaseException) -> tuple[Body, Script, Finish]:
    crossing, finish = Script(*steps), Finish()
    port = cast(Crossing, crossing)
    return Body(plain(port, lambda: None, RULES), port, finish), crossing, finish


def test_a_plain_body_passes_and_is_accounted_once() -> None:
    body, crossing, finish = body_of(b"abc", b"de")
    assert list(body) == [b"abc", b"de"]
    body.close()
    body.close()
    assert (crossing.closed, finish.calls) == (1, [(None, False, 5)])


def test_b22_a_plain_body_that_breaks_off_is_cut() -> None:
    body, crossing, finish = body_of(b"abc", BROKE)
    assert next(body) == b"abc"
    with pytest.raises(ConnectionResetError, match="broke"):
        next(body)
    body.close()
    assert (crossing.closed, finish.calls) == (1, [(BROKE, False, 3)])


def test_b21_a_client_that_stops_reading_has_left() -> None:
    body, crossing, finish = body_of(b"abc", b"de")
    next(body)
    body.close()
    assert (crossing.closed, finish.calls) == (1, [(None, True, 3)])


def test_b21_a_client_noticed_gone_has_left() -> None:
    body, _, finish = body_of(ClientGone())
    with pytest.raises(ConnectionResetError):
        next(body)
    body.close()
    assert [(type(e), left) for e, left, _ in finish.calls] == [(ClientGone, True)]


def test_an_event_streams_error_is_accounted_for() -> None:
    finish = Finish()
    made = stream(START, BROKE)
    body = Body(made.events(), made._crossing, finish)
    sent = sum(map(len, body))
    body.close()
    assert finish.calls == [(BROKE, False, sent)]


# --------------------------------------------------------------------- watch
def test_the_watch_gives_up_for_three_reasons() -> None:
    Watch(lambda: False, lambda now: False, None)()
    Watch(lambda: False, lambda now: False, float("inf"))()
    with pytest.raises(ClientGone):
        Watch(lambda: True, lambda now: True, 0.0)()
    with pytest.raises(Draining):
        Watch(lambda: False, lambda now: True, 0.0)()
    with pytest.raises(StreamBroken):
        Watch(lambda: False, lambda now: False, -1.0)()


def test_b22_an_unnamed_error_event_is_a_last_word_too() -> None:
    said = b'data: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    assert b"".join(stream(said, StreamBroken()).events()) == said


# ---------------------------------------------------------------------- pace
@pytest.mark.parametrize("beat", [BEAT, sse.PING])
def test_heartbeats_and_the_first_empty_piece_are_no_events_and_are_shown_to_nobody(beat: bytes) -> None:
    seen: list[bytes] = []
    pace = Pace(beat)
    rules = BodyRules(8192, 15.0, beat)
    made = stream(TimeoutError(), START, TimeoutError(), DELTA, STOP, TimeoutError(), rules=rules)
    body = Body(made.events(), made._crossing, lambda *_: None, seen.append, pace)
    got = list(body)
    assert got == [b"", beat, START, beat, DELTA, STOP, beat]
    assert seen == [START, DELTA, STOP]
    assert sum(pace.gaps) == 2
    body.close()


def test_what_is_no_event_stream_is_shown_and_not_timed() -> None:
    seen: list[bytes] = []
    script = cast(Crossing, Script(b"one", b"two"))
    got = list(Body(plain(script, lambda: None, RULES), script, lambda *_: None, seen.append))
    assert got == seen == [b"one", b"two"]
