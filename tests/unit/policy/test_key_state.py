"""policy/key_state: what is known of one key, and how each answer changes it (B33, B34).

Pure.
"""

from __future__ import annotations

import math

import pytest

from app.policy.breaker import Breaker, BreakerRules
from app.policy.key_state import ERROR_DECAY_S, TRAVEL_S, Change, ChangeKind, Key, KeyState, Lease
from app.wire.ratelimit import Remaining

RULES = BreakerRules(min_calls=3, open_s=5.0)


def made(patience_s: float = math.inf) -> KeyState:
    return KeyState(0, Key("k"), Breaker(RULES, lambda: 0.5), patience_s)


def cooling(until_at: float = 10.0) -> KeyState:
    """Cooled at 0.0, the exchange ended."""
    state = made()
    lease = state.lend(False, 0.0)
    assert state.cooled(lease, until_at, 0.0) == Change("cooling", "k", until_at)
    state.ended(lease)
    return state


def refused(state: KeyState, status: int, now: float, alone: bool = False) -> Change | None:
    lease = state.lend(alone, now)
    changed = state.benched(lease, status, now)
    state.ended(lease)
    return changed


def until(state: KeyState, now: float) -> float:
    """The first instant, to the second, at which it is usable."""
    return next(now + step for step in range(8000) if state.usable(now + step))


def test_a_fresh_key_is_healthy() -> None:
    state = made()
    assert (state.known(0.0), state.usable(0.0), state.in_flight, state.uses) == ("healthy", True, 0, 0)
    lease = state.lend(False, 0.0)
    assert (lease.index, lease.label, lease.probe, lease.alone) == (0, "k", False, False)
    assert (state.in_flight, state.uses) == (1, 1)
    assert state.answered(lease, True, 0.0) is None
    assert lease != state.lend(False, 0.0)


def test_b34_a_429_cools_until_its_time_then_one_try_decides() -> None:
    state = cooling(10.0)
    assert [state.usable(now) for now in (0.0, 9.99, 10.0)] == [False, False, True]
    assert [state.known(now) for now in (0.0, 9.99, 10.0)] == ["cooling", "cooling", "probation"]
    assert state.blocked(0.0) == (10.0, "cooling")
    probe = state.lend(False, 10.0)
    assert probe.probe
    assert not state.usable(11.0)
    assert state.blocked(11.0) == (math.inf, "probing")
    assert state.answered(probe, True, 12.0) == Change("restored", "k")
    assert state.known(12.0) == "healthy"
    assert not state.lend(False, 12.0).probe


def test_b34_a_probe_that_is_refused_cools_again() -> None:
    state = cooling(10.0)
    probe = state.lend(False, 10.0)
    assert state.cooled(probe, 30.0, 11.0) == Change("cooling", "k", 30.0)
    assert not state.usable(29.0)
    assert state.lend(False, 30.0).probe


@pytest.mark.parametrize("verdict", ["4xx", "failed", "none"])
def test_b34_a_probe_that_proves_nothing_makes_room_for_the_next(verdict: str) -> None:
    state = cooling(10.0)
    probe = state.lend(False, 10.0)
    if verdict == "4xx":
        assert state.answered(probe, False, 10.0) is None
    elif verdict == "failed":
        assert state.failed(probe, 10.0) is None
    else:
        state.ended(probe)
    assert state.known(10.0) == "probation"
    assert state.lend(False, 10.0).probe
    assert not state.usable(10.0)
    state.ended(probe)
    assert not state.usable(10.0), "the end of the first is none of the second"


@pytest.mark.parametrize(("second", "expected"), [(20.0, 20.0), (5.0, 10.0), (10.0, 10.0), (-5.0, 10.0)])
def test_b34_a_second_429_only_lengthens(second: float, expected: float) -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(2)]
    state.cooled(leases[0], 10.0, 0.0)
    assert (state.cooled(leases[1], second, 1.0) is not None) == (second > 10.0)
    assert until(state, 0.0) == expected


def test_a_429_that_asks_for_no_wait_leaves_probation() -> None:
    state = made()
    assert state.cooled(state.lend(False, 1.0), 1.0, 1.0) is None
    assert state.known(1.0) == "probation"


@pytest.mark.parametrize("answer_at", [5.0, 15.0])
def test_b34_what_was_sent_before_the_429_proves_nothing(answer_at: float) -> None:
    state = made()
    early, late = state.lend(False, 0.0), state.lend(False, 0.0)
    state.cooled(early, 10.0, 1.0)
    assert state.answered(late, True, answer_at) is None
    assert state.known(answer_at) == ("cooling" if answer_at < 10.0 else "probation")
    state.answered(state.lend(False, 20.0), True, 20.0)
    assert state.known(20.0) == "healthy"


def test_a_late_429_cools_a_key_that_was_well_again() -> None:
    state = made()
    early, late = state.lend(False, 0.0), state.lend(False, 0.0)
    state.cooled(early, 5.0, 1.0)
    state.answered(state.lend(False, 5.0), True, 5.0)
    assert state.cooled(late, 20.0, 6.0) == Change("cooling", "k", 20.0)
    assert state.known(6.0) == "cooling"


def test_a_patient_gateway_tries_again_while_a_probe_is_slow() -> None:
    state = made(patience_s=3.0)
    state.cooled(state.lend(False, 0.0), 10.0, 0.0)
    slow = state.lend(False, 10.0)
    assert state.blocked(11.0) == (13.0, "probing")
    assert [state.usable(now) for now in (12.9, 13.0)] == [False, True]
    second = state.lend(False, 13.0)
    state.ended(slow)
    assert not state.usable(14.0), "the second one's place is its own"
    assert state.answered(second, True, 14.0) == Change("restored", "k")


@pytest.mark.parametrize(
    ("status", "alone", "lengths"),
    [
        (401, False, [300, 600, 1200, 2400, 3600, 3600]),
        (403, False, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (401, True, [5, 10, 20, 40, 60, 60]),
    ],
)
def test_b34_a_bench_is_doubled_each_time(status: int, alone: bool, lengths: list[int]) -> None:
    state = made()
    now = 0.0
    for length in lengths:
        assert refused(state, status, now, alone) == Change("benched", "k", now + length)
        assert state.known(now) == "benched"
        assert state.blocked(now) == (now + length, "benched")
        assert until(state, now) == now + length
        now += length
        assert state.known(now) == "probation"
    state.answered(state.lend(alone, now), True, now)
    assert state.known(now) == "healthy"
    assert refused(state, status, now, alone) == Change("benched", "k", now + lengths[0])


def test_the_doubling_ends_somewhere() -> None:
    state = made()
    now = 0.0
    for _ in range(2000):
        refused(state, 401, now, alone=True)
        now += 60.0
    assert until(state, now - 60.0) == now


def test_b34_a_403_never_benches_a_key_without_a_substitute() -> None:
    state = made()
    assert refused(state, 403, 0.0, alone=True) is None
    assert state.known(0.0) == "healthy"


def test_b34_refusals_of_tries_that_were_out_together_are_one_bench() -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(20)]
    assert [state.benched(lease, 401, 1.0) is not None for lease in leases] == [True] + [False] * 19
    assert until(state, 1.0) == 301.0
    state.answered(state.lend(False, 301.0), True, 301.0)
    late = state.lend(False, 301.0)
    state.cooled(late, 310.0, 302.0)
    assert refused(state, 401, 310.0) == Change("benched", "k", 610.0), "what was sent after it counts again"


def test_a_401_of_a_try_sent_before_a_429_counts() -> None:
    state = made()
    first, second = state.lend(False, 0.0), state.lend(False, 0.0)
    state.cooled(first, 10.0, 0.0)
    assert state.benched(second, 401, 0.0) == Change("benched", "k", 300.0)
    assert (state.known(5.0), state.blocked(5.0)) == ("benched", (300.0, "benched"))
    assert state.known(300.0) == "probation"


def test_b34_a_key_is_exonerated_as_if_nothing_had_been() -> None:
    state = made()
    assert state.exonerate() is None
    leases = [state.lend(False, 0.0) for _ in range(2)]
    state.benched(leases[0], 403, 0.0)
    assert state.exonerate() == Change("restored", "k")
    assert state.known(0.0) == "healthy"
    assert state.exonerate() is None
    assert state.benched(leases[1], 403, 0.0) == Change("benched", "k", 60.0), "neither doubled nor taken for late"


def test_exoneration_lifts_no_other_bench_and_no_cooling() -> None:
    state = made()
    refused(state, 401, 0.0)
    assert state.exonerate() is None
    state = made()
    first, second = state.lend(False, 0.0), state.lend(False, 0.0)
    state.benched(first, 403, 0.0)
    state.cooled(second, 10.0, 0.0)
    assert state.exonerate() is not None
    assert until(state, 0.0) == 10.0
    assert state.lend(False, 10.0).probe
    state = made()
    refused(state, 403, 0.0)
    state.learn("benched", 500.0, 1.0)
    assert state.exonerate() is None
    assert until(state, 1.0) == 500.0


def test_b35_failures_open_its_breaker_and_one_probe_closes_it() -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(3)]
    assert [state.failed(lease, 0.0) for lease in leases] == [None, None, Change("open", "k", 5.0)]
    assert (state.known(0.0), state.usable(0.0), state.blocked(0.0)) == ("open", False, (5.0, "open"))
    assert state.known(5.0) == "probation"
    probe = state.lend(False, 5.0)
    assert probe.probe
    assert (state.usable(5.0), state.blocked(5.0)) == (False, (math.inf, "probing"))
    assert state.answered(probe, True, 6.0) == Change("closed", "k")
    assert state.known(6.0) == "healthy"


def test_b35_what_is_no_failure_is_no_verdict_for_the_breaker() -> None:
    state = made()
    for now in range(10):
        at = 1000.0 * now
        lease = state.lend(False, at)
        state.answered(lease, False, at)
        state.ended(lease)
        state.ended(state.lend(False, at))
        state.cooled(state.lend(False, at), at, at)
        refused(state, 401, at)
        state.answered(state.lend(False, at + 300.0), True, at + 300.0)
    assert state.errors(10_000.0) == 0.0
    assert state.known(10_000.0) == "healthy"


@pytest.mark.parametrize("how", ["4xx", "cooled", "benched", "ended"])
def test_b35_the_breakers_probe_gives_its_place_back(how: str) -> None:
    state = made()
    for _ in range(3):
        state.failed(state.lend(True, 0.0), 0.0)
    probe = state.lend(True, 5.0)
    if how == "4xx":
        state.answered(probe, False, 5.0)
    elif how == "cooled":
        state.cooled(probe, 5.0, 5.0)
    elif how == "benched":
        state.benched(probe, 403, 5.0)
    else:
        state.ended(probe)
    assert state.usable(5.0)


def test_b35_a_stream_that_breaks_counts_once_and_after_the_end_not_at_all() -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(3)]
    for lease in leases:
        state.answered(lease, True, 0.0)
    assert state.failed(leases[0], 0.0) is None
    assert state.failed(leases[0], 0.0) is None, "a second failure of one try is none"
    assert state.failed(leases[1], 0.0) == Change("open", "k", 5.0)
    state = made()
    for _ in range(6):
        lease = state.lend(False, 0.0)
        state.ended(lease)
        assert state.failed(lease, 0.0) is None
    assert state.known(0.0) == "healthy"


def test_the_longest_of_bench_cooling_and_breaker_is_in_the_way() -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(5)]
    for lease in leases[:3]:
        state.failed(lease, 0.0)
    state.cooled(leases[3], 3.0, 0.0)
    assert (state.known(0.0), state.blocked(0.0)) == ("cooling", (5.0, "open"))
    state.cooled(leases[4], 30.0, 0.0)
    assert state.blocked(0.0) == (30.0, "cooling")


def test_it_ends_once_and_with_or_without_a_verdict() -> None:
    state = made()
    leases = [state.lend(False, 0.0) for _ in range(3)]
    state.answered(leases[0], True, 0.0)
    for lease in leases * 2:
        state.ended(lease)
    assert state.in_flight == 0
    assert state.uses == 3


@pytest.mark.parametrize("kind", ["cooling", "benched", "open"])
def test_what_another_worker_found_keeps_the_key_out(kind: ChangeKind) -> None:
    state = made()
    mine = state.lend(False, 0.0)
    state.learn(kind, 20.0, 1.0)
    assert (state.known(1.0), until(state, 1.0)) == (kind, 20.0)
    state.learn(kind, 15.0, 2.0)
    assert until(state, 2.0) == 20.0, "never shorter"
    assert state.answered(mine, True, 3.0) is None, "sent before it"
    probe = state.lend(False, 20.0)
    assert probe.probe
    assert not state.usable(20.0)
    assert state.answered(probe, True, 20.0) == Change("closed" if kind == "open" else "restored", "k")


@pytest.mark.parametrize("kind", ["cooling", "benched", "open"])
def test_stale_news_changes_nothing(kind: ChangeKind) -> None:
    state = made()
    state.learn(kind, 20.0, 20.0)
    assert state.known(20.0) == "healthy"


@pytest.mark.parametrize("kind", ["cooling", "benched", "open"])
def test_restored_elsewhere_takes_it_back(kind: ChangeKind) -> None:
    state = made()
    state.learn(kind, 20.0, 1.0)
    state.learn("restored", 0.0, 1.0 + TRAVEL_S)
    assert state.known(3.0) == "healthy"
    state.learn("open", 20.0, 3.0)
    state.learn("closed", 0.0, 3.0)
    assert state.known(3.0) == "healthy"


def test_restored_elsewhere_takes_nothing_back_that_was_refused_a_moment_ago() -> None:
    state = cooling(10.0)
    state.learn("restored", 0.0, 0.5)
    assert until(state, 0.0) == 10.0
    state.learn("restored", 0.0, TRAVEL_S)
    assert state.known(TRAVEL_S) == "healthy"
    state = made()
    refused(state, 401, 0.0)
    state.learn("restored", 0.0, 0.5)
    assert until(state, 0.0) == 300.0
    state.learn("restored", 0.0, TRAVEL_S)
    assert refused(state, 401, 10.0) == Change("benched", "k", 310.0), "not doubled: it was well between"


def test_an_exoneration_elsewhere_arrives_right_behind_its_bench() -> None:
    state = made()
    state.learn("benched", 60.0, 0.0)
    state.learn("restored", 0.0, 0.1)
    assert state.known(0.1) == "healthy"


def test_b34_errors_rise_fall_and_fade() -> None:
    state = made()
    for _ in range(2):
        state.failed(state.lend(False, 0.0), 0.0)
    risen = state.errors(0.0)
    assert 0.3 < risen < 0.4
    assert state.errors(ERROR_DECAY_S) == pytest.approx(risen / math.e)
    state.answered(state.lend(False, 0.0), True, 0.0)
    assert state.errors(0.0) == pytest.approx(risen * 0.8)
    assert 0.0 < state.errors(300.0) < 0.001
    assert state.errors(300.0) == 0.0
    state.failed(state.lend(False, 300.0), 300.0)
    state.failed(state.lend(False, 600.0), 600.0)
    assert state.errors(600.0) == pytest.approx(0.2, abs=0.001), "what was is faded before it counts again"


def test_b34_short_before_the_reset_only() -> None:
    state = made()
    assert (state.shortage(0.0), state.share) == (0.0, None)
    state.limits(Remaining(0.05, 60.0, None), 0.0)
    assert state.shortage(0.0) == pytest.approx(0.5)
    assert state.shortage(59.9) == pytest.approx(0.5)
    assert state.shortage(60.0) == 0.0
    state.limits(Remaining(0.1, 60.0, None), 0.0)
    assert (state.shortage(0.0), state.share) == (0.0, 0.1)
    state.limits(Remaining(0.0, 60.0, 60.0), 0.0)
    assert state.shortage(0.0) == 1.0


def test_b34_what_was_lent_since_counts_against_what_was_left() -> None:
    state = made()
    leases: list[Lease] = []
    for left in (0.5, 0.4, 0.3, 0.2):
        leases.append(state.lend(False, 0.0))
        state.limits(Remaining(left, 60.0, None), 0.0)
    assert state.shortage(0.0) == 0.0
    for _ in range(2):
        leases.append(state.lend(False, 0.0))
    assert 0.0 < state.shortage(0.0) < 1.0
    for _ in range(10):
        leases.append(state.lend(False, 0.0))
    assert state.shortage(0.0) == 1.0
    state.limits(Remaining(0.9, 60.0, None), 0.0)
    assert state.shortage(0.0) == 0.0, "a reset is no negative price"
    assert state._share_per_use > 0.0


def test_b34_a_reading_after_many_uses_is_the_price_of_all_of_them() -> None:
    state = made()
    state.lend(False, 0.0)
    state.limits(Remaining(0.9, 60.0, None), 0.0)
    for _ in range(50):
        state.lend(False, 0.0)
    state.limits(Remaining(0.4, 60.0, None), 0.0)
    for _ in range(30):
        state.lend(False, 0.0)
    assert state.shortage(0.0) == 0.0, "thirty uses at a hundredth each, as was paid for the fifty, leave a tenth"
