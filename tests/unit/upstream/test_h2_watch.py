"""upstream/h2_watch: when a connection is asked for a sign of life, and what follows where there is none.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from app.upstream.h2_connection import H2Connection
from app.upstream.h2_stream import Broken, H2Stream, Unprocessed
from app.upstream.h2_watch import DOUBT_S, LOOKS, MOVED_BYTES, Vigil, Watch
from app.wire import h2_frames as h2
from tests.unit.upstream.scripted import run
from tests.unit.upstream.test_h2_faults import HELLO, STATUS, Wire, frames

INTERVAL_S, TIMEOUT_S = 16.0, 10.0
ANSWER = h2.ping(b"penstock", ack=True)


class Clock:
    """The running loop with a time of its own, which passes only when told to."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...], asyncio.TimerHandle]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay_s, call, args, self._loop)
        self.timers.append((self.now + delay_s, call, args, handle))
        return handle

    @property
    def pending(self) -> list[tuple[float, Callable[..., None], tuple[Any, ...], asyncio.TimerHandle]]:
        return [timer for timer in self.timers if not timer[3].cancelled()]

    def step(self, until: float) -> bool:
        """Run the next timer that is due by then; False: there is none, and it is then."""
        self.timers = self.pending
        due = min(self.timers, key=lambda timer: timer[0], default=None)
        if due is None or due[0] > until:
            self.now = until
            return False
        self.timers.remove(due)
        self.now = max(self.now, due[0])
        due[1](*due[2])
        return True


class Scene:
    """A watched connection whose peer answers PINGs, or does not."""

    def __init__(self, *, answers: bool, keepalive_expiry_s: float = 1e9) -> None:
        self.clock = Clock()
        self.closed: list[str] = []
        self.ours = H2Connection(cast(asyncio.AbstractEventLoop, self.clock), self.closed.append)
        self.wire = Wire()
        self.ours.connection_made(self.wire)
        self.ours.data_received(HELLO)
        self.ours.out.flush()
        self.wire.sent = b""
        self.answers = answers
        self.pings: list[float] = []
        self.writes: list[list[int]] = []
        self.taken = 0
        self.ours.taken_bytes = lambda: self.taken  # type: ignore[method-assign]
        Watch(keepalive_expiry_s, INTERVAL_S, TIMEOUT_S).begin(self.ours)

    def open(self) -> H2Stream:
        stream = H2Stream(self.clock._loop, "POST")
        self.ours.open(stream, b"\x83", b"")
        self.look()
        return stream

    def look(self) -> None:
        """What was written since the last look; a PING is answered where the peer does so."""
        self.ours.out.flush()
        data, self.wire.sent = self.wire.sent, b""
        kinds = [kind for kind, flags, *_ in frames(data) if not flags & h2.ACK or kind != h2.PING]
        if kinds:
            self.writes.append(kinds)
        if h2.PING in kinds:
            self.pings.append(self.clock.now)
            if self.answers:
                self.hear(ANSWER)

    def hear(self, data: bytes) -> None:
        self.ours.data_received(data)

    def wait(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.step(until):
            self.look()

    @property
    def vigils(self) -> int:
        """Timers of the vigil that are set."""
        return sum(isinstance(getattr(call, "__self__", None), Vigil) for _, call, _, _ in self.clock.pending)


def scene(**options: Any) -> Callable[[Callable[[Scene], None]], None]:
    def play(work: Callable[[Scene], None]) -> None:
        async def inside() -> None:
            work(Scene(**options))

        run(inside)

    return play


def test_in_use_it_is_asked_after_a_silence_and_not_before() -> None:
    @scene(answers=True)
    def _(one: Scene) -> None:
        one.open()
        one.wait(0.6 * INTERVAL_S)
        one.hear(h2.headers(1, STATUS, False, 16384))
        heard_at = one.clock.now
        one.wait(2 * INTERVAL_S)
        assert len(one.pings) == 1
        assert INTERVAL_S <= one.pings[0] - heard_at <= INTERVAL_S * (1 + 1 / LOOKS)


def test_it_is_never_asked_more_often_than_the_interval() -> None:
    @scene(answers=True)
    def _(one: Scene) -> None:
        one.open()
        one.wait(100 * INTERVAL_S)
        gaps = [later - sooner for sooner, later in zip(one.pings, one.pings[1:], strict=False)]
        assert len(gaps) > 60
        assert min(gaps) >= INTERVAL_S
        assert not one.closed and one.ours.usable
        assert one.vigils == 1, "one timer a connection"


def test_who_says_something_is_not_asked() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        one.open()
        for _ in range(100):
            one.wait(0.9 * INTERVAL_S)
            one.hear(h2.ping(b"12345678"))
        assert (one.pings, one.closed) == ([], [])


def test_idle_it_is_not_asked_and_the_next_request_takes_the_ping_along() -> None:
    @scene(answers=True)
    def _(one: Scene) -> None:
        one.wait(20 * INTERVAL_S)
        assert one.writes == []
        one.open()
        assert one.writes == [[h2.PING, h2.HEADERS]], "in one write, so that it costs no round trip"
        one.open()
        assert one.writes[1:] == [[h2.HEADERS]]
        assert one.vigils == 1


def test_idle_for_a_little_while_it_is_not_stale() -> None:
    @scene(answers=True)
    def _(one: Scene) -> None:
        one.wait(0.9 * INTERVAL_S)
        one.open()
        assert one.writes == [[h2.HEADERS]]


def test_a_stale_connection_that_says_something_is_fresh_again() -> None:
    @scene(answers=True)
    def _(one: Scene) -> None:
        one.wait(2 * INTERVAL_S)
        assert one.ours.stale is not None
        one.hear(h2.ping(b"12345678"))
        one.wait(INTERVAL_S / LOOKS)
        one.open()
        assert one.pings == []


@pytest.mark.parametrize("idle", [False, True])
def test_who_owes_the_answer_for_too_long_is_dead(idle: bool) -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        if idle:
            one.wait(2 * INTERVAL_S)
        sent = one.open()
        one.wait(0.0 if idle else INTERVAL_S * (1 + 1 / LOOKS) + 0.01)
        (asked_at,) = one.pings
        unsent = H2Stream(one.clock._loop, "POST")
        one.ours.open(unsent, b"\x83", b"")  # its frames wait for the end of the turn
        one.ours.out.shut = True
        one.wait(asked_at + TIMEOUT_S - one.clock.now - 0.01)
        assert (one.closed, one.wire.closed) == ([], "")
        one.wait(0.02)
        assert one.wire.closed == "abort"
        assert one.closed == [f"The upstream did not answer a PING within {TIMEOUT_S:g} s."]
        assert isinstance(sent.error, Broken) and isinstance(unsent.error, Unprocessed)
        assert (one.ours.owes, one.ours.heard, one.ours.broken) == (True, False, 2)
        one.wait(10 * INTERVAL_S)
        assert one.vigils == 0


def test_in_doubt_it_takes_no_new_streams_and_a_late_answer_saves_those_it_has() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        one.wait(2 * INTERVAL_S)
        stream = one.open()
        one.wait(DOUBT_S - 0.01)
        assert one.ours.usable
        one.wait(0.02)
        assert not one.ours.usable and not one.closed
        one.hear(ANSWER)
        one.wait(TIMEOUT_S)
        assert not one.closed and stream.error is None
        assert not one.ours.owes
        one.hear(h2.headers(1, STATUS, True, 16384))
        assert one.closed == ["The upstream owes the answer to a PING."] and one.wire.closed == "close"


def test_without_streams_it_is_closed_as_soon_as_it_is_in_doubt() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        one.wait(2 * INTERVAL_S)
        one.open().abandon()
        one.wait(DOUBT_S)
        assert len(one.closed) == 1 and one.ours.owes and one.wire.closed == "close"
        one.wait(INTERVAL_S)
        assert one.vigils == 0


def test_a_connection_that_drains_is_asked_too() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        stream = one.open()
        one.hear(h2.frame(h2.GOAWAY, 0, 0, b"\0\0\0\x01\0\0\0\0"))
        one.wait(2 * INTERVAL_S + TIMEOUT_S)
        assert isinstance(stream.error, Broken) and one.ours.owes


def test_a_ping_behind_an_upload_that_moves_is_given_time() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        one.wait(2 * INTERVAL_S)
        one.open()
        for _ in range(5):
            one.taken += MOVED_BYTES + 1
            one.wait(TIMEOUT_S)
            assert not one.closed
        one.taken += MOVED_BYTES  # requests and PINGs are taken too, by a peer that is frozen
        one.wait(TIMEOUT_S)
        assert one.wire.closed == "abort"


def test_an_answer_at_the_last_moment_is_one() -> None:
    @scene(answers=False)
    def _(one: Scene) -> None:
        one.wait(2 * INTERVAL_S)
        one.open()
        one.wait(TIMEOUT_S - 0.01)
        one.hear(ANSWER)
        one.wait(0.02)
        assert not one.closed and not one.ours.owes
        one.wait(2 * INTERVAL_S)
        assert len(one.pings) == 2


def test_a_connection_that_ended_meanwhile_is_left_alone() -> None:
    for before_s, waited_s in ((0.0, 1.0), (2 * INTERVAL_S, 0.0), (2 * INTERVAL_S, DOUBT_S + 1.0)):

        @scene(answers=False, keepalive_expiry_s=3 * INTERVAL_S)
        def _(one: Scene, before_s: float = before_s, waited_s: float = waited_s) -> None:
            one.wait(before_s)
            one.open()
            one.wait(waited_s)
            one.ours.connection_lost(None)
            one.wait(3 * INTERVAL_S)
            assert len(one.closed) == 1 and one.vigils == 0


def test_after_a_request_for_calm_it_is_asked_half_as_often() -> None:
    watch = Watch(30.0, INTERVAL_S, TIMEOUT_S)
    assert watch.calmer() == Watch(30.0, 2 * INTERVAL_S, TIMEOUT_S)
    assert Watch(30.0).calmer() == Watch(30.0), "off stays off"
