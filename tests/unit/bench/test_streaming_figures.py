"""What one round of streams amounts to, on streams made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.bench.figures import Figures
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import (
    AIMS,
    NOTE,
    ROWS,
    Plan,
    Round,
    added,
    faults,
    figures,
    floor_figures,
    floor_ratio,
    memory,
    notes,
    unmeasured,
    used,
    wrong,
)


def _stream(number: int = 1, events: int = 10) -> Streamed:
    """Begins after ``number`` ms, ends after ten times that; its events are ``number`` ms old."""
    return Streamed(
        200,
        100.0,
        100.0 + number / 100,
        {},
        first_s=100.0 + number / 2000,
        body_s=100.0 + number / 1000,
        delays_ns=[number * 1_000_000] * events,
        size_bytes=1000,
        stopped=True,
    )


WHOLE = Round(
    [_stream(number) for number in range(1, 101)],
    10,
    duration_s=2.0,
    client_s=0.1,
    cpu_s=0.05,
    pss_bytes=(100 * 2**20, 105 * 2**20),
    met=1000,
)
CUT = replace(_stream(), delays_ns=[1] * 9)
ENDLESS = replace(_stream(), stopped=False)
REFUSED = Streamed(503, 100.0, 100.0, {})
BROKEN = Streamed(0, 100.0, 100.0, {}, fault="the connection broke")


def test_the_figures_of_a_round() -> None:
    assert figures(WHOLE) == {
        "streams": 100,
        "events": 1000,
        "events_per_s": 500.0,
        "client_cpu_ms_per_event": 0.1,
        "error_pct": 0.0,
        **{f"ttfb_{name}_ms": pytest.approx(value) for name, value in (("p50", 50), ("p95", 95), ("p99", 99))},
        **{f"delay_{name}_ms": pytest.approx(value) for name, value in (("p50", 50), ("p95", 95), ("p99", 99))},
        **{f"full_{name}_ms": pytest.approx(value) for name, value in (("p50", 500), ("p95", 950), ("p99", 990))},
    }
    assert used(WHOLE) == {"cpu_ms_per_event": 0.05, "events_per_core_s": 20_000.0}
    assert memory(WHOLE) == {"pss_kib_per_stream": 51.2}
    assert faults(WHOLE, 100) == []


def test_only_known_figures_are_shown_and_aimed_at() -> None:
    known = {*figures(WHOLE), *used(WHOLE), *memory(WHOLE), *floor_ratio({}, {}), *floor_figures(1, 1, 1.0)}
    known |= {*added({}, {}, same_upstream=True), *figures(replace(WHOLE, others_pct=1.0))}
    assert {row.figure for row in ROWS} == known
    assert {aim.figure for aim in AIMS} <= known
    assert {aim.variant for aim in AIMS} == {"gateway", "burst"}
    assert len({row.words for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (CUT, "9 of 10 events"),
        (replace(CUT, delays_ns=[1] * 11), "11 of 10 events"),
        (ENDLESS, "no message_stop at its end"),
        (REFUSED, "status 503"),
        (BROKEN, "the connection broke"),
    ],
)
def test_a_stream_that_is_not_whole_is_an_error_and_no_sample(one: Streamed, text: str) -> None:
    assert wrong(one, 10) == text
    found = replace(WHOLE, samples=[*WHOLE.samples[:99], one])
    assert figures(found)["error_pct"] == 1.0
    assert figures(found)["ttfb_p99_ms"] == pytest.approx(99)
    assert faults(found, 100) == [f"1 of 100 streams failed: {text}"]
    spoilt = figures(found) | used(found)
    names = ("events_per_s", "client_cpu_ms_per_event", "cpu_ms_per_event", "events_per_core_s")
    assert [spoilt[name] for name in names] == [None] * 4


def test_the_events_of_a_broken_stream_have_no_delay_to_go_by() -> None:
    late = replace(CUT, delays_ns=[10**12] * 9)
    assert figures(replace(WHOLE, samples=[*WHOLE.samples[:50], late]))["delay_p99_ms"] == pytest.approx(50)


def test_the_commonest_failures_are_named() -> None:
    samples = [REFUSED, BROKEN, CUT, CUT, ENDLESS, ENDLESS, BROKEN]
    (text,) = faults(replace(WHOLE, samples=samples, met=None))
    assert text.startswith("7 of 7 streams failed: ")
    assert "503" not in text


def test_a_round_without_streams_has_no_figures() -> None:
    nothing = Round([], 10, duration_s=1.0, cpu_s=1.0, pss_bytes=(1, 2), met=0)
    found = figures(nothing) | used(nothing) | memory(nothing)
    assert {name for name, value in found.items() if value is not None} == {"streams", "events"}
    assert faults(nothing, 5) == ["0 samples of 5 streams", "0 of 0 streams failed: there were none"]
    assert len(unmeasured(found)) == len(found) - 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"met": 1001}, "1,000 events were read, but the simulator sent 1,001"),
        ({"calm": False}, "the servers were still busy when it began"),
        ({"samples": [replace(_stream(), delays_ns=[-1] * 10)], "met": 10}, "their clock is not this machine's"),
        ({"samples": [replace(_stream(), body_s=0.0)], "met": 10}, "without a first byte"),
    ],
)
def test_what_spoils_a_round(change: dict[str, object], text: str) -> None:
    found = faults(replace(WHOLE, **change))  # type: ignore[arg-type]
    assert len(found) == 1
    assert text in found[0]


def test_what_another_upstream_sent_is_not_compared() -> None:
    assert faults(replace(WHOLE, met=None), 100) == []


@pytest.mark.parametrize("change", [{"cpu_s": None}, {"cpu_s": 0.0}, {"samples": [REFUSED]}])
def test_no_cpu_time_is_no_figure(change: dict[str, object]) -> None:
    assert used(replace(WHOLE, **change)) == {"cpu_ms_per_event": None, "events_per_core_s": None}  # type: ignore[arg-type]


def test_memory_that_was_not_seen_is_no_figure() -> None:
    found = memory(replace(WHOLE, pss_bytes=None))
    assert found == {"pss_kib_per_stream": None}
    assert unmeasured(found) == ["pss_kib_per_stream could not be measured"]


@pytest.mark.parametrize(
    ("arguments", "cost"), [((100, 100, 0.02), 0.2), ((100, 99, 0.02), None), ((100, 100, None), None)]
)
def test_the_floor_costs_what_all_its_requests_took(
    arguments: tuple[int, int, float | None], cost: float | None
) -> None:
    assert floor_figures(*arguments) == {"cpu_ms_per_request": cost}


def test_ratios_are_of_one_round() -> None:
    assert floor_ratio({"cpu_ms_per_event": 0.05}, {"cpu_ms_per_request": 0.2}) == {"floor_ratio": 0.25}
    assert floor_ratio({"cpu_ms_per_event": 0.05}, {"cpu_ms_per_request": None}) == {"floor_ratio": None}


def test_differences_are_of_one_round_and_one_upstream() -> None:
    own: Figures = {"ttfb_p50_ms": 5.0, "ttfb_p99_ms": 9.0, "delay_p99_ms": 3.0}
    direct: Figures = {"ttfb_p50_ms": 1.0, "ttfb_p99_ms": 10.0, "delay_p99_ms": None}
    names = ("added_ttfb_p50_ms", "added_ttfb_p99_ms", "added_delay_p99_ms")
    assert added(own, direct, same_upstream=True) == dict(zip(names, (4.0, -1.0, None), strict=True))
    assert added(own, direct, same_upstream=False) == dict.fromkeys(names)


def test_a_plan_names_its_models_and_its_room() -> None:
    plan = Plan()
    assert (plan.model, plan.burst_model) == ("claude-sim-stream-100x20ms", "claude-sim-stream-50x0ms")
    assert plan.room == {}
    assert "200 streams x 100 events x 20 ms" in plan.title()
    assert plan.longest_s > 2
    assert Plan(streams=1000).room == {"WORKER_CONNECTIONS": 1050, "ANTHROPIC_CONCURRENCY": 1050}
    assert Plan(worker_class="gthread").room == {"THREADS": 250}
    assert Plan(streams=1020, worker_class="gthread").room["THREADS"] == 1024


@pytest.mark.parametrize(("taken", "said"), [([5.0, 10.0, 90.0], False), ([5.0, 11.0, 12.0], True)])
def test_a_machine_that_others_use_is_told(taken: list[float], said: bool) -> None:
    rounds = [figures(replace(WHOLE, others_pct=value)) for value in taken]
    assert ("Others took 11 % of this machine" in " ".join(notes(rounds))) is said
    assert notes([figures(WHOLE)]) == [NOTE]
