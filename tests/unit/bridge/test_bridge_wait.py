"""bridge/wait: greenlets wake through their hub, threads through a native lock, and originals are the originals.

Runs on: worker.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from app.bridge import wait
from app.bridge.wait import GreenletWaiter, ThreadWaiter, at_leisure, native_threads, new_waiter, original

SOON_S = 0.001
LONG_S = 20.0


class Monkey:
    """Stands for ``gevent.monkey``: says what is patched and hands out marked originals."""

    def __init__(self, *patched: str) -> None:
        self.patched = patched

    def is_module_patched(self, name: str) -> bool:
        return name in self.patched

    def get_original(self, module: str, name: str) -> object:
        return getattr(_thread, name) if module == "_thread" else ("original", module, name)


@pytest.fixture
def hub() -> Iterator[Any]:
    """A hub without an outbox, before and after."""
    made = gevent.get_hub()
    vars(made).pop("penstock_outbox", None)
    yield made
    vars(made).pop("penstock_outbox", None)


def in_thread(work: Any) -> None:
    """Run ``work`` in a native thread, to its end."""
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        work()
        done.release()

    _thread.start_new_thread(run, ())
    assert done.acquire(True, LONG_S)


def test_original_without_gevent_is_the_modules_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gevent.monkey", raising=False)
    assert original("_thread", "get_ident") is _thread.get_ident


def test_original_under_gevent_comes_from_its_saved_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey())
    assert original("socket", "getaddrinfo") == ("original", "socket", "getaddrinfo")


def test_a_thread_waiter_times_out_and_says_so() -> None:
    assert ThreadWaiter().wait(SOON_S) is False


def test_a_wake_before_the_wait_is_not_lost_and_counts_once() -> None:
    waiter = ThreadWaiter()
    waiter.wake()
    waiter.wake()
    assert waiter.wait(SOON_S) is True
    assert waiter.wait(SOON_S) is False


def test_a_native_thread_wakes_a_thread() -> None:
    waiter = ThreadWaiter()
    in_thread(waiter.wake)
    assert waiter.wait(LONG_S) is True


@pytest.mark.parametrize(
    ("patched", "kind"),
    [((), ThreadWaiter), (("socket",), ThreadWaiter), (("threading",), GreenletWaiter)],
)
def test_the_waiter_fits_whoever_is_running(
    hub: Any, monkeypatch: pytest.MonkeyPatch, patched: tuple[str, ...], kind: type
) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey(*patched))
    assert type(new_waiter()) is kind


def test_without_gevent_everybody_is_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gevent.monkey", raising=False)
    assert type(new_waiter()) is ThreadWaiter


def test_the_bridges_own_threads_never_wait_on_a_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey("threading"))
    native_threads.add()
    try:
        assert native_threads.here()
        assert type(new_waiter()) is ThreadWaiter
    finally:
        native_threads.discard()
    assert not native_threads.here()


def test_a_greenlet_times_out_and_says_so(hub: Any) -> None:
    assert GreenletWaiter().wait(SOON_S) is False


def test_a_native_thread_wakes_a_greenlet_that_waits(hub: Any) -> None:
    waiter = GreenletWaiter()
    woken: list[bool] = []
    greenlet = gevent.spawn(lambda: woken.append(waiter.wait(LONG_S)))
    gevent.idle()  # let it go to sleep
    in_thread(waiter.wake)
    greenlet.join(LONG_S)
    assert woken == [True]


def test_a_wake_that_comes_before_the_wait_is_kept(hub: Any) -> None:
    waiter = GreenletWaiter()
    waiter.wake()
    gevent.sleep(0)  # the hub delivers to nobody, and remembers
    gevent.idle()
    assert waiter.wait(0.0) is True
    assert waiter.wait(SOON_S) is False


def test_facts_5_a_waiting_greenlet_keeps_the_hub_alive(hub: Any) -> None:
    """facts 5: the only greenlet waits, the hub has nothing else: no LoopExit; idle again, nothing is kept."""
    waiter = GreenletWaiter()
    outbox = hub.penstock_outbox
    assert outbox._async.ref is False
    _thread.start_new_thread(waiter.wake, ())
    assert waiter.wait(LONG_S) is True
    assert outbox._async.ref is False


def test_two_sleepers_of_one_hub_keep_it_alive_until_both_are_awake(hub: Any) -> None:
    one, two = GreenletWaiter(), GreenletWaiter()
    outbox = hub.penstock_outbox
    assert one._outbox is two._outbox is outbox
    sleepers = [gevent.spawn(waiter.wait, LONG_S) for waiter in (one, two)]
    gevent.idle()
    assert outbox._async.ref is True
    in_thread(one.wake)
    sleepers[0].join(LONG_S)
    assert outbox._async.ref is True
    in_thread(two.wake)
    sleepers[1].join(LONG_S)
    assert outbox._async.ref is False
    assert [s.value for s in sleepers] == [True, True]


def test_many_wake_ups_cost_one_watcher_event() -> None:
    """One ``send`` per batch, whatever the number of greenlets."""
    sent: list[str] = []
    watcher = SimpleNamespace(start=lambda deliver: None, send=lambda: sent.append("send"), ref=True)
    loop = SimpleNamespace(async_=lambda: watcher, timer=lambda *_, ref: None)
    outbox = wait._Outbox(SimpleNamespace(loop=loop))
    resumed: list[int] = []
    for number in range(20):
        outbox.wake(SimpleNamespace(resume=lambda number=number: resumed.append(number)))  # type: ignore[arg-type]
    assert sent == ["send"]
    outbox._deliver()
    assert resumed == list(range(20))
    outbox.wake(SimpleNamespace(resume=lambda: resumed.append(20)))  # type: ignore[arg-type]
    assert sent == ["send", "send"]


def test_a_wake_and_a_timeout_at_once_switch_only_once(hub: Any) -> None:
    waiter = GreenletWaiter()
    waiter._switch(False)  # nobody waits any more: nothing to switch to
    assert waiter.wait(SOON_S) is False


def test_long_waits_share_one_ticker_that_stops_when_nobody_is_left(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "COARSE_FROM_S", 0.0)
    monkeypatch.setattr(wait, "TICKER_S", SOON_S)
    waiters = [GreenletWaiter() for _ in range(3)]
    outbox = hub.penstock_outbox
    lengths_s = (0.0, SOON_S, LONG_S)
    ends = [gevent.spawn(waiter.wait, length_s) for waiter, length_s in zip(waiters, lengths_s, strict=True)]
    gevent.joinall(ends[:2], LONG_S)
    assert [one.value for one in ends] == [False, False, None]
    assert (list(outbox.parked), outbox._ticking) == ([waiters[2]], True), "one waits on, so it goes on"
    waiters[2].wake()
    gevent.joinall(ends, LONG_S)
    assert ends[2].value is True
    assert outbox.parked == {}
    while outbox._ticking:
        gevent.sleep(SOON_S)
    assert waiters[0].wait(SOON_S) is False, "and starts anew"


def test_a_bell_that_nobody_waits_for_is_not_rung() -> None:
    bell = wait.Bell()
    bell.ring()
    assert bell.rings == 0
    assert bell.wait(lambda: False, SOON_S) is False
    assert bell.wait(lambda: True, LONG_S) is True

    def ready() -> bool:
        if not bell.rings:
            in_thread(bell.ring)
        return False

    assert bell.wait(ready, LONG_S) is True, "rung between the look and the sleep"
    assert bell.rings == 1


def test_at_leisure_comes_after_what_is_ready_and_once(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey("threading"))
    done: list[str] = []
    ready = [gevent.spawn(done.append, name) for name in ("one", "two")]
    assert at_leisure(lambda: done.append("leisure")) is True
    assert done == []
    gevent.joinall(ready)
    gevent.idle()
    assert done == ["one", "two", "leisure"]


def test_there_is_no_leisure_without_a_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be done at once: by plain threads, the bridge's own, at the end, beside the main hub."""
    answers = [at_leisure(lambda: None)]
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey("threading"))
    native_threads.add()
    try:
        answers.append(at_leisure(lambda: None))
    finally:
        native_threads.discard()
    for loop in (None, SimpleNamespace(default=False)):
        monkeypatch.setattr(gevent, "get_hub", lambda loop=loop: SimpleNamespace(loop=loop))
        answers.append(at_leisure(lambda: None))
    assert answers == [False] * 4


def test_a_killed_greenlet_leaves_nothing_behind(hub: Any) -> None:
    waiter = GreenletWaiter()
    greenlet = gevent.spawn(waiter.wait, LONG_S)
    gevent.idle()
    greenlet.kill()
    assert hub.penstock_outbox._async.ref is False
    assert waiter._greenlet is None
