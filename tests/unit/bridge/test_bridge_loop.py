"""bridge/loop: one loop in one native thread; posted work in order, one wake-up a batch; its end is told (B51).

Runs on: worker.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from app.bridge import loop as module
from app.bridge.loop import BackgroundLoop, loop_of_this_thread, new_loop

LONG_S = 20.0
Start = Callable[[], BackgroundLoop]


class Latch:
    """Opened on the loop, waited for here; nothing that gevent could have patched."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def open(self, *_: object) -> None:
        self._lock.release()

    def wait(self) -> None:
        assert self._lock.acquire(True, LONG_S), "the loop did not get there"


def until_dead(loop: BackgroundLoop) -> None:
    """Wait for the thread's last word."""
    latch = Latch()
    for _ in range(2_000):
        if not loop.alive:
            return
        latch._lock.acquire(True, 0.005)
    raise AssertionError("the loop did not stop")


def test_work_runs_on_the_loops_own_thread_in_order(start: Start) -> None:
    loop, seen, latch = start(), list[object](), Latch()
    assert loop.alive
    assert not loop.here()
    for number in range(100):
        loop.post(seen.append, number)
    loop.post(lambda: seen.append(loop.here()))
    loop.post(latch.open)
    latch.wait()
    assert seen == [*range(100), True]
    assert loop.last_beat > 0.0


def test_a_batch_costs_one_wake_up(start: Start) -> None:
    """Work posted while the loop is busy wakes it once."""
    loop, busy, go, latch = start(), Latch(), Latch(), Latch()

    def block() -> None:
        busy.open()
        go.wait()

    loop.post(block)
    busy.wait()
    before = loop.wakeups
    for _ in range(1000):
        loop.post(int)
    loop.post(latch.open)
    go.open()
    latch.wait()
    assert loop.wakeups - before <= 1


def test_under_a_hub_the_loop_is_woken_once_the_hub_is_at_leisure(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, latch, later, done = start(), Latch(), list[Callable[[], None]](), list[str]()
    monkeypatch.setattr(module, "at_leisure", lambda work: later.append(work) or True)  # type: ignore[func-returns-value]
    loop.post(done.append, "one")
    loop.post(done.append, "two")
    assert (len(later), done) == (1, []), "one wake-up for both, and not yet"
    later.pop()()
    monkeypatch.undo()
    loop.post(latch.open)
    latch.wait()
    assert done == ["one", "two"]


def test_stop_does_not_wait_for_leisure(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops sleeps natively until the thread is gone: no hub runs any more."""
    loop = start()
    monkeypatch.setattr(module, "at_leisure", lambda work: True)
    loop.post(lambda: None)
    loop.stop()
    until_dead(loop)


def test_failing_work_is_told_and_does_not_take_the_rest_with_it(start: Start) -> None:
    """What was posted behind it still runs, without another post."""
    loop, busy, go, latch = start(), Latch(), Latch(), Latch()

    def block() -> None:
        busy.open()
        go.wait()

    def fail() -> None:
        raise ValueError("broken work")

    loop.post(block)
    busy.wait()
    loop.post(fail)
    loop.post(latch.open)
    go.open()
    latch.wait()
    assert [(e["event"], e["error"]) for e in loop.events] == [("loop_exception", "ValueError('broken work')")]


def test_failing_work_with_nothing_behind_it_is_told(start: Start) -> None:
    loop, latch = start(), Latch()
    loop.post(lambda: 1 / 0)
    loop.post(loop.post, latch.open)
    latch.wait()
    assert [e["event"] for e in loop.events] == ["loop_exception"]


def test_the_exception_handler_reports_as_data(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """facts 3: asyncio's own handler would log, from the loop thread."""
    loop, latch = start(), Latch()

    def report() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": OSError("gone")})
        asyncio.get_running_loop().call_exception_handler({"message": "without an exception"})
        latch.open()

    loop.post(report)
    latch.wait()
    assert list(loop.events) == [
        {"event": "loop_exception", "loop": "test", "message": "lost", "error": "OSError('gone')"},
        {"event": "loop_exception", "loop": "test", "message": "without an exception", "error": ""},
    ]
    assert capfd.readouterr().err == ""


def test_stop_cancels_what_runs_and_ends_the_thread(start: Start) -> None:
    loop, latch, seen = start(), Latch(), list[str]()

    async def task() -> None:
        latch.open()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    made: list[asyncio.Task[None]] = []
    loop.post(lambda: made.append(asyncio.get_running_loop().create_task(task())))
    latch.wait()
    loop.stop()
    until_dead(loop)
    assert seen == ["cancelled"]
    loop.stop()  # again: nothing to do
    assert list(loop.events) == []


def test_b51_what_is_raised_through_the_loop_is_told_and_it_counts_as_dead(start: Start) -> None:
    loop = start()

    def die() -> None:
        raise SystemExit("out of order")

    loop.post(die)
    until_dead(loop)
    assert list(loop.events) == [{"event": "loop_died", "loop": "test", "error": "SystemExit('out of order')"}]


def test_posting_to_a_closed_loop_says_that_it_is_dead() -> None:
    loop = BackgroundLoop("test", deque())
    loop.loop = asyncio.new_event_loop()
    loop.loop.close()
    loop.alive = True
    loop.post(int)
    assert not loop.alive


def test_a_thread_that_does_not_come_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.001)
    loop = BackgroundLoop("test", deque())
    monkeypatch.setattr(loop, "_main", lambda ready: None)
    with pytest.raises(RuntimeError, match="the test loop did not start within"):
        loop.start()


def test_report_is_an_event(start: Start) -> None:
    loop = start()
    loop.report({"event": "said"})
    assert list(loop.events) == [{"event": "said"}]


def test_the_loop_is_cached_for_its_thread_and_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same thread gets the same loop; a forked child, or a closed loop, gets a new one."""
    monkeypatch.setattr(module, "_tls", None)
    one = loop_of_this_thread()
    assert loop_of_this_thread() is one
    monkeypatch.setattr(os, "getpid", lambda: 1)
    two = loop_of_this_thread()
    assert two is not one
    two.close()
    three = loop_of_this_thread()
    assert three is not two
    for loop in (one, three):
        loop.close()


def test_another_thread_has_a_loop_of_its_own(start: Start) -> None:
    assert start().loop is not start().loop


def test_the_loop_is_uvloops() -> None:
    """facts 4: never on gevent's patched selectors."""
    loop = new_loop()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The loop where uvloop does not install."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop()
    yield loop
    loop.close()


def test_without_uvloop_the_selector_is_the_original_one(plain: Any) -> None:
    assert isinstance(plain, asyncio.SelectorEventLoop)
    assert isinstance(vars(plain)["_selector"], selectors.BaseSelector)


def test_a_selector_of_another_kind_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    given = vars(module)["original"]
    odd = {"selectors": lambda: object}
    monkeypatch.setattr("app.bridge.loop.original", lambda m, n: odd[m]() if m in odd else given(m, n))
    loop = new_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()


@pytest.fixture
def lookup(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Replaces the original ``getaddrinfo``."""
    given = vars(module)["original"]

    def replace(answer: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            "app.bridge.loop.original", lambda m, n: answer if (m, n) == ("socket", "getaddrinfo") else given(m, n)
        )

    return replace


def test_facts_4_names_are_looked_up_without_an_executor(plain: Any, lookup: Any) -> None:
    asked: list[object] = []

    def answer(host: str, port: int, **kwargs: int) -> list[str]:
        asked.append((host, port, kwargs, _thread.get_ident() != ident))
        return ["found"]

    ident = _thread.get_ident()
    lookup(answer)
    assert plain.run_until_complete(plain.getaddrinfo("host", 443, type=1)) == ["found"]
    assert asked == [("host", 443, {"type": 1}, True)]
    assert plain._default_executor is None


def test_a_name_that_is_not_found_raises(plain: Any, lookup: Any) -> None:
    def answer(*_: object, **__: object) -> list[str]:
        raise OSError("no such host")

    lookup(answer)
    with pytest.raises(OSError, match="no such host"):
        plain.run_until_complete(plain.getaddrinfo("host", 443))


def test_an_answer_after_the_caller_left_is_dropped(plain: Any, lookup: Any) -> None:
    go, late = Latch(), Latch()

    def answer(*_: object, **__: object) -> list[str]:
        go.wait()
        return ["too late"]

    lookup(answer)
    settled: list[str] = []

    async def leave() -> None:
        asked = asyncio.ensure_future(plain.getaddrinfo("host", 443))
        await asyncio.sleep(0)
        asked.cancel()
        call = plain.call_soon_threadsafe

        def told(*args: Any) -> None:
            call(*args)
            call(settled.append, "settled")
            late.open()

        plain.call_soon_threadsafe = told
        go.open()
        late.wait()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.sleep(0)

    plain.run_until_complete(leave())
    assert settled == ["settled"]


def test_b41_how_late_the_loop_beats_is_told_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured without a lock; a loop that is held up beats late, and no beat is ever early."""
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    loop, latch = start(), Latch()
    held_s = 0.3
    until = time.monotonic() + LONG_S
    loop.post(time.sleep, held_s)
    loop.post(latch.open)
    latch.wait()
    found: list[float] = []
    while not found or max(found) < held_s / 2:
        assert time.monotonic() < until, found
        found += loop.late_s()
        time.sleep(0.01)
    assert min(found) >= 0.0
    loop.stop()
    until_dead(loop)
    loop.late_s()
    assert loop.late_s() == []
    for number in range(1000):
        loop.beats.append(float(number))
    assert loop.late_s() == [float(number) for number in range(880, 1000)]
