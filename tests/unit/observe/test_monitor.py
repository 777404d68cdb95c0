"""observe/monitor: one per process, over all workers of a node, with a clock passed in (B44).

Runs on: the test's thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.exchange import Attempt, Record
from app.observe import monitor as module
from app.observe import process
from app.observe.alerts import Alert, rules
from app.observe.cells import Tracked
from app.observe.groups import sorts
from app.observe.monitor import (
    PerformanceMonitor,
    Setup,
    get_current_metrics,
    get_performance_monitor,
    track_request,
)
from app.observe.node_cells import node_bytes
from app.observe.watch import Watch

GOOD = Record("r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("200", 1.0),), gateway_ms=2.0)
BAD = GOOD._replace(status=502, slug="connect_failed", gateway_ms=900.0)
RULES = rules(
    p95_latency_ms=500, p99_latency_ms=1000, error_rate=0.05, memory_growth_mb=50, requests_per_second_min=1
)


class Clock:
    def __init__(self) -> None:
        self.now = 720_000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A monitor as a worker has it, with what it tells."""

    def __init__(self, clock: Clock, path: str | None = None, enabled: bool = True) -> None:
        self.events: list[dict[str, Any]] = []
        self.draining = False
        self.clock = clock
        self.monitor = PerformanceMonitor(clock)
        setup = Setup(enabled, lambda: path, self.events.append, lambda: self.draining)
        self.monitor.configure(setup, Watch(RULES, self.events.append))

    def take(self, *records: Record) -> None:
        self.monitor.observe(sorts(records))
        self.monitor.pump()

    def minute(self) -> dict[str, Any]:
        found: dict[str, Any] = self.monitor.snapshot()["windows"]["1m"]
        return found

    def phase(self, rule: str) -> str:
        (found,) = [one for one in self.monitor.snapshot()["alerts"] if one["rule"] == rule]
        return str(found["state"])

    def told(self) -> list[tuple[str, str]]:
        return [(one["event"], one["rule"]) for one in self.events]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "cells"
    file.write_bytes(bytes(node_bytes(1)))
    return str(file)


@pytest.fixture
def ours() -> Iterator[PerformanceMonitor]:
    """The process's own, as new, and as it was afterwards."""
    found = get_performance_monitor()
    found.configure(Setup(), Watch((), lambda _: None))
    yield found
    found.configure(Setup(), Watch((), lambda _: None))


def steps(clock: Clock, *workers: Worker, count: int = 3, length_s: float = 5.0) -> None:
    for _ in range(count):
        clock.now += length_s
        for worker in workers:
            worker.monitor.pump()


def test_b44_what_is_observed_is_shown(clock: Clock) -> None:
    worker = Worker(clock)
    worker.take(GOOD, GOOD, BAD)
    worker.monitor.observe(sorts([GOOD]))
    found = json.loads(json.dumps(worker.monitor.snapshot()))
    assert (found["enabled"], found["scope"], found["workers"]) == (True, "process", 1)
    assert set(found) == {"enabled", "scope", "workers", "windows", "memory_growth_mb", "alerts"}
    assert [worker.monitor.snapshot()["windows"][name]["requests"] for name in ("10s", "1m", "5m", "1h")] == [
        4
    ] * 4
    assert found["windows"]["1m"]["by_type"]["connect_failed"]["errors"] == 1
    assert [one["rule"] for one in found["alerts"]] == [rule.name for rule in RULES]
    assert {one["state"] for one in found["alerts"]} == {"ok"}


def test_b44_the_view_is_a_second_old_at_most(clock: Clock) -> None:
    worker = Worker(clock)
    worker.take(GOOD)
    assert worker.monitor.view() is worker.monitor.view()
    worker.take(GOOD)
    assert worker.monitor.view()["windows"]["1m"]["requests"] == 1
    clock.now += 1
    assert worker.monitor.view()["windows"]["1m"]["requests"] == 2


def test_b44_both_workers_say_the_same_and_the_past_of_one_that_is_gone_stays(clock: Clock, path: str) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    one.take(GOOD, GOOD, BAD)
    two.take(GOOD)
    steps(clock, one, two, count=1, length_s=1.0)
    for worker in (one, two):
        assert (worker.minute()["requests"], worker.minute()["errors"]) == (4, 1)
        assert (worker.monitor.snapshot()["scope"], worker.monitor.snapshot()["workers"]) == ("node", 2)
    one.monitor._reset()  # as a process that ends does
    assert two.minute()["requests"] == 4
    three = Worker(clock, path)
    three.take(GOOD)
    steps(clock, three, count=1, length_s=1.0)
    assert (two.minute()["requests"], three.minute()["requests"]) == (5, 5)


def test_b44_one_worker_watches_and_all_show_it(clock: Clock, path: str) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    one.take(*[GOOD] * 15)
    two.take(*[BAD] * 15)
    steps(clock, one, two)
    assert one.told() == [("alert_firing", "p95_latency_ms"), ("alert_firing", "error_rate")]
    assert two.told() == []
    assert {worker.phase("error_rate") for worker in (one, two)} == {"firing"}
    one.monitor._reset()  # as a process that ends does
    one.monitor._setup = Setup(enabled=False)
    steps(clock, two, count=2)
    assert two.told() == []
    assert two.phase("error_rate") == "firing"
    steps(clock, two, count=14)
    assert two.told() == [("alert_resolved", "p95_latency_ms"), ("alert_resolved", "error_rate")]


def test_b44_a_worker_that_is_about_to_end_lets_another_watch(clock: Clock, path: str) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    steps(clock, one, two)
    one.draining = True
    one.take(*[BAD] * 30)
    steps(clock, one, two, count=4)
    assert one.told() == []
    assert ("alert_firing", "error_rate") in two.told()
    alone = Worker(clock)
    alone.draining = True
    alone.take(*[BAD] * 30)
    steps(clock, alone, count=4)
    assert alone.told() == []


def test_b44_too_few_exchanges_are_nothing_to_judge_by(clock: Clock) -> None:
    worker = Worker(clock)
    worker.take(*[BAD] * 19)
    steps(clock, worker, count=4)
    assert worker.told() == []
    worker.take(BAD)
    steps(clock, worker, count=3)
    assert ("alert_firing", "error_rate") in worker.told()


def test_b44_latency_is_judged_by_exchanges_of_which_it_is_known(clock: Clock) -> None:
    worker = Worker(clock)
    worker.take(*[GOOD._replace(gateway_ms=None)] * 30, *[GOOD._replace(gateway_ms=5000.0)] * 19)
    steps(clock, worker, count=4)
    assert worker.told() == []


def test_b44_a_rate_that_falls_is_told_where_a_minute_was_lived_through(clock: Clock) -> None:
    worker = Worker(clock)
    worker.take(*[GOOD] * 50)
    steps(clock, worker, count=30, length_s=1.0)  # 50 in half a minute: more than one a second so far, but …
    steps(clock, worker, count=90, length_s=1.0)
    assert worker.told() == []
    for _ in range(70):
        worker.take(GOOD, GOOD)
        steps(clock, worker, count=1, length_s=1.0)
    assert worker.told() == []
    steps(clock, worker, count=60, length_s=1.0)
    assert worker.told() == [("alert_firing", "requests_per_second_min")]


def test_b44_memory_is_that_of_the_worker_that_has_grown_most(
    clock: Clock, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    size = {id(one): 100_000_000, id(two): 100_000_000}
    current = [one]
    monkeypatch.setattr(process, "resident_bytes", lambda: size[id(current[0])])

    def look(times: int) -> None:
        for _ in range(times):
            clock.now += 5
            for worker in (one, two):
                current[0] = worker
                worker.monitor.pump()

    look(20)
    assert one.monitor.snapshot()["memory_growth_mb"] == 0.0
    size[id(two)] += 60_000_000
    look(5)
    assert one.monitor.snapshot()["memory_growth_mb"] == 60.0
    assert one.told() == [("alert_firing", "memory_growth_mb")]


def test_b44_what_does_not_work_is_told(clock: Clock, tmp_path: Path) -> None:
    worker = Worker(clock, str(tmp_path / "not-there"))
    assert worker.monitor.troubles == []
    worker.take(GOOD)
    assert worker.monitor.troubles == [
        "performance: this worker cannot share what it measures: No such file or directory"
    ]
    assert worker.monitor.snapshot()["scope"] == "process"
    assert [one["event"] for one in worker.events] == ["performance_not_shared"]


def test_b44_the_watchs_troubles_are_every_workers(clock: Clock, path: str) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    steps(clock, one, two, count=1)
    one.monitor._watch._arrived(Alert("a", "firing", "error_rate", 1.0, 1.0, 60, 1.0, "h", "t"), "status 500")
    steps(clock, one, two, count=1)
    reason = "alerts: the webhook was not told of error_rate: status 500"
    assert one.monitor.troubles == two.monitor.troubles == [reason]


def test_b44_switched_off_it_counts_nothing(clock: Clock) -> None:
    worker = Worker(clock, enabled=False)
    worker.monitor.track(Tracked("x", 1.0, ""))
    assert not worker.monitor._tracked
    assert worker.monitor.snapshot() == worker.monitor.view() == {"enabled": False}
    assert worker.monitor.troubles == []


def test_b44_the_end_writes_what_is_left_and_never_waits(clock: Clock, path: str) -> None:
    one, two = Worker(clock, path), Worker(clock, path)
    one.monitor.pump()
    one.monitor.observe(sorts([GOOD]))
    with one.monitor._lock:  # the keeper is in there, interrupted by the signal
        one.monitor.stop()
    assert two.minute()["requests"] == 0
    one.monitor.stop()
    assert two.minute()["requests"] == 1


def test_b44_what_applications_call(ours: PerformanceMonitor) -> None:
    seen: list[Alert] = []
    assert get_performance_monitor() is ours
    ours.on_alert(seen.append)
    assert track_request("report", 12.5) is None
    track_request("report", 12.5, status=503)
    track_request("report", 12.5, error=ValueError())
    with track_request("page") as it:
        it.status = 200

    @track_request("call")
    def call() -> int:
        return 7

    assert [call(), call()] == [7, 7]
    found = json.loads(json.dumps(get_current_metrics()))
    told = found["windows"]["10s"]
    assert {name: (one["requests"], one["errors"]) for name, one in told["tracked"].items()} == {
        "report": (3, 2),
        "page": (1, 0),
        "call": (2, 0),
    }
    assert told["tracked"]["report"]["latency_ms"]["p50"] == pytest.approx(12.5, rel=0.01)
    assert (told["requests"], found["alerts"]) == (0, [])
    ours.configure(Setup(), Watch((), lambda _: None))
    assert ours._watch.callbacks == [seen.append]
    ours._watch.callbacks.clear()


def test_b44_what_nobody_adds_up_is_bounded(clock: Clock) -> None:
    alone = PerformanceMonitor(clock)
    for _ in range(module._BACKLOG + 5):
        alone.track(Tracked("report", 1.0, ""))
    assert len(alone._tracked) == 5
    assert alone.snapshot()["windows"]["1h"]["tracked"]["report"]["requests"] == module._BACKLOG + 5


def test_b44_threads_lose_nothing(ours: PerformanceMonitor) -> None:
    def work() -> None:
        for _ in range(2000):
            track_request("report", 1.0)
            ours.observe(sorts([GOOD]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ours.pump()
        time.sleep(0)
    found = get_current_metrics()["windows"]["1h"]
    assert (found["tracked"]["report"]["requests"], found["requests"]) == (8000, 8000)


def test_b44_what_came_of_an_alert_is_written_at_the_next_tick(clock: Clock, path: str) -> None:
    """Whoever watches next would send it again."""
    one = Worker(clock, path)
    one.take(GOOD)
    node, watch = one.monitor._node, one.monitor._watch
    assert node is not None and node.file is not None and node.file.leads
    watch._arrived(Alert("a", "firing", "gone", 1.0, 1.0, 60, 1.0, "h", "t"), "no answer")
    assert node.file.watch()["trouble"] == ""
    clock.now += 0.25
    one.monitor.pump()
    assert node.file.watch()["trouble"].endswith("no answer")
    assert not watch.unwritten


def test_b44_a_child_is_another_worker(ours: PerformanceMonitor, path: str) -> None:
    """An application loaded ahead of its workers, or one that forks: nothing of the parent's is counted twice."""
    ours.configure(Setup(path=lambda: path), Watch((), lambda _: None))
    ours.observe(sorts([GOOD]))
    ours.pump()
    ours.observe(sorts([GOOD]))
    ours._lock.acquire()  # held by another thread as the child begins
    pid = os.fork()
    if pid == 0:
        clean = not ours._found and ours._node is None
        ours.observe(sorts([GOOD]))
        ours.pump()
        ours.stop()
        requests = ours.snapshot()["windows"]["1h"]["requests"]
        places = (ours._node is not None and ours._node.file is not None and ours._node.file.index) == 1
        os._exit(0 if clean and requests == 2 and places else 1)
    ours._lock.release()
    assert os.waitpid(pid, 0)[1] == 0
    assert ours.snapshot()["windows"]["1h"]["requests"] == 3
