"""observe/errands: nobody waits, nothing is lost unless it is said, nothing begins after the end.

Runs on: the test's threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from app.observe.errands import Errands


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_errands_run_in_order_and_their_thread_ends() -> None:
    done: list[int] = []
    errands: Errands[int] = Errands("test-errands", done.append)
    for number in range(20):
        assert errands.put(number) is None
    until(lambda: len(done) == 20)
    assert done == list(range(20))
    until(lambda: not any(thread.name == "test-errands" for thread in threading.enumerate()))
    errands.put(20)
    until(lambda: done[-1] == 20)


def test_the_oldest_that_waits_gives_way() -> None:
    gate, done = threading.Event(), list[int]()

    def run(number: int) -> None:
        assert gate.wait(10)
        done.append(number)

    errands = Errands("test-errands", run, limit=2)
    errands.put(0)
    until(lambda: not errands._waiting)
    assert [errands.put(number) for number in (1, 2, 3, 4)] == [None, None, 1, 2]
    gate.set()
    until(lambda: len(done) == 3)
    assert done == [0, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_an_errand_raises_ends_its_thread_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(threading, "excepthook", lambda _: done.append(-1))

    def run(number: int) -> None:
        if number == 0:
            raise ValueError
        done.append(number)

    errands = Errands("test-errands", run)
    errands.put(0)
    until(lambda: done == [-1] and not errands._busy)
    errands.put(1)
    until(lambda: done == [-1, 1])


def test_after_the_end_nothing_begins_and_pauses_are_over() -> None:
    paused, entered = list[bool](), threading.Event()

    def run(_: int) -> None:
        entered.set()
        paused.append(errands.pause(60))

    errands = Errands("test-errands", run)
    errands.put(0)
    assert entered.wait(10)
    errands.put(1)
    errands.stop()
    until(lambda: not errands._busy)
    assert paused == [False]
    assert errands.pause(0) is False


def test_a_pause_is_as_long_as_asked() -> None:
    errands: Errands[int] = Errands("test-errands", lambda _: None)
    began = time.monotonic()
    assert errands.pause(0.02)
    assert time.monotonic() - began >= 0.02
