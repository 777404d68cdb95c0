"""Caller limits over real processes and threads: exact in total, given back by the killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import CallerLimited
from app.store.callers import CallerLimits, CallerRule
from app.store.counters import counters_bytes

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 30.0
WORKERS = 4

WORKER = """
import json, sys
if sys.argv[4] == "gevent":
    from gevent import monkey; monkey.patch_all()
from app.errors import CallerLimited
from app.store.callers import CallerLimits, CallerRule

path, rules, now = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
limits = CallerLimits([CallerRule(*rule) for rule in rules], path, None, print, *([lambda: now] if now else []))
held = []

def attempt(name):
    try:
        held.append(limits.admit(name))
        return True
    except CallerLimited:
        return False

print(json.dumps(limits.degraded), flush=True)
for line in sys.stdin:
    order, *rest = json.loads(line)
    if order == "hit":
        answer = sum(attempt(rest[0]) for _ in range(rest[1]))
    elif order == "churn":  # never more at once than the limit: each looks at the sum it is shown
        answer, most = 0, 0
        for _ in range(rest[1]):
            if attempt(rest[0]):
                answer += 1
                held.pop().finish(rest[2])
    elif order == "spin":
        print("null", flush=True)
        while True:
            if attempt(rest[0]):
                held.pop().finish(1)
    elif order == "left":
        answer = dict(limits.admit(rest[0]).headers)
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """A process that asks the limits."""

    def __init__(self, path: Path, rules: list[CallerRule], now: float, kind: str = "threads") -> None:
        given = [
            [rule.name, rule.requests_per_minute, rule.concurrent_requests, rule.tokens_per_day] for rule in rules
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), json.dumps(given), str(now), kind],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def order(self, *order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it died"
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., list[Worker]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers of one node, all at once. ``now``: their clock stands still there."""
    made: list[Worker] = []

    def several(*rules: CallerRule, now: float = 0.0, count: int = WORKERS, kind: str = "threads") -> list[Worker]:
        new = [Worker(tmp_path / "counters", list(rules), now, kind) for _ in range(count)]
        made.extend(new)
        for worker in new:
            assert worker.answer() == ""
        return new

    yield several
    for worker in made:
        worker.kill()


def all_at_once(workers: list[Worker], *order: object) -> list[Any]:
    for worker in workers:
        worker.order(*order)
    return [worker.answer() for worker in workers]


@pytest.mark.parametrize("kind", ["threads", "gevent"])
def test_four_processes_never_get_more_than_the_limit(start: Start, kind: str) -> None:
    rules = [CallerRule("a", requests_per_minute=5000), CallerRule("b", requests_per_minute=7)]
    workers = start(*rules, now=1_760_097_600.0, kind=kind)
    shares = all_at_once(workers, "hit", "a", 4000)
    assert sum(shares) == 5000
    assert min(shares) > 0, f"they were not at it at the same time: {shares}"
    assert sum(all_at_once(workers, "hit", "b", 50)) == 7


def test_four_processes_book_every_token(start: Start) -> None:
    workers = start(CallerRule("a", 1_000_000, 1000, 10**9), now=1_760_097_600.0)
    assert all_at_once(workers, "churn", "a", 2000, 3) == [2000] * WORKERS
    workers[0].order("left", "a")
    left = workers[0].answer()
    assert left["x-penstock-ratelimit-tokens-remaining"] == str(10**9 - 3 * 2000 * WORKERS)
    assert left["x-penstock-ratelimit-requests-remaining"] == str(1_000_000 - 2000 * WORKERS - 1)
    assert left["x-penstock-ratelimit-concurrent-remaining"] == "999"


def test_concurrent_places_of_four_processes(start: Start) -> None:
    workers = start(CallerRule("a", concurrent_requests=100))
    assert sum(all_at_once(workers, "hit", "a", 60)) == 100
    assert sum(all_at_once(workers, "hit", "a", 60)) == 0


def test_a_killed_process_frees_its_places(start: Start) -> None:
    workers = start(CallerRule("a", concurrent_requests=10))
    workers[0].order("hit", "a", 8)
    assert workers[0].answer() == 8
    workers[1].order("hit", "a", 5)
    assert workers[1].answer() == 2
    workers[0].kill()
    workers[2].order("hit", "a", 20)
    assert workers[2].answer() == 8
    (replacement,) = start(CallerRule("a", concurrent_requests=10), count=1)
    replacement.order("hit", "a", 20)
    assert replacement.answer() == 0, "it took the row over, not what was under way in it"


def test_processes_killed_inside_do_not_hold_up_the_others(start: Start, tmp_path: Path) -> None:
    """Each is killed somewhere in its work, the section included; what is left counts right afterwards."""
    rule = CallerRule("a", 1_000_000, 3, 10**9)
    survivor = start(rule, count=1)[0]
    for _ in range(6):
        for worker in (victims := start(rule, count=3)):
            worker.order("spin", "a")
            worker.answer()
        survivor.order("churn", "a", 200, 1)
        for worker in victims:
            os.kill(worker.process.pid, signal.SIGKILL)
        survivor.answer()
        for worker in victims:
            worker.kill()
    survivor.order("hit", "a", 10)
    assert survivor.answer() == 3
    assert (tmp_path / "counters").stat().st_size == counters_bytes(1)


def test_a_worker_killed_while_it_waits_has_counted_nothing(start: Start, tmp_path: Path) -> None:
    rule = CallerRule("a", requests_per_minute=10)
    (waits,) = start(rule, count=1)
    mine = CallerLimits([rule], str(tmp_path / "counters"), None, print)
    counters = mine._counters
    assert counters is not None
    with counters:
        waits.order("hit", "a", 1)
        time.sleep(0.2)
        assert waits.process.poll() is None
        waits.kill()
    assert mine.admit("a").headers[1][1] == "9", "killed while it waited: it had counted nothing"
    mine.close()


def test_threads_of_one_process(tmp_path: Path) -> None:
    now = 1_760_097_600.0
    rule = CallerRule("a", 500, 200, 10**6)
    limits = CallerLimits([rule], str(tmp_path / "counters"), None, print, lambda: now)
    admissions: list[Any] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work() -> None:
        for _ in range(100):
            try:
                admissions.append(limits.admit("a"))
            except CallerLimited:
                continue
            if len(admissions) % 2:
                admission = admissions[-1]
                ends = [threading.Thread(target=admission.finish, args=(10,)) for _ in range(2)]
                for end in ends:
                    end.start()
                for end in ends:
                    end.join()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    sys.setswitchinterval(before)
    assert len(admissions) <= 500
    for admission in admissions:
        admission.finish(10)
    counters = limits._counters
    assert counters is not None
    with counters:
        assert counters.running("concurrent/a") == 0
        assert counters.read("tokens/a", now).current == 10 * len(admissions)
        assert counters.read("requests/a", now).current == len(admissions)
    limits.close()
