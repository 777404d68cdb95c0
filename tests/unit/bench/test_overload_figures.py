"""The accounts of an overload, on outcomes made by hand."""

from __future__ import annotations

import json

import pytest

from app.bench.overload_figures import (
    BATCH,
    MESSAGE,
    WEB,
    Outcome,
    by_caller,
    caller_of,
    counted,
    faults,
    grown_mib,
    health,
    mib,
    overtaken,
    statuses,
)
from app.errors import QueueFull

DROPPED = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": MESSAGE}}).encode()


def _served(index: int, latency_s: float = 1.0) -> Outcome:
    return Outcome(index, 200, 0.0, latency_s)


def _refused(index: int, latency_s: float = 0.01) -> Outcome:
    return Outcome(index, 503, 0.0, latency_s, "1", DROPPED)


def test_the_message_is_the_gateways_own() -> None:
    assert QueueFull.default == MESSAGE


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (_refused(0), True),
        (Outcome(0, 503, 0.0, 0.0, "", DROPPED), False),
        (Outcome(0, 502, 0.0, 0.0, "1", DROPPED), False),
        (Outcome(0, 503, 0.0, 0.0, "1", DROPPED.replace(b"dropped", b"lost")), False),
        (Outcome(0, 503, 0.0, 0.0, "1", DROPPED[:20]), False),
        (Outcome(0, 503, 0.0, 0.0, "1", b'{"error": "no"}'), False),
        (Outcome(0, 503, 0.0, 0.0, "1", b"{}"), False),
    ],
)
def test_a_refusal_says_what_a_client_may_rely_on(outcome: Outcome, wanted: bool) -> None:
    assert outcome.is_refusal is wanted


def test_who_was_served_and_who_was_not() -> None:
    odd = Outcome(9, 502, 0.0, 0.5)
    outcomes = [_served(0, 1.0), _served(1, 3.0), _refused(2, 0.01), _refused(3, 0.02), odd]
    assert counted(outcomes) == {
        "served": 2,
        "refused": 2,
        "neither": 1,
        "local_p50_ms": 10.0,
        "local_p99_ms": 20.0,
        "served_p50_ms": 1000.0,
        "served_p95_ms": 3000.0,
    }
    assert statuses(outcomes) == {"statuses": {"200": 2, "502": 1, "503": 2}}
    assert health([_served(0, 0.005), odd]) == {
        "served": 1,
        "neither": 1,
        "local_p50_ms": 5.0,
        "local_p99_ms": 5.0,
    }


def test_without_refusals_there_is_no_time_of_them() -> None:
    assert counted([_served(0)])["local_p99_ms"] is None


def test_each_caller_has_its_median() -> None:
    callers = [caller_of(index) for index in range(10)]
    assert (callers.count(WEB), callers.count(BATCH)) == (2, 8)
    assert by_caller([_served(0, 0.1), _served(5, 0.2), _served(1, 3.0), _refused(2)]) == {
        "web_p50_ms": 100.0,
        "batch_p50_ms": 3000.0,
    }


@pytest.mark.parametrize(
    ("order", "number", "worst_s"),
    [
        ([0, 1, 2, 3, 4, 5, 6], 0, 0.0),
        ([1, 2, 3, 0, 5, 4, 6], 0, 0.0),  # another caller's may pass
        ([2, 1, 3, 4, 6], 1, 1.0),
        ([6, 1, 2, 3, 4], 4, 5.0),
        ([1, 6, 2, 1, 2], 1, 4.0),  # the second time counts no more
    ],
)
def test_overtaken_is_who_comes_behind_a_later_one_of_the_same_caller(
    order: list[int], number: int, worst_s: float
) -> None:
    sent_s = {index: float(index) for index in range(10)}
    assert overtaken(sent_s, order, 0.5) == (number, worst_s)


def test_little_is_tolerated_but_told() -> None:
    sent_s = {1: 0.0, 2: 0.25, 3: 0.75}
    assert overtaken(sent_s, [2, 1, 3], 0.25) == (0, 0.25)
    assert overtaken(sent_s, [3, 2, 1], 0.5) == (1, 0.75)


def test_memory_is_held_against_the_first_quarter() -> None:
    mib_ = 1024 * 1024
    assert grown_mib([10 * mib_, 20 * mib_, 21 * mib_, 20 * mib_, 19 * mib_, 23 * mib_, 20 * mib_, 20 * mib_]) == [
        0.0,
        0.0,
        1.0,
        0.0,
        -1.0,
        3.0,
        0.0,
        0.0,
    ]
    assert grown_mib([5 * mib_, 7 * mib_]) == [0.0, 2.0]
    assert grown_mib([5]) == [0.0]
    assert mib(3 * mib_ // 2) == 1.5


def test_what_is_missing() -> None:
    assert faults([_served(0), _refused(1)], 2, 1.0) == []
    assert faults([_served(0, 9.0)], 1, 1.0) == []
    silent = Outcome(1, 0, 0.0, 60.0)
    assert faults([_served(0), silent], 3, 1.0) == ["2 samples of 3 requests", "1 requests without an answer"]


@pytest.mark.parametrize(("latency_s", "number"), [(0.49, 0), (0.5, 1)])
def test_who_is_refused_when_slots_are_free_again_spoils_the_count(latency_s: float, number: int) -> None:
    late = Outcome(1, 503, 10.5, latency_s, "1", DROPPED)
    found = faults([Outcome(0, 200, 10.0, 1.0), late], 2, 1.0)
    assert len(found) == number
    assert all("1.0 s, when slots were free again" in text for text in found)
