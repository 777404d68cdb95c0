"""What much at once amounts to, on samples made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.bench.concurrent_figures import (
    ROWS,
    Plan,
    idle_faults,
    idle_figures,
    load_figures,
    others,
    ratios,
    slow_faults,
    slow_figures,
)
from app.bench.figures import Figures
from app.bench.latency_figures import Sample
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Round

PLAN = Plan(streams=10, slow_requests=100, answer_ms=500)
STREAM = Streamed(200, 1.0, 7.0, {}, first_s=1.1, body_s=1.1, delays_ns=[5], size_bytes=9, stopped=True)
IDLE = Round([STREAM] * 10, 1, duration_s=6.0, pss_bytes=(50 * 2**20, 51 * 2**20), met=10)
SLOW = [Sample(200, 0.5 + number / 1000, 0.5 + number / 1000) for number in range(1, 101)]


def test_idle_streams_are_weighed() -> None:
    assert idle_figures(IDLE, 10) == {
        "streams": 10,
        "pss_mib_over_idle": 1.0,
        "kib_per_stream": 102.4,
        "error_pct": 0.0,
    }
    assert idle_faults(IDLE, PLAN, 10) == []


def test_idle_streams_that_were_not_all_open_say_nothing() -> None:
    assert idle_faults(IDLE, PLAN, 9) == ["9 of 10 streams were open at once"]
    (text,) = idle_faults(replace(IDLE, samples=[STREAM] * 9 + [replace(STREAM, stopped=False)]), PLAN, 10)
    assert "1 of 10 streams failed" in text
    found = idle_figures(replace(IDLE, pss_bytes=None), 10)
    assert (found["pss_mib_over_idle"], found["kib_per_stream"]) == (None, None)
    nothing = idle_figures(replace(IDLE, samples=[]), 0)
    assert (nothing["kib_per_stream"], nothing["error_pct"]) == (None, None)


def test_slow_requests_are_counted() -> None:
    assert slow_figures(SLOW, 1.5, 0.05, 99) == {
        "requests": 100,
        "most_upstream": 99,
        "duration_s": 1.5,
        "full_p50_ms": 550.0,
        "full_p99_ms": 599.0,
        "cpu_ms_per_request": 0.5,
        "error_pct": 0.0,
    }
    assert slow_faults(SLOW, PLAN, 100, 95) == []


def test_a_failed_slow_request_is_a_fault_and_no_sample() -> None:
    samples = [*SLOW[:98], Sample(503, 1e-6, 1e-6), Sample(0, 1e-6, 1e-6)]
    found = slow_figures(samples, 1.5, 0.05, 98)
    assert (found["error_pct"], found["full_p99_ms"], found["cpu_ms_per_request"]) == (2.0, 598.0, None)
    assert slow_faults(samples, PLAN, 98, 98) == ["2 of 100 requests failed: 1 with 0, 1 with 503"]


@pytest.mark.parametrize(
    ("samples", "met", "text"),
    [
        (SLOW[:99], 100, "99 samples of 100 requests"),
        (SLOW, 99, "100 successes, but the simulator met 99 requests"),
        ([*SLOW[:99], Sample(200, 0.1, 0.474)], 100, "1 answers came before the upstream could have given them"),
    ],
)
def test_what_spoils_a_round_of_slow_requests(samples: list[Sample], met: int, text: str) -> None:
    assert slow_faults(samples, PLAN, met, 100) == [text]


def test_no_requests_are_no_figures() -> None:
    found = slow_figures([], 0.0, 1.0, 0)
    assert {name for name, value in found.items() if value is not None} == {
        "requests",
        "most_upstream",
        "duration_s",
    }
    assert slow_faults([], PLAN, 0, 0) == [
        "0 samples of 100 requests",
        "0 of 0 requests failed: there were none",
        "0 of 100 requests were upstream at once",
    ]


def test_what_was_not_upstream_at_once_is_not_called_so() -> None:
    assert slow_faults(SLOW, PLAN, 100, 94) == ["94 of 100 requests were upstream at once"]


def test_two_workers_are_held_against_one() -> None:
    one: Figures = {"rps": 1000.0, "cpu_ms_per_request": 0.5}
    two: Figures = {"rps": 1900.0, "cpu_ms_per_request": 0.55}
    assert ratios(one, two) == {"rps_ratio": 1.9, "cpu_ratio": 1.1}
    assert ratios({"rps": None}, two) == {"rps_ratio": None, "cpu_ratio": None}


@pytest.mark.parametrize(("cores", "figure", "notes"), [(2, "cpu_ratio", 1), (4, "rps_ratio", 0)])
def test_without_cores_for_two_workers_their_cpu_is_what_counts(cores: int, figure: str, notes: int) -> None:
    aims = PLAN.aims(cores)
    assert [aim.figure for aim in aims if aim.variant == "two_workers"] == [figure]
    assert len(PLAN.notes(cores, [{}])) == notes


@pytest.mark.parametrize(("taken", "said"), [([5.0, 10.0, 90.0], False), ([5.0, 11.0, 12.0], True)])
def test_a_machine_that_others_use_is_told(taken: list[float], said: bool) -> None:
    notes = PLAN.notes(4, [others(value) for value in taken])
    assert ("Others took 11 % of this machine" in " ".join(notes)) is said
    assert others(None) == {}


def test_only_known_figures_are_shown_and_aimed_at() -> None:
    known = {*idle_figures(IDLE, 10), *slow_figures(SLOW, 1, 1, 1), *load_figures({}), *ratios({}, {})}
    known |= set(idle_figures(replace(IDLE, others_pct=12.34), 10))
    known |= {"first_answer_s", "start_cpu_s", "rss_mib"}
    assert {row.figure for row in ROWS} == known
    assert {aim.figure for cores in (2, 4) for aim in PLAN.aims(cores)} <= known
    assert len({row.words for row in ROWS}) == len(ROWS)


def test_memory_is_allowed_by_the_thousand_streams() -> None:
    bounds = [Plan(streams=streams).aims(2)[0].bound for streams in (10, 1000, 2000)]
    assert bounds == [64.0, 64.0, 128.0]


def test_a_plan_names_what_it_needs() -> None:
    assert PLAN.slow_room == {}
    assert Plan().slow_room == {"WORKER_CONNECTIONS": 2050, "ANTHROPIC_CONCURRENCY": 2050}
    assert Plan().idle.room == {"WORKER_CONNECTIONS": 1050, "ANTHROPIC_CONCURRENCY": 1050}
    assert Plan().idle.model == "claude-sim-stream-1x3000ms"
    assert (Plan().short.requests, Plan().short.concurrency) == (4000, 32)
    assert "10 idle streams; 100 requests at once that take 500 ms" in PLAN.title()
