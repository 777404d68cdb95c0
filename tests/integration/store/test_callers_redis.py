"""Caller limits of several nodes through a real Redis, which is shared, killed, frozen, emptied and restarted."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import CallerLimited
from app.store import limits_windows
from app.store.callers import TIMEOUT_S, Admission, CallerLimits, CallerRule
from app.store.redis import RedisLink
from tests.integration.store.conftest import RedisServer

ROOT = Path(__file__).resolve().parents[3]
NOW = 1_760_097_600.0
"""The nodes' wall clock stands still, so that no minute ends in the middle of a test; Redis keeps its own time."""
WAIT_S = 10.0
SLACK_S = 0.35
"""What a loaded machine adds to a time limit."""


class Node:
    """One node with one worker: its limits, and the link its Redis client comes from."""

    def __init__(self, server: RedisServer, path: Path | None, *rules: CallerRule) -> None:
        self.events: list[dict[str, object]] = []
        self.link = RedisLink(server.url, "auto", None, deque(), lambda facts: None, lambda event: None)
        self.limits = CallerLimits(
            rules, str(path) if path else None, self.link.client, self.events.append, lambda: NOW
        )
        self.pump()

    def pump(self) -> None:
        """What the keeper does every quarter second."""
        self.link.pump()
        self.limits.pump()

    def pump_until(self, reached: Callable[[], bool]) -> float:
        """Pump as the keeper does; returns how long it took."""
        start = time.monotonic()
        while not reached():
            assert time.monotonic() - start < WAIT_S, self.limits.degraded
            time.sleep(0.25)
            self.pump()
        return time.monotonic() - start

    def close(self) -> None:
        self.limits.close()
        self.link.close()


Make = Callable[..., Node]


@pytest.fixture
def make(server: RedisServer) -> Iterator[Make]:
    """Makes nodes that share ``server`` and nothing else; with a path, workers of one node."""
    made: list[Node] = []

    def one(*rules: CallerRule, path: Path | None = None) -> Node:
        made.append(Node(server, path, *rules))
        assert made[-1].limits.degraded == ""
        return made[-1]

    yield one
    for node in made:
        node.close()


def hit(node: Node, tries: int = 1) -> list[Admission]:
    found = []
    for _ in range(tries):
        with contextlib.suppress(CallerLimited):
            found.append(node.limits.admit("a"))
    return found


def left(found: Admission | CallerLimited, what: str) -> str:
    return dict(found.headers)[f"x-penstock-ratelimit-{what}"]


def refused(node: Node) -> CallerLimited:
    with pytest.raises(CallerLimited) as caught:
        node.limits.admit("a")
    return caught.value


def server_said(server: RedisServer, *words: str) -> Any:
    """Ask Redis itself, past everything of ours."""
    import redis

    with redis.Redis(port=server.port, decode_responses=True) as client:
        return client.execute_command(*words)


# ---------------------------------------------------------------------- shared
def test_requests_of_two_nodes(make: Make) -> None:
    rule = CallerRule("a", requests_per_minute=10)
    first, second = make(rule), make(rule)
    shares = [len(hit(node)) for node in (first, second) * 10]
    assert sum(shares) == 10
    assert shares[:10] == [1] * 10
    error = refused(second)
    assert error.retry_after_s is not None
    assert 58 <= error.retry_after_s <= 61
    assert left(error, "requests-remaining") == "0"
    assert "10 requests per minute" in error.message


def test_remaining_goes_down_over_both(make: Make) -> None:
    rule = CallerRule("a", 50, 5, 100)
    nodes = make(rule), make(rule)
    found = [node.limits.admit("a") for node in nodes * 2]
    assert [left(one, "requests-remaining") for one in found] == ["49", "48", "47", "46"]
    assert [left(one, "concurrent-remaining") for one in found] == ["4", "3", "2", "1"]
    for one in found:
        one.finish(10)
    assert left(nodes[0].limits.admit("a"), "tokens-remaining") == "60"
    assert left(nodes[1].limits.admit("a"), "concurrent-remaining") == "3"


def test_concurrent_requests_of_two_nodes(make: Make) -> None:
    rule = CallerRule("a", requests_per_minute=1000, concurrent_requests=4)
    first, second = make(rule), make(rule)
    running = hit(first, 3) + hit(second, 3)
    assert len(running) == 4
    assert "4 concurrent requests" in refused(first).message
    running[0].finish(0)
    running[0].finish(0)
    assert len(hit(second, 3)) == 1
    assert left(refused(first), "requests-remaining") == "995", "what was refused cost nothing"


def test_tokens_of_two_nodes(make: Make, server: RedisServer) -> None:
    rule = CallerRule("a", requests_per_minute=1000, tokens_per_day=100)
    first, second = make(rule), make(rule)
    first.limits.admit("a").finish(60)
    last = second.limits.admit("a")
    assert left(last, "tokens-remaining") == "40"
    last.finish(50)
    for node in (first, second):
        assert "100 tokens per day" in refused(node).message
    assert left(refused(first), "requests-remaining") == "998"
    keys = server_said(server, "KEYS", "*")
    assert all(0 < server_said(server, "TTL", key) <= 86_400 for key in keys), "nothing stays for ever"
    assert len(keys) == 2


def test_leases_last_as_long_as_they_are_refreshed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_windows, "LEASE_S", 1)
    for name in ("_REFRESH_S", "_RETRY_S"):
        monkeypatch.setattr(f"app.store.callers.{name}", 0.1)
    rule = CallerRule("a", concurrent_requests=2)
    alive, dead, looks = make(rule), make(rule), make(rule)
    alive.limits.admit("a")
    dead.limits.admit("a")
    refused(looks)

    found: list[Admission] = []
    start = time.monotonic()
    while time.monotonic() - start < 2:
        alive.pump()
        looks.pump()
        found += hit(looks)
        assert len(found) <= 1
        time.sleep(0.05)
    assert len(found) == 1, "the place of the one that is gone, not that of the other"


def test_leases_of_a_node_that_is_gone_leave_nothing_behind(
    make: Make, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_windows, "LEASE_S", 1)
    make(CallerRule("a", concurrent_requests=2)).limits.admit("a")
    start = time.monotonic()
    while server_said(server, "DBSIZE"):
        assert time.monotonic() - start < WAIT_S


def test_a_lease_that_ends_while_it_is_refreshed_stays_ended(make: Make, server: RedisServer) -> None:
    node = make(CallerRule("a", concurrent_requests=5))
    admission = node.limits.admit("a")
    shared = node.limits._shared
    assert shared is not None and shared._redis is not None
    before = dict(shared._leases)
    admission.finish(0)
    shared._redis.refresh(before, shared._leases)
    assert server_said(server, "DBSIZE") == 0


def test_it_takes_one_trip_to_admit_and_at_most_one_to_end(make: Make, server: RedisServer) -> None:
    node = make(CallerRule("a", 100_000, 100, 10**9))
    node.limits.admit("a").finish(1)

    def calls() -> int:
        said = server_said(server, "INFO", "commandstats")
        return sum(int(said[name]["calls"]) for name in said if name == "cmdstat_evalsha")

    before = calls()
    for _ in range(20):
        node.limits.admit("a").finish(5)
    assert calls() - before == 40


# ---------------------------------------------------------------------- gone
def timed(node: Node) -> tuple[float, Admission]:
    start = time.monotonic()
    admission = node.limits.admit("a")
    return time.monotonic() - start, admission


def test_redis_killed_in_the_middle(make: Make, server: RedisServer, tmp_path: Path) -> None:
    rule = CallerRule("a", 1000, 100, 100_000)
    first, second = (make(rule, path=tmp_path / "counters") for _ in range(2))
    running = hit(first, 10)
    server.kill()
    slowest = 0.0
    for _ in range(100):
        for node in (first, second):
            took_s, admission = timed(node)
            slowest = max(slowest, took_s)
            admission.finish(10)
    assert slowest < TIMEOUT_S + SLACK_S
    assert {node.limits.degraded for node in (first, second)} == {"redis_unreachable"}
    for node in (first, second):
        assert [event["event"] for event in node.events] == ["caller_limits_degraded"], "once"
    found = first.limits.admit("a")
    assert left(found, "requests-remaining") == str(1000 - 10 - 200 - 1), "the node goes on from what it had seen"
    assert left(found, "concurrent-remaining") == str(100 - 11)
    running.append(found)

    server.start()  # empty
    for node in (first, second):
        assert node.pump_until(lambda node=node: not node.limits.degraded) < 3  # type: ignore[misc]
        assert [event["event"] for event in node.events[1:]] == ["caller_limits_restored"]
    found = second.limits.admit("a")
    assert left(found, "concurrent-remaining") == str(100 - 12), "what is under way is known to it again"
    assert left(found, "tokens-remaining") == str(100_000 - 2000), "and the tokens of the time without it"
    for one in (*running, found):
        one.finish(0)
    assert left(first.limits.admit("a"), "concurrent-remaining") == "99"


def test_the_limit_holds_for_the_node_while_redis_is_gone(make: Make, server: RedisServer, tmp_path: Path) -> None:
    rule = CallerRule("a", requests_per_minute=60)
    first, second = (make(rule, path=tmp_path / "counters") for _ in range(2))
    assert len(hit(first, 20)) == 20
    server.kill()
    assert len(hit(second, 30)) + len(hit(first, 30)) == 40


def test_an_empty_redis_forgets_no_tokens_of_this_node(make: Make, server: RedisServer) -> None:
    node = make(CallerRule("a", tokens_per_day=100))
    node.limits.admit("a").finish(100)
    refused(node)
    server_said(server, "FLUSHALL")
    assert "100 tokens per day" in refused(node).message


def test_redis_that_hangs(make: Make, server: RedisServer) -> None:
    node = make(CallerRule("a", 1_000_000, 100, 10**9))
    node.limits.admit("a").finish(1)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        slow = 0
        stop_at = time.monotonic() + 3
        while time.monotonic() < stop_at:  # the keeper pumps; the requests do not wait for what it waits for
            took_s, admission = timed(node)
            admission.finish(1)
            assert took_s < TIMEOUT_S + SLACK_S
            slow += took_s > TIMEOUT_S * 0.8
            time.sleep(0.01)
        assert slow == 1, "the first to find out, nobody else"
        assert node.limits.degraded == "redis_timeout"
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert node.pump_until(lambda: not node.limits.degraded) < 3


def test_many_threads_while_redis_hangs(make: Make, server: RedisServer) -> None:
    node = make(CallerRule("a", 1_000_000, 1000, 10**9))
    for one in hit(node, 5):
        one.finish(1)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    took: list[float] = []

    def request() -> None:
        took_s, admission = timed(node)
        took.append(took_s)
        admission.finish(1)

    try:
        threads = [threading.Thread(target=request) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert len(took) == 40
    assert max(took) < TIMEOUT_S + SLACK_S, "those in line find out with those in front"
    assert [event["event"] for event in node.events] == ["caller_limits_degraded"]


GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, json, os, signal, sys, time
from collections import deque
from app.store.callers import CallerLimits, CallerRule
from app.store.redis import RedisLink

url, pid = sys.argv[1], int(sys.argv[2])
events = []
link = RedisLink(url, "auto", None, deque(), lambda facts: None, events.append)
limits = CallerLimits(
    [CallerRule("a", 300, 1000, 10**9)], None, link.client, events.append, lambda: 1_760_097_600.0
)
link.pump()
limits.pump()

def keep():
    while True:
        time.sleep(0.25)
        link.pump()
        limits.pump()

gevent.spawn(keep)
took, gaps = [], []

def request():
    start = time.monotonic()
    try:
        limits.admit("a").finish(1)
        return 1
    except Exception as error:
        return type(error).__name__
    finally:
        took.append(time.monotonic() - start)

def tick():
    before = time.monotonic()
    while True:
        time.sleep(0.005)
        gaps.append(time.monotonic() - before)
        before = time.monotonic()

def burst(count):
    took.clear()
    jobs = [gevent.spawn(request) for _ in range(count)]
    gevent.joinall(jobs)
    said = [job.value for job in jobs]
    return {"in": said.count(1), "out": said.count("CallerLimited"), "slowest": max(took)}

gevent.spawn(tick)
gevent.sleep(0.05)
report = {"shared": burst(200)}
gaps.clear()
os.kill(pid, signal.SIGSTOP)
report["frozen"] = burst(200)
report["longest gap"] = max(gaps)
report["degraded"] = limits.degraded
report["after"] = burst(200)
os.kill(pid, signal.SIGCONT)
until = time.monotonic() + 10
while limits.degraded and time.monotonic() < until:
    time.sleep(0.05)
report["healed"] = limits.degraded
limits.close()
link.close()
print(json.dumps(report))
"""


def test_greenlets(server: RedisServer) -> None:
    """Two hundred at once on one worker: nothing lost, nobody held up for longer than the limit, the hub alive."""
    assert server.process is not None
    try:
        done = subprocess.run(
            [sys.executable, "-c", GEVENT, server.url, str(server.process.pid)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["shared"]["in"] == 200
    assert report["frozen"]["in"] + report["frozen"]["out"] == 200, report
    assert report["frozen"]["in"] == 100, "the node knew of the first 200"
    assert report["frozen"]["slowest"] < TIMEOUT_S + SLACK_S, report
    assert report["longest gap"] < SLACK_S, "the worker went on serving others"
    assert report["degraded"] == "redis_timeout"
    assert report["after"]["slowest"] < SLACK_S, report
    assert report["healed"] == ""
