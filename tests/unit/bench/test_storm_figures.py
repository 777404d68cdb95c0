"""The storm's accounts, on records made by hand."""

from __future__ import annotations

import pytest

from app.bench.storm_figures import (
    DENIED,
    HEALTHY,
    KEYS,
    LIMITED,
    OVERLOADED,
    Sample,
    Script,
    attempts_after_denial,
    attempts_while_cooling,
    details,
    faults,
    figures,
    sdk_wait_s,
)
from app.simulator.keys import Programs
from app.simulator.scenarios import parse

SCRIPT = Script(requests=4, concurrency=2, answer_ms=100, retry_after_s=2, outage_s=3.0)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], 0),
        ([(0.0, 429)], 0),
        ([(0.0, 429), (0.05, 429)], 0),  # nobody can have known
        ([(0.0, 429), (0.051, 200)], 1),
        ([(0.0, 429), (1.999, 200), (2.0, 200)], 1),
        ([(0.0, 429), (0.03, 429), (2.01, 200)], 1),  # the later 429 asked for longer
        ([(0.0, 429), (1.0, 429), (2.5, 429), (4.6, 200)], 2),  # each 429 starts anew
        ([(0.0, 429), (1.0, 429), (1.02, 200)], 2),  # a fresh one does not hide what is known
        ([(0.0, 200), (1.0, 529), (1.2, 200)], 0),
        ([(0.0, 429), (1.99, 429), (2.01, 200)], 1),  # the second is not known yet, the first is over
    ],
)
def test_attempts_to_a_key_known_to_be_cooling(rows: list[tuple[float, int]], wanted: int) -> None:
    assert attempts_while_cooling(rows, 2.0) == wanted


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], 0),
        ([(0.0, 200), (9.0, 200)], 0),
        ([(1.0, 401), (1.05, 401), (1.06, 401), (2.0, 401)], 2),
    ],
)
def test_attempts_to_a_denied_key(rows: list[tuple[float, int]], wanted: int) -> None:
    assert attempts_after_denial(rows) == wanted


@pytest.mark.parametrize(
    ("status", "retry_after", "made", "rnd", "wanted"),
    [
        (200, "", 1, 0.0, None),
        (401, "", 1, 0.0, None),
        (404, "5", 1, 0.0, None),
        (429, "2", 1, 0.9, 2.0),
        (429, "0.5", 2, 0.9, 0.5),
        (429, "2", 3, 0.0, None),
        (429, "61", 1, 0.0, 0.5),
        (429, "0", 1, 0.0, 0.5),
        (529, "", 1, 0.0, 0.5),
        (529, "", 2, 0.0, 1.0),
        (500, "Wed, 21 Oct 2026 07:28:00 GMT", 1, 0.5, 0.4375),
        (0, "", 1, 0.0, 0.5),
        (408, "", 1, 0.0, 0.5),
        (409, "", 1, 0.0, 0.5),
    ],
)
def test_an_sdk_waits(status: int, retry_after: str, made: int, rnd: float, wanted: float | None) -> None:
    assert sdk_wait_s(status, retry_after, made, rnd) == wanted


@pytest.mark.parametrize(
    ("requests", "concurrency", "answer_ms", "outage_s", "begin_s"),
    [(1000, 100, 800, 3.0, 2.5), (10, 100, 800, 0.4, 0.2), (10, 10, 100, 3.0, 0.0)],
)
def test_the_outage_is_in_the_middle(
    requests: int, concurrency: int, answer_ms: int, outage_s: float, begin_s: float
) -> None:
    script = Script(requests, concurrency, answer_ms, 2, outage_s)
    assert script.outage == pytest.approx((begin_s, begin_s + outage_s))


def test_the_script_is_what_the_simulator_plays() -> None:
    programs = Programs()
    programs.load(SCRIPT.programs(), 0.0)
    statuses = {
        key: [answer.status if (answer := programs.meet(key, t_s, 0.0)[1]) else 200 for t_s in (0.0, 1.0, 3.1)]
        for key in KEYS
    }
    assert statuses == {
        LIMITED: [429, 429, 429],
        OVERLOADED: [529, 529, 200],
        DENIED: [401, 401, 401],
        HEALTHY: [200, 200, 200],
    }


def test_answers_take_their_mean_time_on_average() -> None:
    delays = [parse(SCRIPT.model(index)).delay_ms for index in range(1000)]
    assert {min(delays), max(delays)} == {75, 120}
    assert sum(delays) == 1000 * SCRIPT.answer_ms


SAMPLES = [Sample(200, 0.2), Sample(200, 0.1, 2), Sample(429, 9.0), Sample(401, 0.001)]
RECORD = {
    LIMITED: [(0.0, 429), (1.0, 429)],
    OVERLOADED: [(0.0, 529)],
    DENIED: [(0.0, 401), (1.0, 401)],
    HEALTHY: [(0.1, 200), (0.2, 200)],
}


def test_the_figures_of_a_round() -> None:
    assert figures(SAMPLES, RECORD, SCRIPT) == {
        "success_pct": 50.0,
        "attempts_per_request": 1.75,
        "p50_ms": 100.0,
        "p95_ms": 200.0,
        "attempts_while_cooling": 1,
        "attempts_after_denial": 1,
        "met_529": 1,
        "attempts": 7,
        "failed": 2,
    }
    assert details(SAMPLES, RECORD) == {
        "statuses": {"200": 2, "401": 1, "429": 1},
        "attempts_by_key": {
            LIMITED: {"429": 2},
            OVERLOADED: {"529": 1},
            DENIED: {"401": 2},
            HEALTHY: {"200": 2},
        },
    }


def test_a_round_in_which_nothing_was_measured_has_no_figures() -> None:
    found = figures([], {}, SCRIPT)
    assert [found[name] for name in ("success_pct", "attempts_per_request", "p50_ms", "p95_ms")] == [None] * 4
    assert faults([], {}, SCRIPT, direct=True) == [
        "0 samples of 4 requests",
        "no request succeeded, so there is no latency",
    ]


def test_both_ends_must_have_counted_alike() -> None:
    assert faults(SAMPLES, RECORD, SCRIPT, direct=False) == []
    assert faults(SAMPLES, RECORD, SCRIPT, direct=True) == ["the client sent 5 attempts, the simulator met 7"]
    fewer = {**RECORD, HEALTHY: [(0.1, 200)], OVERLOADED: []}
    assert faults(SAMPLES, fewer, SCRIPT, direct=True) == []
    assert faults(SAMPLES, fewer, SCRIPT, direct=False) == ["2 successes, but the simulator gave 1"]


def test_an_attempt_with_another_key_is_a_fault() -> None:
    found = faults(SAMPLES, {**RECORD, "": [(0.0, 200)]}, SCRIPT, direct=False)
    assert found == ["attempts with keys that are not the storm's: ['']"]
