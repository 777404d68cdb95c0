"""bridge/call: head first, then bytes; errors come up; cancelled exactly once; the pool stands in (B20-B24, B51).

Runs on: worker.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.bridge import call
from app.bridge.call import Bridge, Crossing, get_bridge
from app.bridge.loop import BackgroundLoop
from app.bridge.stream import LIMIT_BYTES
from app.errors import ClientGone, ConnectFailed, ProtocolBroken

LONG_S = 20.0


def patience() -> None:
    """A tick that never gives up."""


def take_all(crossing: Crossing) -> bytes:
    """The whole body."""
    data = b""
    while pieces := crossing.take(patience, LONG_S):
        data += b"".join(pieces)
    return data


def settle(bridge: Bridge) -> None:
    """Everything posted so far, and what it set off, has run."""
    for _ in range(5):
        bridge.call(lambda loop: None, LONG_S)


class Hanging:
    """A task that hangs, and counts its cancels."""

    def __init__(self, head: object = None) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()
        self.cancels = 0
        self._head = head

    async def __call__(self, crossing: Crossing) -> None:
        if self._head is not None:
            crossing.send_head(self._head)
        self.begun.set()
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancels += 1
                    raise
        finally:
            self.over.set()


# ----------------------------------------------------------- head, bytes, end
def test_b20_head_first_then_bytes_then_the_end(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        crossing.send_head("head")
        for number in range(1000):
            await crossing.send(b"%04d" % number)

    crossing = bridge.open(make)
    assert crossing.head(patience, LONG_S) == "head"
    assert take_all(crossing) == b"".join(b"%04d" % n for n in range(1000))
    assert crossing.take(patience) == []
    crossing.close()
    assert (crossing.fallback, bridge.crossings, bridge.fallbacks) == (False, 1, 0)


def test_a_short_answer_held_costs_one_wake_up(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        await asyncio.sleep(0)
        crossing.send_head("head", hold=True)
        await crossing.send(b"body")
        assert not crossing.crowded

    crossing = bridge.open(make)
    assert crossing.head(patience, LONG_S) == "head"
    assert take_all(crossing) == b"body"
    assert crossing.wakes <= 1


def test_a_gateway_error_comes_up_as_it_is(bridge: Bridge) -> None:
    error = ConnectFailed("nobody there")

    async def make(crossing: Crossing) -> None:
        raise error

    with pytest.raises(ConnectFailed) as caught:
        bridge.open(make).head(patience, LONG_S)
    assert caught.value is error
    assert list(bridge.events) == []


def test_an_error_in_mid_body_comes_after_all_bytes_before_it(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        crossing.send_head("head")
        await crossing.send(b"half")
        raise ConnectFailed

    crossing = bridge.open(make)
    crossing.head(patience, LONG_S)
    settle(bridge)
    assert crossing.take(patience) == [b"half"]
    with pytest.raises(ConnectFailed):
        crossing.take(patience)


def test_any_other_exception_is_an_event_and_protocol_broken(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        raise KeyError("library's own")

    crossing = bridge.open(make)
    with pytest.raises(ProtocolBroken) as caught:
        crossing.head(patience, LONG_S)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "library" not in caught.value.message
    assert list(bridge.events) == [{"event": "task_failed", "error": 'KeyError("library\'s own")'}]


def test_a_task_without_an_answer_is_protocol_broken(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        return

    with pytest.raises(ProtocolBroken, match="without an answer"):
        bridge.open(make).head(patience, LONG_S)


# ------------------------------------------------------------------- waiting
def test_head_and_take_give_up_in_time(bridge: Bridge) -> None:
    task = Hanging("head")
    crossing = bridge.open(task)
    assert crossing.head(patience, LONG_S) == "head"
    with pytest.raises(TimeoutError):
        crossing.take(patience, 0.001)
    crossing.close()
    crossing = bridge.open(Hanging())
    with pytest.raises(TimeoutError):
        crossing.head(patience, 0.0)
    crossing.close()


def test_b21_the_tick_ends_the_wait(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """B21: a client that left is noticed between naps; the tick is asked again at every nap."""
    monkeypatch.setattr(call, "TICK_S", 0.001)
    asked = 0

    def tick() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise ClientGone

    crossing = bridge.open(Hanging())
    with pytest.raises(ClientGone):
        crossing.head(tick)
    crossing.close()
    assert asked == 3


def test_a_wait_notices_that_the_loop_died(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "TICK_S", 0.001)
    crossing = bridge.open(Hanging())
    settle(bridge)
    bridge.main.alive = False
    with pytest.raises(ProtocolBroken, match="loop died"):
        crossing.head(patience)
    bridge.main.alive = True


class Scripted:
    """A waiter that plays what happens during a nap."""

    def __init__(self, *naps: Callable[[], bool]) -> None:
        self.naps = list(naps)

    def wait(self, timeout_s: float) -> bool:
        return self.naps.pop(0)()

    def wake(self) -> None:
        raise AssertionError("nobody to wake")


@pytest.fixture
def still(bridge: Bridge) -> Crossing:
    """A crossing whose loop side the test plays itself."""
    return Crossing(bridge.main, Hanging(), fallback=False)


def test_an_answer_that_comes_as_the_nap_ends_is_taken(still: Crossing) -> None:
    def answered() -> bool:
        still.up._head = "head"
        return False

    still._bell._waiter = Scripted(answered)
    assert still.head(patience, LONG_S) == "head"


def test_a_spurious_wake_looks_again(still: Crossing) -> None:
    def answered() -> bool:
        still.up._head = "head"
        return True

    still._bell._waiter = Scripted(lambda: True, answered)
    assert still.head(patience) == "head"


def test_an_answer_between_look_and_sleep_is_not_slept_over(still: Crossing) -> None:
    """The worker raises its flag, then looks again."""
    looks = 0

    def ready() -> bool:
        nonlocal looks
        looks += 1
        return looks >= 2

    still._bell._waiter = Scripted()
    still._sleep_until(ready, patience)
    assert not still._bell._parked


# ------------------------------------------------------------------- closing
def test_b21_close_cancels_exactly_once_before_the_head(bridge: Bridge) -> None:
    """B21, facts 7: however often it is closed."""
    task = Hanging()
    crossing = bridge.open(task)
    assert task.begun.wait(LONG_S)
    crossing.close()
    crossing.close()
    assert task.over.wait(LONG_S)
    settle(bridge)
    assert task.cancels == 1
    assert isinstance(crossing.up.error, ProtocolBroken)
    assert bridge.main.in_flight == 0


def test_b21_close_cancels_exactly_once_after_the_head(bridge: Bridge) -> None:
    task = Hanging("head")
    crossing = bridge.open(task)
    assert crossing.head(patience, LONG_S) == "head"
    crossing.close()
    crossing.close()
    assert task.over.wait(LONG_S)
    settle(bridge)
    assert task.cancels == 1


def test_closing_after_the_end_cancels_nothing(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        crossing.send_head("head")

    crossing = bridge.open(make)
    assert crossing.head(patience, LONG_S) == "head"
    assert take_all(crossing) == b""
    woken = bridge.main.wakeups
    crossing.close()
    assert bridge.main.wakeups == woken
    assert bridge.main.in_flight == 0


def test_a_cancel_that_meets_the_end_on_its_way_is_dropped(bridge: Bridge, still: Crossing) -> None:
    async def make(crossing: Crossing) -> None:
        return

    still._cancel()  # never started
    crossing = bridge.open(make)
    settle(bridge)
    bridge.call(lambda loop: crossing._cancel())
    assert crossing.up.error is None


# -------------------------------------------------------------------- upload
def test_an_upload_arrives_whole_and_in_order(bridge: Bridge) -> None:
    data = os.urandom(1 << 20)

    async def make(crossing: Crossing) -> None:
        got = b"".join([piece async for piece in aiter(crossing.upload)])
        crossing.send_head(got)

    crossing = bridge.open(make)
    for start in range(0, len(data), 50_000):
        assert crossing.feed(data[start : start + 50_000], patience, LONG_S)
    crossing.upload.end()
    assert crossing.head(patience, LONG_S) == data


def test_b24_an_upload_never_has_more_than_the_limit_waiting(bridge: Bridge) -> None:
    """B24, B16: a piece of 64 KiB on top of one byte goes down in parts."""
    most: list[int] = []

    async def make(crossing: Crossing) -> None:
        got = 0
        while got < 3 * LIMIT_BYTES + 1:
            waiting = sum(map(len, crossing.upload._chunks))
            most.append(waiting)
            if waiting == LIMIT_BYTES or got + waiting == 3 * LIMIT_BYTES + 1:
                got += len(await anext(aiter(crossing.upload)))
            await asyncio.sleep(0)
        crossing.send_head(got)

    crossing = bridge.open(make)
    assert crossing.feed(b"x", patience, LONG_S)
    assert crossing.feed(b"x" * 3 * LIMIT_BYTES, patience, LONG_S)
    crossing.upload.end()
    assert crossing.head(patience, LONG_S) == 3 * LIMIT_BYTES + 1
    assert max(most) == LIMIT_BYTES


def test_an_upload_that_nobody_takes_times_out(bridge: Bridge) -> None:
    crossing = bridge.open(Hanging())
    assert crossing.feed(b"x" * LIMIT_BYTES, patience, 0.001)
    with pytest.raises(TimeoutError):
        crossing.feed(b"x", patience, 0.001)
    crossing.close()


@pytest.mark.parametrize("full", [True, False])
def test_an_answer_stops_the_upload(bridge: Bridge, full: bool) -> None:
    """An upstream may refuse a file before it has all of it."""

    async def refuse(crossing: Crossing) -> None:
        crossing.send_head("413")
        await asyncio.Event().wait()

    crossing = bridge.open(refuse)
    assert crossing.head(patience, LONG_S) == "413"
    if full:
        crossing.upload.put(b"x" * LIMIT_BYTES)
    assert crossing.feed(b"x", patience, LONG_S) is False
    crossing.close()


def test_a_failed_exchange_stops_the_upload(bridge: Bridge) -> None:
    async def fail(crossing: Crossing) -> None:
        raise ConnectFailed

    crossing = bridge.open(fail)
    settle(bridge)
    assert crossing.feed(b"x", patience, LONG_S) is False


def test_an_aborted_upload_reaches_the_task(bridge: Bridge) -> None:
    async def make(crossing: Crossing) -> None:
        async for _ in aiter(crossing.upload):
            pass

    crossing = bridge.open(make)
    crossing.feed(b"half", patience, LONG_S)
    crossing.upload.abort(ClientGone())
    with pytest.raises(ClientGone):
        crossing.head(patience, LONG_S)


# ---------------------------------------------------------------------- call
def test_call_reads_on_the_loop(bridge: Bridge) -> None:
    assert bridge.call(lambda loop: (loop is bridge.main, loop.here()), LONG_S) == (True, True)


def test_call_on_the_loop_itself_does_not_wait(bridge: Bridge) -> None:
    assert bridge.call(lambda _: bridge.call(lambda loop: loop.name), LONG_S) == "main"


def test_call_gives_up_in_time_and_on_a_dead_loop(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    bridge.main.post(held.wait, LONG_S)
    with pytest.raises(TimeoutError, match="did not answer"):
        bridge.call(lambda loop: None, 0.001)
    monkeypatch.setattr(bridge.main, "alive", False)
    with pytest.raises(TimeoutError):
        bridge.call(lambda loop: None, LONG_S)
    held.set()


# ------------------------------------------------------------------ fallback
def name_of_home(bridge: Bridge) -> str:
    """Which loop serves now."""

    async def make(crossing: Crossing) -> None:
        crossing.send_head(crossing.home.name)

    crossing = bridge.open(make)
    try:
        return str(crossing.head(patience, LONG_S))
    finally:
        crossing.close()


def test_b51_a_dead_loop_is_told_and_the_pool_serves(bridge: Bridge) -> None:
    bridge.main.alive = False
    assert name_of_home(bridge) == "pool-0"
    assert (bridge.degraded, bridge.check(), bridge.fallbacks) == ("loop_dead", "loop_dead", 1)
    bridge.main.alive = True
    assert name_of_home(bridge) == "main"
    assert bridge.degraded == ""
    assert [(e["event"], e["reason"]) for e in bridge.events] == [
        ("bridge_degraded", "loop_dead"),
        ("bridge_recovered", ""),
    ]


def test_b51_a_wedged_loop_is_told_and_recovers(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "WEDGED_S", -1.0)
    assert bridge.check() == "loop_wedged"
    assert name_of_home(bridge) == "pool-0"
    monkeypatch.setattr(call, "WEDGED_S", LONG_S)
    assert name_of_home(bridge) == "main"
    assert [(e["event"], e["reason"]) for e in bridge.events] == [
        ("bridge_degraded", "loop_wedged"),
        ("bridge_recovered", ""),
    ]


def test_a_crossing_on_the_loops_own_thread_goes_to_the_pool(bridge: Bridge) -> None:
    assert bridge.call(lambda loop: name_of_home(bridge), LONG_S) == "pool-0"
    assert (bridge.fallbacks, bridge.degraded) == (1, "")


def test_the_pool_grows_to_its_size_then_shares(bridge: Bridge) -> None:
    """Idle members first; a busy pool of full size gives the least busy one."""
    bridge.main.alive = False
    assert bridge.pool_active == 0
    open_ones = [bridge.open(Hanging()) for _ in range(3)]
    assert [c.home.name for c in open_ones] == ["pool-0", "pool-1", "pool-0"]
    assert bridge.pool_active == 2
    assert bridge.open(Hanging()).home.name == "pool-1"
    for crossing in open_ones:
        crossing.close()
    assert name_of_home(bridge) == "pool-0"
    bridge.main.alive = True


def test_a_pool_without_a_usable_loop_refuses(bridge: Bridge) -> None:
    bridge.main.alive = False
    for _ in range(2):
        bridge.open(Hanging())
    for member in bridge._pool:
        member.alive = False
    with pytest.raises(ProtocolBroken, match="No loop"):
        bridge.open(Hanging())
    for member in (bridge.main, *bridge._pool):
        member.alive = True


# ---------------------------------------------------------------------- once
@pytest.fixture
def global_bridge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No bridge yet, and none of the test's left behind."""
    monkeypatch.setattr(call, "_bridge", None)
    made: list[Bridge] = []
    yield made
    for one in made:
        one.stop()


def test_facts_8a_the_bridge_is_made_once(global_bridge: list[Bridge]) -> None:
    global_bridge.append(get_bridge(3))
    assert get_bridge(5) is global_bridge[0]
    assert global_bridge[0].pool_size == 3


def test_facts_8a_two_first_calls_at_once_make_one(
    global_bridge: list[Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits at the lock and finds the first one's bridge behind it."""

    class Race:
        def __enter__(self) -> None:
            monkeypatch.setattr(call, "_once", threading.Lock())
            global_bridge.append(get_bridge(3))

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(call, "_once", Race())
    assert get_bridge(3) is global_bridge[0]
    assert len(global_bridge) == 1


def test_a_forked_child_makes_its_own(global_bridge: list[Bridge], monkeypatch: pytest.MonkeyPatch) -> None:
    global_bridge.append(get_bridge(3))
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    global_bridge.append(get_bridge(3))
    assert global_bridge[0] is not global_bridge[1]
    assert global_bridge[1].main.pid == pid + 1


def test_stop_ends_every_loop(global_bridge: list[Bridge]) -> None:
    bridge = get_bridge(2)
    bridge.main.alive = False
    member = bridge.open(Hanging()).home
    bridge.main.alive = True
    stopped: list[str] = []
    for loop in (bridge.main, member):
        real: Callable[[], None] = loop.stop

        def stop(loop: BackgroundLoop = loop, real: Callable[[], None] = real) -> None:
            stopped.append(loop.name)
            real()

        loop.stop = stop  # type: ignore[method-assign]
    bridge.stop()
    assert stopped == ["main", "pool-0"]


def test_a_stopped_bridge_has_no_thread_left_that_runs_a_loop() -> None:
    bridge = Bridge(1)
    assert bridge.main.alive
    bridge.stop()
    assert not bridge.main.alive, "an interpreter that ends under a running loop crashes"
