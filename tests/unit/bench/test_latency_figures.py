"""What a round of the latency bench amounts to, and what spoils it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.bench.figures import Figures
from app.bench.latency_figures import (
    ROWS,
    Met,
    Plan,
    Round,
    Sample,
    Usage,
    compared,
    counts,
    faults,
    figures,
    order,
)

PLAN = Plan(requests=200, concurrency=4)
USAGE = Usage([5, 6], [5, 6], 0.5, 64 * 2**20)


def _samples(good: int, bad: int = 0, status: int = 500) -> list[Sample]:
    """Good ones take 1, 2, 3 … ms to the first byte and twice that in all; bad ones no time worth mentioning."""
    found = [Sample(200, number / 1000, 2 * number / 1000) for number in range(1, good + 1)]
    return found + [Sample(status, 1e-6, 1e-6)] * bad


WHOLE = Round(_samples(200), 2.0, 0.02, USAGE, Met(200, 1, 1))


def test_the_figures_of_a_round() -> None:
    assert figures(WHOLE) == {
        "requests": 200,
        "rps": 100.0,
        "client_cpu_ms_per_request": 0.1,
        "error_pct": 0.0,
        "cpu_ms_per_request": 2.5,
        "pss_mib": 64.0,
        "ttfb_p50_ms": 100.0,
        "ttfb_p95_ms": 190.0,
        "ttfb_p99_ms": 198.0,
        "full_p50_ms": 200.0,
        "full_p95_ms": 380.0,
        "full_p99_ms": 396.0,
        "handshakes": 1,
        "reuse_pct": 99.5,
    }
    assert faults(WHOLE, PLAN) == []


def test_only_known_figures_are_shown_and_aimed_at() -> None:
    known = {*figures(WHOLE), *compared({}, {}, {}, same_upstream=True)}
    assert {row.figure for row in ROWS} == known
    assert {aim.figure for aim in Plan().aims()} <= known


def test_failures_count_as_errors_and_not_as_latency_or_cost() -> None:
    one = replace(WHOLE, samples=_samples(198, 1) + _samples(0, 1, status=0))
    found = figures(one)
    assert found["error_pct"] == 1.0
    assert found["requests"] == 199  # one had no answer at all
    assert [found[name] for name in ("cpu_ms_per_request", "client_cpu_ms_per_request", "rps")] == [None] * 3
    assert found["ttfb_p50_ms"] == 99.0
    assert counts(one.samples) == {"0": 1, "200": 198, "500": 1}


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("met", [Met(200, 1, 1), None])
def test_one_failure_spoils_a_round_whoever_it_is_of(elsewhere: bool, met: Met | None) -> None:
    (fault,) = faults(replace(WHOLE, samples=_samples(199, 1), met=met), PLAN, elsewhere=elsewhere)
    assert fault == "199 of 200 requests succeeded (199 with 200, 1 with 500), which spoils all"


def test_samples_that_are_missing_are_a_fault() -> None:
    assert "199 samples of 200 requests" in faults(replace(WHOLE, samples=_samples(199)), PLAN)
    nothing = replace(WHOLE, samples=[])
    assert len(faults(nothing, PLAN)) == 2
    found = figures(nothing)
    assert [found[name] for name in ("requests", "error_pct", "cpu_ms_per_request", "full_p50_ms", "rps")] == [
        0,
        *[None] * 4,
    ]


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        (replace(USAGE, after=[5, 7]), "one died, or came"),
        (replace(USAGE, after=[5, 6, 7]), "one died, or came"),
        (replace(USAGE, cpu_s=0.0), "no CPU time"),
        (replace(USAGE, cpu_s=None), "no CPU time"),
        (replace(USAGE, pss_bytes=None), "memory could not be read"),
    ],
)
def test_accounts_that_do_not_add_up_are_a_fault_and_no_figure(usage: Usage, words: str) -> None:
    one = replace(WHOLE, usage=usage)
    (fault,) = faults(one, PLAN)
    assert words in fault
    found = figures(one)
    assert found["pss_mib" if "memory" in words else "cpu_ms_per_request"] is None


def test_without_known_processes_there_are_no_figures_of_them_and_no_fault() -> None:
    one = replace(WHOLE, usage=None)
    assert not {"cpu_ms_per_request", "pss_mib"} & figures(one).keys()
    assert faults(one, PLAN) == []


def test_servers_that_were_busy_spoil_a_round() -> None:
    assert faults(replace(WHOLE, calm=False), PLAN) == ["the servers were still busy when it began"]


@pytest.mark.parametrize("first_s", [-5.0, 0.0, 2.0])
def test_an_answer_has_a_first_byte_before_its_last(first_s: float) -> None:
    samples = [*_samples(199), Sample(200, first_s, 1.0)]
    assert "without a first byte" in faults(replace(WHOLE, samples=samples), PLAN)[0]


def test_answers_that_nobody_upstream_gave_are_a_fault() -> None:
    for met in (0, 199):
        one = replace(WHOLE, met=Met(met, 0, 0))
        assert f"200 successes, but the simulator met {met} requests" in faults(one, PLAN)[0]
        assert not one.met_all
    retried = replace(WHOLE, met=Met(203, 0, 0))
    assert faults(retried, PLAN) == []
    assert retried.met_all


def test_a_gateway_with_another_upstream_has_no_figures_of_ours() -> None:
    one = replace(WHOLE, met=Met(0, 0, 0))
    assert faults(one, PLAN, elsewhere=True) == []
    assert not one.met_all
    assert "handshakes" not in figures(one)
    partly = replace(WHOLE, met=Met(7, 0, 0))
    assert len(faults(partly, PLAN, elsewhere=True)) == 1


def test_the_floor_asks_nobody() -> None:
    one = replace(WHOLE, met=None)
    assert faults(one, PLAN) == []
    assert "reuse_pct" not in figures(one)


@pytest.mark.parametrize(("connections", "reuse"), [(0, 100.0), (50, 75.0), (200, 0.0), (900, 0.0)])
def test_reuse_is_what_was_not_a_new_connection(connections: int, reuse: float) -> None:
    assert figures(replace(WHOLE, met=Met(200, connections, 0)))["reuse_pct"] == reuse


OWN: Figures = {
    "cpu_ms_per_request": 0.6,
    "full_p50_ms": 5.5,
    "full_p95_ms": 8.0,
    "full_p99_ms": None,
}
DIRECT: Figures = {"full_p50_ms": 2.0, "full_p95_ms": 9.0, "full_p99_ms": 9.5}


def test_what_is_added_is_through_minus_direct() -> None:
    floor: Figures = {"cpu_ms_per_request": 0.25}
    assert compared(OWN, DIRECT, floor, same_upstream=True) == {
        "floor_ratio": 2.4,
        "added_p50_ms": 3.5,
        "added_p95_ms": -1.0,
        "added_p99_ms": None,
    }


def test_nothing_is_subtracted_from_what_went_elsewhere() -> None:
    found = compared(OWN, DIRECT, {"cpu_ms_per_request": None}, same_upstream=False)
    assert found == dict.fromkeys(["floor_ratio", "added_p50_ms", "added_p95_ms", "added_p99_ms"])


def test_turns_are_taken_there_and_back_again() -> None:
    assert order(["a", "b", "c"], 1) == ["a", "b", "c"]
    assert order(["a", "b", "c"], 2) == ["c", "b", "a"]


def test_a_plan_in_words() -> None:
    assert "6,000 requests, 32 at once, answers take 0 ms upstream; 1 gevent worker(s)" in Plan().title()
    assert "model m;" in Plan(model="m").title()
    assert (Plan(answer_ms=7).asked, Plan(answer_ms=7, model="m").asked) == ("claude-sim-json-7ms", "m")
    assert [Plan(requests=n, concurrency=c).warm_up for n, c in ((50, 4), (900, 4), (900, 100))] == [50, 200, 400]


def test_the_floors_bound_is_for_the_floors_workers() -> None:
    assert [aim.figure for aim in Plan().aims()] == ["floor_ratio", "error_pct"]
    assert [aim.figure for aim in Plan(worker_class="gthread").aims()] == ["error_pct"]


def test_a_crowd_is_told_what_it_waits_for() -> None:
    assert "--concurrency 1" in Plan().notes()[0]
    assert Plan(concurrency=1).notes() == Plan(answer_ms=50).notes() == ()
