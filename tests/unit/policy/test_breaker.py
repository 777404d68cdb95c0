"""policy/breaker: closed, open, half-open with single probes (B35).

Pure.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.policy.breaker import Breaker, BreakerRules, BreakerState, Permit

RULES = BreakerRules(min_calls=4)
MIDDLE = 0.5  # the chance at which jitter adds nothing


def made(rules: BreakerRules = RULES, chance: float = MIDDLE) -> Breaker:
    return Breaker(rules, lambda: chance)


def call(breaker: Breaker, ok: bool, now: float) -> str:
    """One admitted call with its verdict, at one instant."""
    permit = breaker.admit(now)
    assert permit is not None
    return breaker.record(permit, ok, now)


def opened(rules: BreakerRules = RULES, chance: float = MIDDLE) -> Breaker:
    """A breaker that opened at 0."""
    breaker = made(rules, chance)
    assert [call(breaker, False, 0.0) for _ in range(rules.min_calls)][-1] == "opened"
    return breaker


def probe(breaker: Breaker, now: float) -> Permit:
    permit = breaker.admit(now)
    assert permit is not None
    assert permit.probe
    return permit


def test_b35_a_full_round() -> None:
    breaker = opened()
    assert (breaker.state(4.9), breaker.admit(4.9), breaker.retry_at) == ("open", None, 5.0)
    assert breaker.state(5.0) == "half_open"
    permit = probe(breaker, 5.0)
    assert (breaker.would_admit(5.0), breaker.admit(5.0)) == (False, None)
    assert breaker.record(permit, True, 6.0) == "closed"
    assert (breaker.state(6.0), breaker.retry_at) == ("closed", 0.0)


# --- closed


def test_closed_admits_all_with_one_shared_permit() -> None:
    breaker = made()
    permits = [breaker.admit(0.0) for _ in range(1000)]
    assert len({id(one) for one in permits}) == 1, "the closed path makes no object"
    assert permits[0] == Permit(False, 0)


@pytest.mark.parametrize(
    ("calls", "changed"),
    [
        ("FFF", ""),  # too few
        ("FFFF", "opened"),
        ("OOFF", "opened"),  # exactly the rate
        ("OOOFF", ""),  # just under it
        ("FFOO", ""),  # at the rate, but only a failure opens
        ("FFOOF", "opened"),
        ("OOOO", ""),
    ],
)
def test_the_rate_and_the_number_of_calls_both_count(calls: str, changed: str) -> None:
    breaker = made()
    assert [call(breaker, one == "O", 0.0) for one in calls][-1] == changed
    assert breaker.state(0.0) == ("open" if changed else "closed")


def test_old_calls_do_not_count() -> None:
    breaker = made()
    for _ in range(3):
        call(breaker, False, 0.0)
    assert call(breaker, False, 10.0) == ""
    assert call(breaker, False, 10.0) == ""
    assert call(breaker, False, 10.0) == ""
    assert call(breaker, False, 10.0) == "opened"


def test_a_call_without_a_verdict_does_not_count() -> None:
    breaker = made()
    for _ in range(100):
        permit = breaker.admit(0.0)
        assert permit is not None
        breaker.release(permit)
    assert [call(breaker, False, 0.0) for _ in range(4)] == ["", "", "", "opened"]


def test_broken_streams_open_it() -> None:
    """Each call is counted good at its head; when every stream then breaks, the rate is one, not a half."""
    breaker = made(BreakerRules(min_calls=4, failure_rate=0.9))
    for _ in range(4):
        call(breaker, True, 0.0)
    assert [breaker.fail(0.0) for _ in range(4)] == ["", "", "", "opened"]


def test_broken_streams_count_when_their_calls_have_left_the_window() -> None:
    breaker = made()
    for _ in range(4):
        call(breaker, True, 0.0)
    assert [breaker.fail(60.0) for _ in range(4)] == ["", "", "", "opened"]


@pytest.mark.parametrize("now", [1.0, 6.0])
def test_a_stream_that_breaks_while_not_closed_changes_nothing(now: float) -> None:
    breaker = opened()
    assert [breaker.fail(now) for _ in range(10)] == [""] * 10
    assert breaker.retry_at == 5.0
    breaker.force_closed()
    assert [call(breaker, False, now) for _ in range(4)] == ["", "", "", "opened"], "nothing was counted"


# --- open


@pytest.mark.parametrize(("chance", "retry_at"), [(0.0, 4.0), (0.5, 5.0), (0.999999, 6.0)])
def test_open_s_is_jittered_by_a_fifth(chance: float, retry_at: float) -> None:
    assert opened(chance=chance).retry_at == pytest.approx(retry_at, abs=1e-4)


def test_open_s_doubles_to_its_longest_and_starts_afresh_once_closed() -> None:
    breaker = opened()
    lengths = []
    for _ in range(6):
        now = breaker.retry_at
        assert breaker.record(probe(breaker, now), False, now) == "opened"
        lengths.append(breaker.retry_at - now)
    assert lengths == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    now = breaker.retry_at
    assert breaker.record(probe(breaker, now), True, now) == "closed"
    assert [call(breaker, False, now) for _ in range(4)][-1] == "opened"
    assert breaker.retry_at - now == 5.0


def test_refused_until_the_very_instant() -> None:
    breaker = opened()
    for now in (0.0, 2.5, 4.999999):
        assert (breaker.would_admit(now), breaker.admit(now), breaker.state(now)) == (False, None, "open")
    assert breaker.would_admit(5.0)


# --- half-open


def test_asking_takes_nothing() -> None:
    breaker = opened()
    assert [breaker.would_admit(5.0) for _ in range(3)] == [True] * 3
    probe(breaker, 5.0)


@pytest.mark.parametrize("later", [5.0, 50.0, 5e6])
def test_one_probe_at_a_time_however_long_it_takes(later: float) -> None:
    breaker = opened()
    permit = probe(breaker, 5.0)
    assert (breaker.admit(later), breaker.would_admit(later), breaker.state(later)) == (None, False, "half_open")
    assert breaker.record(permit, True, later) == "closed"


def test_a_released_probe_leaves_its_place_and_has_no_say() -> None:
    breaker = opened()
    gone = probe(breaker, 5.0)
    breaker.release(gone)
    assert breaker.record(gone, False, 5.0) == "", "a verdict after the release"
    following = probe(breaker, 5.0)
    breaker.release(gone)
    assert breaker.admit(5.0) is None, "released twice, it must not free the place of the next"
    assert breaker.record(gone, True, 5.0) == ""
    assert breaker.record(following, True, 5.0) == "closed"


def test_closing_forgets_the_window() -> None:
    breaker = opened()
    breaker.record(probe(breaker, 5.0), True, 5.0)
    assert [call(breaker, False, 5.0) for _ in range(4)] == ["", "", "", "opened"]


# --- late answers


@pytest.mark.parametrize("ok", [True, False])
def test_late_answers_of_old_calls_neither_close_nor_reopen(ok: bool) -> None:
    breaker = made()
    old = [breaker.admit(0.0) for _ in range(40)]
    assert all(old)
    for _ in range(4):
        call(breaker, False, 0.0)

    def answer(now: float) -> list[str]:
        ten = [old.pop() for _ in range(10)]
        return [breaker.record(one, ok, now) for one in ten if one]

    assert (answer(1.0), breaker.state(1.0), breaker.retry_at) == ([""] * 10, "open", 5.0)
    assert (answer(5.0), breaker.state(5.0), breaker.would_admit(5.0)) == ([""] * 10, "half_open", True)
    permit = probe(breaker, 5.0)
    assert (answer(5.0), breaker.admit(5.0)) == ([""] * 10, None)
    assert breaker.record(permit, True, 5.0) == "closed"
    assert (answer(5.0), breaker.state(5.0)) == ([""] * 10, "closed")


def test_a_verdict_given_twice_counts_once() -> None:
    breaker = opened()
    permit = probe(breaker, 5.0)
    assert breaker.record(permit, False, 5.0) == "opened"
    assert (breaker.record(permit, False, 5.0), breaker.record(permit, True, 5.0)) == ("", "")
    assert breaker.retry_at == 15.0


# --- what other workers learned


@pytest.mark.parametrize(
    ("until_at", "now", "retry_at"),
    [(9.0, 1.0, 9.0), (3.0, 1.0, 5.0), (5.0, 1.0, 5.0), (9.0, 6.0, 9.0), (5.5, 6.0, 5.0), (6.0, 6.0, 5.0)],
)
def test_force_open_keeps_the_later_instant_and_no_past_one(until_at: float, now: float, retry_at: float) -> None:
    breaker = opened()
    breaker.force_open(until_at, now)
    assert breaker.retry_at == retry_at


def test_force_open_opens_a_closed_one_and_a_past_instant_does_not() -> None:
    breaker = made()
    breaker.force_open(3.0, 3.0)
    assert breaker.state(3.0) == "closed"
    breaker.force_open(7.0, 3.0)
    assert (breaker.state(6.9), breaker.state(7.0), breaker.retry_at) == ("open", "half_open", 7.0)


def test_force_open_is_no_finding_of_its_own() -> None:
    breaker = made()
    for until_at in (7.0, 8.0, 9.0):
        breaker.force_open(until_at, 3.0)
    assert breaker.record(probe(breaker, 9.0), False, 9.0) == "opened"
    assert breaker.retry_at == 14.0, "open_s as at first"


def test_force_open_takes_a_probes_say() -> None:
    breaker = opened()
    permit = probe(breaker, 5.0)
    breaker.force_open(8.0, 6.0)
    assert breaker.record(permit, True, 7.0) == ""
    breaker.release(permit)
    assert (breaker.admit(7.9), breaker.retry_at) == (None, 8.0)
    assert breaker.record(probe(breaker, 8.0), True, 8.0) == "closed"


def test_force_closed() -> None:
    breaker = opened()
    permit = probe(breaker, 5.0)
    breaker.force_closed()
    assert (breaker.state(5.0), breaker.retry_at) == ("closed", 0.0)
    assert breaker.record(permit, False, 5.0) == ""
    assert [call(breaker, False, 5.0) for _ in range(4)] == ["", "", "", "opened"], "window forgotten"
    assert breaker.retry_at == 10.0, "open_s as at first"


def test_force_closed_keeps_what_a_closed_one_has_counted() -> None:
    breaker = made()
    permits = [breaker.admit(0.0) for _ in range(4)]
    breaker.force_closed()
    assert [breaker.record(one, False, 0.0) for one in permits if one] == ["", "", "", "opened"]


# --- any order of anything


class AnyOrder(RuleBasedStateMachine):
    """Anything may happen at any time; a plain model with every event kept says what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.chance = 0.5
        self.when = BreakerRules(min_calls=3, failure_rate=0.6)
        self.breaker = Breaker(self.when, lambda: self.chance)
        self.closed = True
        self.retry_at = 0.0
        self.next_open_s = 5.0
        self.events: list[tuple[int, int, int]] = []  # (bucket, calls, failures) since it closed
        self.out: list[Permit] = []  # given, and still with a say
        self.void: list[Permit] = []  # given before the last change, or given back

    @property
    def probes(self) -> list[Permit]:
        return [one for one in self.out if one.probe]

    def changed(self) -> None:
        self.void += self.out
        self.out = []

    def count(self, calls: int, failures: int) -> bool:
        """Whether the window now says: open. Buckets are a second wide, so their edges are exact."""
        self.events.append((int(self.now), calls, failures))
        recent = [one for one in self.events if one[0] > int(self.now) - 10]
        failed = sum(one[2] for one in recent)
        total = max(failed, sum(one[1] for one in recent))
        return bool(failures) and total >= self.when.min_calls and failed >= self.when.failure_rate * total

    def opens(self) -> None:
        low, high = 0.8 * self.next_open_s, 1.2 * self.next_open_s
        assert low - 1e-9 <= self.breaker.retry_at - self.now <= high + 1e-9
        self.closed, self.retry_at = False, self.breaker.retry_at
        self.next_open_s = min(60.0, 2 * self.next_open_s)
        self.changed()

    def closes(self) -> None:
        self.closed, self.retry_at, self.next_open_s = True, 0.0, 5.0
        self.events.clear()
        self.changed()

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0, 6.0, 11.0, 72.0]), chance=st.floats(0, 1, exclude_max=True))
    def time_passes(self, seconds: float, chance: float) -> None:
        self.now += seconds
        self.chance = chance

    @rule()
    def to_the_instant(self) -> None:
        if self.retry_at > self.now:
            self.now = self.retry_at

    @rule()
    def admit(self) -> None:
        expected = self.closed or (self.now >= self.retry_at and not self.probes)
        permit = self.breaker.admit(self.now)
        assert (permit is not None) == expected
        if permit is not None:
            assert permit.probe is not self.closed
            self.out.append(permit)
            assert len(self.probes) <= 1

    @precondition(lambda self: self.out)
    @rule(data=st.data(), ok=st.booleans())
    def record(self, data: st.DataObject, ok: bool) -> None:
        permit = data.draw(st.sampled_from(self.out))
        self.out.remove(permit)
        self.void += [permit] if permit.probe else []
        result = self.breaker.record(permit, ok, self.now)
        if permit.probe:
            assert result == ("closed" if ok else "opened")
            self.closes() if ok else self.opens()
        elif self.count(1, not ok):
            assert result == "opened"
            self.opens()
        else:
            assert result == ""

    @precondition(lambda self: self.void)
    @rule(data=st.data(), verdict=st.sampled_from(["ok", "failed", "released"]))
    def a_void_permit_changes_nothing(self, data: st.DataObject, verdict: str) -> None:
        permit = data.draw(st.sampled_from(self.void))
        if verdict == "released":
            self.breaker.release(permit)
        else:
            assert self.breaker.record(permit, verdict == "ok", self.now) == ""

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        permit = data.draw(st.sampled_from(self.out))
        self.out.remove(permit)
        self.void += [permit] if permit.probe else []
        self.breaker.release(permit)

    @rule()
    def fail(self) -> None:
        result = self.breaker.fail(self.now)
        if self.closed and self.count(0, 1):
            assert result == "opened"
            self.opens()
        else:
            assert result == ""

    @rule(seconds=st.sampled_from([-5.0, 0.0, 2.0, 100.0]))
    def force_open(self, seconds: float) -> None:
        until_at = self.now + seconds
        self.breaker.force_open(until_at, self.now)
        if until_at > self.now and until_at > self.retry_at:
            self.closed, self.retry_at = False, until_at
            self.changed()

    @rule()
    def force_closed(self) -> None:
        self.breaker.force_closed()
        if not self.closed:
            self.closes()

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        state: BreakerState = "closed"
        if not self.closed:
            state = "open" if self.now < self.retry_at else "half_open"
        assert (self.breaker.state(self.now), self.breaker.retry_at) == (state, self.retry_at)
        free = self.closed or (state == "half_open" and not self.probes)
        assert self.breaker.would_admit(self.now) == free, "a probe's place is lost, or given twice"


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
