"""gateway/records: every exchange's Record once and in order, several at a time, and at once where that matters.

Runs on: worker.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.exchange import Record
from app.gateway import records as module
from app.gateway.records import CALM, FAILED, MOST, OWN_FAULT, QUIET_S, Make, Records

ROOT = Path(__file__).resolve().parents[3]


class Watch:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(module, "time", found)
    return found


class Seen:
    """Records under a keeper, and what was shown of them."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.batches: list[list[str]] = []
        self.written = 0
        self.records = Records([lambda found: self.batches.append([one.request_id for one in found])], self._write)
        self.records.pump()

    def _write(self) -> None:
        self.written += 1

    def add(self, name: str, hurry: int = CALM, held_bytes: int = 100) -> None:
        self.records.add(make(name), self.watch.now, hurry, held_bytes)


def make(name: str) -> Make:
    return lambda epoch_s: Record(name, "messages", "POST", "/", 200, "", at=epoch_s)


def test_a_quiet_gateways_record_is_made_at_once_and_a_busy_ones_wait(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    watch.now += QUIET_S - 0.001
    for name in ("a", "b", "c"):
        seen.add(name)
    assert seen.batches == [["first"]]
    watch.now += 0.001
    seen.add("d")
    assert seen.batches == [["first"], ["a", "b", "c", "d"]]
    assert seen.written == 2


def test_the_keeper_has_those_made_that_wait(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    seen.add("second")
    seen.records.pump()
    seen.records.pump()
    assert (seen.batches, seen.written) == ([["first"], ["second"]], 2)


def test_whoever_asks_has_them_made(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    seen.add("second")
    seen.records.flush()
    assert seen.batches == [["first"], ["second"]]


def test_only_so_many_wait(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    for number in range(MOST):
        seen.add(str(number))
    assert [len(batch) for batch in seen.batches] == [1, MOST]


def test_large_bodies_do_not_pile_up(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    for number in range(3):
        seen.add(str(number), held_bytes=3 << 20)
    assert seen.batches == [["first"], ["0", "1"]]
    seen.add("small")
    assert len(seen.batches) == 2, "what was made holds nothing any more"
    seen.add("large", held_bytes=1 << 20)
    assert seen.batches[2] == ["2", "small", "large"]


def test_a_fault_of_ours_is_told_of_at_once_with_all_before_it(watch: Watch) -> None:
    seen = Seen(watch)
    for name in ("first", "second"):
        seen.add(name)
    seen.add("broken", OWN_FAULT)
    assert seen.batches == [["first"], ["second", "broken"]]


def test_a_storm_of_refusals_is_not_told_of_one_by_one(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first", FAILED)
    watch.now += 0.004
    seen.add("second", FAILED)
    assert seen.batches == [["first"]]
    watch.now += 0.001
    seen.add("third", FAILED)
    assert seen.batches == [["first"], ["second", "third"]]


def test_without_a_keeper_every_record_is_made_as_it_comes(watch: Watch) -> None:
    seen = Seen(watch)
    seen.records.close()
    for name in ("a", "b"):
        seen.add(name)
    assert seen.batches == [["a"], ["b"]]


def test_the_end_has_those_made_that_wait(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    seen.add("second")
    seen.records.close()
    assert seen.batches == [["first"], ["second"]]


def test_they_know_the_time_of_day(watch: Watch) -> None:
    found: list[Record] = []
    Records([found.extend]).add(make("a"), watch.now, CALM, 0)
    assert found[0].at == 1_700_000_000.0


def test_nobody_waits_for_whoever_is_at_it_and_nothing_stays_behind(watch: Watch) -> None:
    """What comes while another thread makes Records, that one takes along."""
    shown: list[str] = []
    more = ["2", "3"]

    def show(found: Sequence[Record]) -> None:
        shown.extend(one.request_id for one in found)
        if more:
            records.add(make(more.pop(0)), watch.now, OWN_FAULT, 0)  # finds the lock taken

    records = Records([show])
    records.add(make("1"), watch.now, CALM, 0)
    assert shown == ["1", "2", "3"]


def test_whoever_asks_waits_for_those_that_another_thread_is_making(watch: Watch) -> None:
    shown: list[Record] = []
    taken, free = threading.Event(), threading.Event()

    def slow(epoch_s: float) -> Record:
        taken.set()
        assert free.wait(10)
        return make("slow")(epoch_s)

    records = Records([shown.extend])
    one = threading.Thread(target=records.add, args=(slow, watch.now, CALM, 0))
    one.start()
    assert taken.wait(10)
    records.flush()
    assert not shown, "nobody waits who did not ask to"
    threading.Timer(0.05, free.set).start()
    records.flush(10.0)
    assert [record.request_id for record in shown] == ["slow"]
    one.join()


def test_one_that_cannot_be_made_takes_no_other_with_it(watch: Watch) -> None:
    def broken(epoch_s: float) -> Record:
        raise ZeroDivisionError

    seen = Seen(watch)
    seen.add("first")
    seen.add("before")
    seen.records.add(broken, watch.now, CALM, 0)
    seen.add("behind")
    with pytest.raises(ZeroDivisionError):
        seen.records.flush()
    seen.records.flush()
    assert seen.batches == [["first"], ["before"], ["behind"]]


def test_a_child_tells_of_nothing_that_is_its_parents(watch: Watch) -> None:
    seen = Seen(watch)
    seen.add("first")
    seen.add("the parent's")
    seen.records._lock.acquire()  # held by another thread as the child begins
    pid = os.fork()
    if pid == 0:
        seen.add("the child's")
        os._exit(0 if seen.batches == [["first"], ["the child's"]] else 1)
    seen.records._lock.release()
    assert os.waitpid(pid, 0)[1] == 0
    seen.records.flush()
    assert seen.batches == [["first"], ["the parent's"]]


def test_somebody_elses_request_is_not_kept_at_it_for_ever(watch: Watch) -> None:
    shown: list[int] = []

    def show(found: Sequence[Record]) -> None:
        shown.append(len(found))
        records.add(make("more"), watch.now, OWN_FAULT, 0)

    records = Records([show])
    records._kept = True
    records.add(make("1"), watch.now, OWN_FAULT, 0)
    assert shown == [1, 1, 1]


def test_writing_holds_up_no_other_thread(watch: Watch) -> None:
    """stdout may take nothing for a while: Records are made all the same."""
    shown: list[Record] = []
    free = threading.Event()
    stuck = threading.Event()

    def write() -> None:
        if not stuck.is_set():
            stuck.set()
            assert free.wait(10)

    records = Records([shown.extend], write)
    one = threading.Thread(target=records.add, args=(make("1"), watch.now, CALM, 0))
    one.start()
    assert stuck.wait(10)
    records.add(make("2"), watch.now, CALM, 0)
    assert [record.request_id for record in shown] == ["1", "2"]
    free.set()
    one.join()


def test_of_many_threads_every_record_is_made_once_and_each_threads_in_order() -> None:
    shown: list[Record] = []
    records = Records([shown.extend])
    records.pump()

    def work(name: int) -> None:
        for number in range(400):
            records.add(make(f"{name}-{number}"), 0.0, CALM, 10)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records.close()
    found = [tuple(map(int, record.request_id.split("-"))) for record in shown]
    assert len(found) == 8 * 400
    for name in range(8):
        assert [number for thread, number in found if thread == name] == list(range(400))


def test_a_server_without_hooks_loses_none_at_its_end() -> None:
    code = (
        "from tests.unit.gateway.test_records import make\n"
        "from app.gateway.records import Records\n"
        "records = Records([lambda found: print(len(found))])\n"
        "records.pump()\n"
        "for name in 'abc':\n"
        "    records.add(make(name), 0.0, 0, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sum(map(int, done.stdout.split())) == 3


def test_those_of_an_application_that_has_gone_are_gone() -> None:
    records = Records()
    ref = weakref.ref(records)
    del records
    gc.collect()
    assert ref() is None
    module._close_last(ref)
