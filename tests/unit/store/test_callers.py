"""Caller limits: exact, honest about what is left, free of charge for what is refused; with and without Redis."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerDay, RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from app.errors import CallerLimited
from app.store import limits_windows
from app.store.callers import Admission, CallerLimits, CallerRule
from app.store.counters import NodeCounters
from app.store.limits_windows import Caller, NodeStorage, Taken

MIDNIGHT = 1_760_054_400.0  # 2025-10-10T00:00:00Z
NOON = MIDNIGHT + 43_200


class Clock:
    """Wall and monotonic time that stand still until told to go on."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., CallerLimits]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Makes one more worker's view of the limits of the same node."""
    made: list[CallerLimits] = []

    def one(*rules: CallerRule, alone: bool = False) -> CallerLimits:
        path = None if alone else str(tmp_path / "counters")
        made.append(CallerLimits(rules, path, None, lambda event: None, clock, clock))
        return made[-1]

    yield one
    for limits in made:
        limits.close()


def left(found: Admission | CallerLimited) -> dict[str, str]:
    """The headers, without what they all begin with."""
    assert all(name.startswith("x-penstock-ratelimit-") for name, _ in found.headers)
    assert len(dict(found.headers)) == len(found.headers)
    return {name.removeprefix("x-penstock-ratelimit-"): value for name, value in found.headers}


def refused(limits: CallerLimits, name: str = "a") -> CallerLimited:
    with pytest.raises(CallerLimited) as caught:
        limits.admit(name)
    return caught.value


def admitted(limits: CallerLimits, tries: int, name: str = "a") -> int:
    count = 0
    for _ in range(tries):
        try:
            limits.admit(name)
        except CallerLimited:
            continue
        count += 1
    return count


# ---------------------------------------------------------------------- nothing to limit
def test_without_limits_nothing_is_asked(make: Make) -> None:
    limits = make(CallerRule("a"), CallerRule("b"))
    assert not limits.any
    admission = limits.admit("a")
    assert (admission.headers, admission.counts_tokens) == ([], False)
    admission.finish(5)
    admission.finish(5)
    limits.pump()
    assert not limits.counts_tokens("a")
    assert limits.degraded == ""
    admission.headers.append(("x", "y"))
    assert limits.admit("a").headers == [], "one request's headers are no other's"


def test_without_limits_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom app.store.callers import CallerLimits, CallerRule\n"
        f"limits = CallerLimits([CallerRule('a')], {str(tmp_path / 'counters')!r}, lambda: None, print)\n"
        "limits.admit('a').finish(1)\n"
        "assert not {'limits', 'redis', 'ssl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert not (tmp_path / "counters").exists()


def test_others_are_not_limited(make: Make) -> None:
    limits = make(CallerRule("a", requests_per_minute=1), CallerRule("b"))
    assert limits.any
    assert admitted(limits, 5) == 1
    assert admitted(limits, 5, "b") == 5
    assert admitted(limits, 5, "unknown") == 5
    assert limits.admit("b").headers == []


# ---------------------------------------------------------------------- requests per minute
def test_requests_per_minute(make: Make, clock: Clock) -> None:
    limits = make(CallerRule("a", requests_per_minute=3))
    remaining = [left(limits.admit("a"))["requests-remaining"] for _ in range(3)]
    assert remaining == ["2", "1", "0"]
    clock.now += 20
    error = refused(limits)
    assert error.retry_after_s == 41, "the minute of the clock ends in 40 s; not a moment sooner"
    assert error.message == (
        "Gateway key a has used up its 3 requests per minute; free again in 41 s, at 2025-10-10T12:01:01Z."
    )
    assert left(error) == {
        "requests-limit": "3",
        "requests-remaining": "0",
        "requests-reset": "2025-10-10T12:02:00Z",
    }
    clock.now += 41
    assert left(limits.admit("a"))["requests-remaining"] == "0", "3 of the minute before weigh 2.95, so 2"
    refused(limits)
    clock.now = NOON + 120
    assert left(limits.admit("a"))["requests-remaining"] == "1"
    clock.now = NOON + 300
    assert left(limits.admit("a"))["requests-remaining"] == "2"


def test_the_limit_holds_over_all_workers(make: Make) -> None:
    workers = [make(CallerRule("a", requests_per_minute=10)) for _ in range(4)]
    assert sum(admitted(worker, 1) for worker in workers * 5) == 10


def test_alone_each_process_counts_for_itself(make: Make) -> None:
    workers = [make(CallerRule("a", requests_per_minute=10), alone=True) for _ in range(2)]
    assert [admitted(worker, 20) for worker in workers] == [10, 10]


def test_a_new_limit_goes_on_counting(make: Make) -> None:
    assert admitted(make(CallerRule("a", requests_per_minute=5, tokens_per_day=100)), 9) == 5
    more = make(CallerRule("a", requests_per_minute=8, tokens_per_day=50))
    more.admit("a").finish(60)
    assert left(refused(more)) | {"requests-reset": ""} == {
        "requests-limit": "8",
        "requests-remaining": "2",
        "requests-reset": "",
        "tokens-limit": "50",
        "tokens-remaining": "0",
        "tokens-reset": "2025-10-11T00:00:00Z",
    }
    fewer = make(CallerRule("a", requests_per_minute=2))
    assert left(refused(fewer))["requests-remaining"] == "0"


def test_a_limit_that_was_lowered_says_when_it_is_free_again(make: Make, clock: Clock) -> None:
    assert admitted(make(CallerRule("a", requests_per_minute=8)), 9) == 8
    limits = make(CallerRule("a", requests_per_minute=2))
    clock.now += 10
    assert refused(limits).retry_after_s == 50 + 45 + 1, "8 have to fade to less than 2"
    promised(limits, clock, 96)
    clock.now += 96
    assert admitted(limits, 5) == 1


Bursts = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 12)), min_size=1, max_size=12)


@settings(deadline=None)
@given(limit=st.integers(1, 9), bursts=Bursts)
def test_no_minute_of_the_clock_sees_more_and_what_is_said_is_true(
    limit: int, bursts: list[tuple[float, int]]
) -> None:
    clock = Clock(NOON + 0.25)
    limits = CallerLimits([CallerRule("a", limit)], None, None, lambda event: None, clock)
    minutes: dict[int, int] = {}
    for pause_s, tries in bursts:
        clock.now += pause_s
        for _ in range(tries):
            minute = int(clock.now // 60)
            said = left(limits.admit("a")) if minutes.get(minute, 0) < limit and may(limits) else {}
            if not said:
                wait_s = refused(limits).retry_after_s
                assert wait_s is not None
                promised(limits, clock, wait_s)
                break
            minutes[minute] = minutes.get(minute, 0) + 1
            assert int(said["requests-remaining"]) == room(limits)
    assert max(minutes.values(), default=0) <= limit


def window(limits: CallerLimits) -> Taken:
    caller = limits._callers["a"]
    with limits._node._counters:
        found = limits._node._storage.get_sliding_window(caller.minute.key_for(), 60)
    return Taken("requests", found, 0, 0)


def room(limits: CallerLimits) -> int:
    return window(limits).left(limits._callers["a"].requests)


def may(limits: CallerLimits) -> bool:
    return room(limits) > 0


def promised(limits: CallerLimits, clock: Clock, wait_s: float) -> None:
    """Nothing a moment before it is free, something after it; and the header is not earlier than that."""
    now = clock.now
    free_s = window(limits).free_in_s(limits._callers["a"].requests)
    assert free_s < wait_s <= free_s + 1
    clock.now = now + free_s - 0.001
    if free_s > 0.001:
        assert not may(limits)
    clock.now = now + free_s + 0.001
    assert may(limits)
    clock.now = now


# ---------------------------------------------------------------------- concurrent requests
def test_concurrent_requests(make: Make) -> None:
    first, second = (make(CallerRule("a", concurrent_requests=3)) for _ in range(2))
    running = [first.admit("a"), second.admit("a"), first.admit("a")]
    assert [left(one)["concurrent-remaining"] for one in running] == ["2", "1", "0"]
    error = refused(second)
    assert error.retry_after_s == 1
    assert error.message == (
        "Gateway key a has all of its 3 concurrent requests under way; one is free when one of them ends."
    )
    assert left(error) == {"concurrent-limit": "3", "concurrent-remaining": "0"}
    running[0].finish(0)
    running[0].finish(0)
    again = second.admit("a")
    refused(first)
    again.finish(10)
    for one in running:
        one.finish(0)
    assert left(first.admit("a"))["concurrent-remaining"] == "2", "whoever ends twice gives back once"


def test_a_worker_that_ends_gives_its_places_back(make: Make) -> None:
    first, second = (make(CallerRule("a", concurrent_requests=2)) for _ in range(2))
    late = [first.admit("a"), first.admit("a")]
    refused(second)
    first.close()
    assert left(second.admit("a"))["concurrent-remaining"] == "1"
    for one in late:
        one.finish(0)  # after the end
    assert left(second.admit("a"))["concurrent-remaining"] == "0"


def die(limits: CallerLimits) -> None:
    """What the kernel does for a killed process: its file is closed, nothing is given back."""
    assert limits._counters is not None
    limits._counters._let_go()
    limits._counters._path = None


def test_a_dead_worker_is_found_when_there_is_no_room(make: Make) -> None:
    dead, alive = (make(CallerRule("a", concurrent_requests=2)) for _ in range(2))
    dead.admit("a")
    dead.admit("a")
    die(dead)
    assert left(alive.admit("a"))["concurrent-remaining"] == "1"
    alive.admit("a")
    refused(alive)


def test_a_dead_worker_is_found_by_the_keeper(make: Make) -> None:
    dead, alive = (make(CallerRule("a", concurrent_requests=3)) for _ in range(2))
    dead.admit("a")
    die(dead)
    assert left(alive.admit("a"))["concurrent-remaining"] == "1"
    alive.pump()
    assert left(alive.admit("a"))["concurrent-remaining"] == "1"


# ---------------------------------------------------------------------- tokens per day
def test_tokens_per_day(make: Make, clock: Clock) -> None:
    limits, other = (make(CallerRule("a", tokens_per_day=1000)) for _ in range(2))
    assert limits.counts_tokens("a")
    admission = limits.admit("a")
    assert admission.counts_tokens
    assert left(admission) == {
        "tokens-limit": "1000",
        "tokens-remaining": "1000",
        "tokens-reset": "2025-10-11T00:00:00Z",
    }
    admission.finish(999)
    admission.finish(999)
    last = other.admit("a")
    assert left(last)["tokens-remaining"] == "1", "what one worker booked the other knows"
    last.finish(5000)
    error = refused(limits)
    assert error.retry_after_s == 43_201
    assert error.should_retry is False, "an SDK that waits a second would only ask in vain"
    assert error.message == (
        "Gateway key a has used up its 1000 tokens per day; free again in 43201 s, at 2025-10-11T00:00:01Z."
    )
    assert left(error)["tokens-remaining"] == "0"
    clock.now = MIDNIGHT + 86_399.9
    refused(other)
    clock.now = MIDNIGHT + 86_400
    assert left(other.admit("a"))["tokens-remaining"] == "1000"


@pytest.mark.parametrize("tokens", [0, -5])
def test_no_tokens(make: Make, tokens: int) -> None:
    limits = make(CallerRule("a", tokens_per_day=10))
    limits.admit("a").finish(tokens)
    assert left(limits.admit("a"))["tokens-remaining"] == "10"


def test_what_no_answer_can_have_used_ends_the_day_and_spoils_no_counter(make: Make) -> None:
    limits = make(CallerRule("a", tokens_per_day=10))
    first, second = limits.admit("a"), limits.admit("a")
    for admission in (first, second):
        admission.finish(3 * (2**64 - 1))
    refused(limits)


def test_tokens_are_not_booked_where_they_do_not_count(make: Make) -> None:
    limits = make(CallerRule("a", requests_per_minute=10))
    assert not limits.counts_tokens("a")
    admission = limits.admit("a")
    assert not admission.counts_tokens
    admission.finish(100)
    both = make(CallerRule("a", requests_per_minute=10, tokens_per_day=10))
    assert left(both.admit("a"))["tokens-remaining"] == "10"


# ---------------------------------------------------------------------- all together
ALL = CallerRule("a", requests_per_minute=10, concurrent_requests=2, tokens_per_day=100)


def test_all_headers(make: Make) -> None:
    limits = make(ALL)
    limits.admit("a").finish(30)
    assert left(limits.admit("a")) == {
        "requests-limit": "10",
        "requests-remaining": "8",
        "requests-reset": "2025-10-10T12:02:00Z",
        "tokens-limit": "100",
        "tokens-remaining": "70",
        "tokens-reset": "2025-10-11T00:00:00Z",
        "concurrent-limit": "2",
        "concurrent-remaining": "1",
    }


def test_instants_are_rfc_3339(make: Make) -> None:
    for name, value in left(make(ALL).admit("a")).items():
        if name.endswith("-reset"):
            assert datetime.datetime.fromisoformat(value).utcoffset() == datetime.timedelta(0)


def test_a_request_refused_for_its_place_costs_nothing(make: Make) -> None:
    limits = make(ALL)
    running = [limits.admit("a") for _ in range(2)]
    for _ in range(50):
        assert left(refused(limits))["requests-remaining"] == "8"
    for one in running:
        one.finish(0)
    assert left(limits.admit("a"))["requests-remaining"] == "7"


def test_a_request_refused_for_its_minute_costs_nothing(make: Make, clock: Clock) -> None:
    limits = make(ALL)
    for _ in range(10):
        limits.admit("a").finish(1)
    for _ in range(50):
        assert left(refused(limits))["concurrent-remaining"] == "2"
    clock.now += 120
    found = left(limits.admit("a"))
    assert (found["requests-remaining"], found["concurrent-remaining"]) == ("9", "1")


def test_a_request_refused_for_its_tokens_costs_nothing(make: Make) -> None:
    limits = make(ALL)
    limits.admit("a").finish(100)
    for _ in range(50):
        found = left(refused(limits))
        assert (found["requests-remaining"], found["concurrent-remaining"]) == ("9", "2")


def test_an_unusable_file_is_said_and_limits_hold_per_process(tmp_path: Path, clock: Clock) -> None:
    events: list[dict[str, object]] = []
    limits = CallerLimits([CallerRule("a", 2)], str(tmp_path / "no" / "file"), None, events.append, clock, clock)
    assert limits.degraded == "counters_unavailable"
    assert [event["event"] for event in events] == ["caller_counters_unavailable"]
    assert admitted(limits, 5) == 2


def test_memory_is_bounded(make: Make, clock: Clock) -> None:
    limits = make(CallerRule("a", 1_000_000, 10, 10**9))
    for _ in range(400):
        limits.admit("a").finish(1)
        clock.now += 86_400 / 7
    assert limits._counters is not None
    assert len(limits._counters._known) == 3


# ---------------------------------------------------------------------- the library's storage
def test_the_librarys_own_strategies_run_on_it(clock: Clock) -> None:
    counters = NodeCounters(None, 1)
    storage = NodeStorage(counters, clock)
    minute, day = RateLimitItemPerMinute(3), RateLimitItemPerDay(10)
    sliding, fixed = SlidingWindowCounterRateLimiter(storage), FixedWindowRateLimiter(storage)
    with counters:
        assert storage.check()
        assert [sliding.hit(minute, "a") for _ in range(4)] == [True, True, True, False]
        assert not sliding.test(minute, "a")
        assert sliding.get_window_stats(minute, "a").remaining == 0
        sliding.clear(minute, "a")
        assert sliding.hit(minute, "a", cost=3)
        assert fixed.hit(day, "a", cost=10)
        assert not fixed.hit(day, "a")
        assert fixed.get_window_stats(day, "a") == (MIDNIGHT + 86_400, 0)
        assert fixed.get_window_stats(day, "b") == (NOON, 10)
        fixed.clear(day, "a")
        assert fixed.get_window_stats(day, "a") == (NOON, 10)
        with pytest.raises(NotImplementedError):
            storage.reset()


def test_a_clock_that_was_set_back_begins_anew(make: Make, clock: Clock) -> None:
    limits = make(CallerRule("a", requests_per_minute=3))
    assert admitted(limits, 5) == 3
    clock.now -= 3600
    assert admitted(limits, 5) == 3


# ---------------------------------------------------------------------- Redis, pretended
class Lost(Exception):
    """What the pretended Redis raises."""


class LostTimeoutError(Lost):
    pass


class Pretended:
    """Redis as ``limits_windows.RedisLimits`` offers it: admits until told otherwise, or is gone."""

    gone: Exception | None = None
    answer = Taken("", (0, 0.0, 0, 0.0), 0, 0)
    calls: list[tuple[Any, ...]]
    errors = (Lost,)

    def __init__(self, client: object, wall: Callable[[], float]) -> None:
        type(self).calls.append(("made for", client))

    def note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.gone is not None:
            raise self.gone

    def take(self, caller: Caller, lease: str, tokens: int) -> Taken:
        self.note("take", caller.name, lease, tokens)
        return self.answer

    def give_back(self, caller: Caller, lease: str, tokens: int) -> bool:
        self.note("give back", caller.name, lease, tokens)
        return True

    def refresh(self, leases: dict[str, Caller], live: dict[str, Caller]) -> None:
        self.note("refresh", sorted(leases))

    def ping(self) -> None:
        self.note("ping")


class Node:
    """One worker's limits with a pretended Redis."""

    def __init__(self, clock: Clock, *rules: CallerRule) -> None:
        self.clock = clock
        self.client: object | None = "client"
        self.events: list[dict[str, object]] = []
        self.limits = CallerLimits(rules, None, lambda: self.client, self.events.append, clock, clock)

    def calls(self) -> list[tuple[Any, ...]]:
        found, Pretended.calls = Pretended.calls, []
        return found


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pretended]]:
    monkeypatch.setattr(limits_windows, "RedisLimits", Pretended)
    monkeypatch.setattr(Pretended, "calls", [], raising=False)
    monkeypatch.setattr(Pretended, "gone", None)
    monkeypatch.setattr(Pretended, "answer", Taken("", (0, 0.0, 0, 0.0), 0, 0))
    yield Pretended


def test_until_the_first_pump_the_node_decides(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", requests_per_minute=2))
    assert node.limits.degraded == "redis_starting"
    assert admitted(node.limits, 5) == 2
    assert node.calls() == []
    node.limits.pump()
    assert node.limits.degraded == ""
    assert node.calls() == [("made for", "client"), ("ping",), ("refresh", [])]
    assert admitted(node.limits, 5) == 5, "now Redis decides"
    assert node.events == []


def test_a_redis_that_is_not_there_from_the_start(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, ALL)
    node.client = None
    node.limits.pump()
    assert node.limits.degraded == "redis_unreachable"
    assert node.events == [
        {"event": "caller_limits_degraded", "reason": "redis_unreachable", "error": "no connection"}
    ]


def test_redis_decides_and_the_node_keeps_count(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, ALL)
    node.limits.pump()
    node.calls()
    redis.answer = Taken("", (0, 0.0, 4, 90.0), 40, 2)
    admission = node.limits.admit("a")
    assert left(admission) == {
        "requests-limit": "10",
        "requests-remaining": "6",
        "requests-reset": "2025-10-10T12:01:30Z",
        "tokens-limit": "100",
        "tokens-remaining": "60",
        "tokens-reset": "2025-10-11T00:00:00Z",
        "concurrent-limit": "2",
        "concurrent-remaining": "0",
    }
    ((_, _, lease, known),) = node.calls()
    assert lease and known == 0
    clock.now += 5
    node.limits.pump()
    assert ("refresh", [lease]) in node.calls()
    admission.finish(25)
    admission.finish(25)
    assert node.calls() == [("give back", "a", lease, 25)]
    node.limits.admit("a")
    assert node.calls()[0][3] == 25, "what the node knows is said: Redis may have lost it"
    redis.gone = Lost("gone")
    found = left(node.limits.admit("a"))
    assert found["requests-remaining"] == "7", "the node goes on from what it has seen: two before this one"
    assert found["tokens-remaining"] == "75"
    assert found["concurrent-remaining"] == "0"


def test_what_redis_refuses_costs_nothing(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, ALL)
    node.limits.pump()
    redis.answer = Taken("concurrent", (0, 0.0, 4, 90.0), 40, 2)
    for _ in range(20):
        assert "concurrent" in refused(node.limits).message
    node.calls()
    clock.now += 5
    node.limits.pump()
    assert ("refresh", []) in node.calls(), "no lease of what was refused"
    redis.gone = Lost()
    assert left(node.limits.admit("a"))["requests-remaining"] == "9"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Lost("no route"), "redis_unreachable"),
        (type("TimeoutError", (Lost,), {})("slow"), "redis_timeout"),
        (type("ReadOnlyError", (type("ResponseError", (Lost,), {}),), {})("replica"), "redis_refused"),
    ],
)
def test_redis_fails_and_comes_back(redis: type[Pretended], clock: Clock, error: Exception, reason: str) -> None:
    node = Node(clock, CallerRule("a", requests_per_minute=50, tokens_per_day=1000))
    node.limits.pump()
    running = [node.limits.admit("a") for _ in range(2)]
    node.calls()
    redis.gone = error
    assert left(node.limits.admit("a"))["requests-remaining"] == "47", "decided by the node, not refused"
    assert len(node.calls()) == 1
    assert node.limits.degraded == reason
    for _ in range(20):
        node.limits.admit("a").finish(1)
    running[0].finish(7)
    assert node.calls() == [], "no request goes near it any more"
    for _ in range(16):  # 4 s
        clock.now += 0.25
        node.limits.pump()
    assert node.calls() == [("ping",)] * 4, "once a second"
    assert [event["event"] for event in node.events] == ["caller_limits_degraded"], "said once"
    assert str(error) in str(node.events[0]["error"])
    redis.gone = None
    for _ in range(4):
        clock.now += 0.25
        node.limits.pump()
    assert node.limits.degraded == ""
    assert node.events[1:] == [{"event": "caller_limits_restored", "degraded_s": 5.0}]
    assert ("give back", "a", "", 27) in node.calls(), "the tokens of that time are brought to it, once"
    running[1].finish(3)
    assert node.calls() == [("give back", "a", "", 3)]


def test_what_is_owed_is_not_lost_when_it_fails_again(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", tokens_per_day=1000), CallerRule("b", tokens_per_day=1000))
    node.limits.admit("a").finish(5)
    node.limits.admit("b").finish(6)

    class FailsAtTokens(Pretended):
        def give_back(self, caller: Caller, lease: str, tokens: int) -> bool:
            super().give_back(caller, lease, tokens)
            raise Lost

    shared = node.limits._shared
    assert shared is not None
    shared._make = lambda client: FailsAtTokens(client, clock)  # type: ignore[assignment,return-value]
    node.limits.pump()
    assert node.limits.degraded == "redis_unreachable"
    shared._make = lambda client: Pretended(client, clock)  # type: ignore[assignment,return-value]
    node.client = "another client"
    node.calls()
    clock.now += 1
    node.limits.pump()
    assert node.limits.degraded == ""
    brought = sorted(call for call in node.calls() if call[0] == "give back")
    assert brought == [("give back", "a", "", 5), ("give back", "b", "", 6)]


def test_leases_of_the_time_alone_are_made_afterwards(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", concurrent_requests=2))
    running = [node.limits.admit("a"), node.limits.admit("a")]
    refused(node.limits)
    node.limits.pump()
    ((_, leases),) = [call for call in node.calls() if call[0] == "refresh"]
    assert len(leases) == 2, "of what was admitted, not of what was refused"
    for one in running:
        one.finish(0)
    assert [call[2] for call in node.calls()] == leases
    shared = node.limits._shared
    assert shared is not None
    assert shared._leases == {}


def test_the_end_gives_leases_back(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", concurrent_requests=5))
    node.limits.pump()
    late = [node.limits.admit("a") for _ in range(2)]
    node.calls()
    node.limits.close()
    assert [call[0] for call in node.calls()] == ["give back"] * 2
    for one in late:
        one.finish(0)


def test_in_line_too_long_the_node_decides(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", requests_per_minute=5))
    node.limits.pump()
    shared = node.limits._shared
    assert shared is not None
    node.calls()

    class Taken:
        def acquire(self, timeout: float) -> bool:
            assert timeout == 0.25
            return False

    shared._gate = Taken()  # type: ignore[assignment]
    assert admitted(node.limits, 9) == 5
    assert node.calls() == []
    assert node.limits.degraded == "", "a crowd is no failure"


def test_who_stood_in_line_meanwhile_does_not_try(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", requests_per_minute=5))
    node.limits.pump()
    shared = node.limits._shared
    assert shared is not None
    node.calls()

    class Slow:
        def acquire(self, timeout: float) -> bool:
            assert shared is not None
            shared._lost("redis_timeout", "the one before")
            return True

        def release(self) -> None:
            return

    shared._gate = Slow()  # type: ignore[assignment]
    node.limits.admit("a")
    assert node.calls() == []


def test_while_degraded_nobody_stands_in_line(redis: type[Pretended], clock: Clock) -> None:
    node = Node(clock, CallerRule("a", requests_per_minute=5))
    shared = node.limits._shared
    assert shared is not None

    class Line:
        def acquire(self, timeout: float) -> bool:
            raise AssertionError

    shared._gate = Line()  # type: ignore[assignment]
    node.limits.admit("a").finish(1)


def test_a_child_forgets_what_its_parent_has_under_way(
    redis: type[Pretended], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(clock, CallerRule("a", 0, 5, 100))
    node.limits.admit("a")
    node.limits.admit("a").finish(5)
    monkeypatch.setattr("os.getpid", lambda: -1)
    node.limits.pump()
    assert node.calls() == [("made for", "client"), ("ping",), ("refresh", [])]
