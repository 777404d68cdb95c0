"""observe/windows: what is in a window and what is not, over several processes, and the trend (B44).

Pure.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observe.cells import LEVELS, Cell, Rings, Series, bins
from app.observe.windows import Window, summary, trend, window

SECONDS, MINUTE, _, HOUR = LEVELS
START = 720_000.0


def cell(ms: float = 1.0, count: int = 1, failed: int = 0, route: str = "messages") -> Cell:
    made = Cell()
    made.exchanges[route] = Series(count, {"upstream_5xx": failed} if failed else {}, bins([ms] * count))
    return made


def rings(*at: tuple[float, Cell]) -> Rings:
    made = Rings()
    for now, one in at:
        made.add(one, now)
    return made


def of(level: Any, found: Rings, now: float, back: int = 0, born_at: float = 0.0) -> Window:
    return window(level, [found.cells], now, born_at, back)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_b44_a_window_ends_now_and_is_as_long_as_it_says(level: Any) -> None:
    found = rings((START, cell()))
    for step, now in enumerate(range(int(START), int(START) + 2 * level.window_s, level.cell_s)):
        within = step < level.cells // 2
        assert of(level, found, now).total.requests == int(within)
        assert of(level, found, now, back=1).total.requests == int(not within)
    gone = START + 2 * level.window_s
    assert of(level, found, gone).total.requests == of(level, found, gone, 1).total.requests == 0
    late = of(level, found, START + level.cell_s - 0.01)
    assert level.window_s - level.cell_s < late.span_s <= level.window_s


@given(st.lists(st.floats(0, 119.9), max_size=50), st.floats(120, 140))
def test_b44_what_is_counted_is_what_ended_within(instants: list[float], now_s: float) -> None:
    found = rings(*((START + one, cell()) for one in sorted(instants)))
    current = of(SECONDS, found, START + now_s)
    begin = int(now_s) - 9
    assert current.total.requests == sum(begin <= one <= now_s for one in instants)


def test_b44_all_processes_count_together() -> None:
    one, two = rings((START, cell(1.0, 30, 3))), rings((START, cell(100.0, 10, 1, "models")))
    found = window(MINUTE, [one.cells, two.cells], START + 1, START - 3600)
    assert (found.total.requests, found.error_rate) == (40, 0.1)
    assert found.p50_ms == pytest.approx(1.0, rel=0.01)
    assert found.p99_ms == pytest.approx(100.0, rel=0.01)
    assert one.cells[MINUTE.slot(MINUTE.tick(START))][1].exchanges["messages"].requests == 30


def test_b44_rates_are_over_what_was_lived_through() -> None:
    found = rings((START + 4, cell(count=10)))
    assert of(MINUTE, found, START + 5, born_at=START).per_second == 2.0
    assert of(MINUTE, found, START + 4.1, born_at=START + 4).per_second == 10.0
    assert of(MINUTE, found, START + 5, back=1, born_at=START).span_s == 0.0
    empty = of(MINUTE, Rings(), START + 5, born_at=START)
    assert (empty.per_second, empty.error_rate, empty.p95_ms) == (0.0, None, None)


def both(now: Cell, before: Cell) -> dict[str, Any]:
    found = rings((START, before), (START + 60, now))
    return trend(of(MINUTE, found, START + 60), of(MINUTE, found, START + 60, 1))


@pytest.mark.parametrize(
    ("now", "before", "word"),
    [
        (cell(10, 20), cell(10, 20), "steady"),
        (cell(12, 20), cell(10, 20), "steady"),
        (cell(13, 20), cell(10, 20), "degrading"),
        (cell(0.6, 20), cell(0.3, 20), "steady"),
        (cell(7, 20), cell(10, 20), "improving"),
        (cell(0.3, 20), cell(0.6, 20), "steady"),
        (cell(10, 100, 1), cell(10, 100), "degrading"),
        (cell(10, 1000, 9), cell(10, 1000), "steady"),
        (cell(10, 100), cell(10, 100, 1), "improving"),
        (cell(7, 100, 1), cell(10, 100), "degrading"),
        (cell(100, 19), cell(10, 20), "unknown"),
        (cell(100, 20), cell(10, 19), "unknown"),
    ],
)
def test_b44_the_word_for_a_trend(now: Cell, before: Cell, word: str) -> None:
    assert both(now, before)["word"] == word


def test_b44_the_figures_of_a_trend() -> None:
    found = both(cell(20, 40, 4), cell(10, 20, 1))
    assert found["p95_ratio"] == pytest.approx(2.0, rel=0.03)
    assert found["error_rate_change"] == 0.05
    assert found["requests_per_second_ratio"] == pytest.approx(2 * 60 / 55, rel=0.001)
    assert trend(of(MINUTE, Rings(), START), of(MINUTE, Rings(), START, 1)) == {
        "word": "unknown",
        "p95_ratio": None,
        "error_rate_change": None,
        "requests_per_second_ratio": None,
    }


def test_b44_the_summary_is_json_and_says_it_by_endpoint_and_type() -> None:
    found = rings((START, cell(10, 30, 3)), (START, cell(20, 10, 0, "models")))
    found.cells[HOUR.slot(HOUR.tick(START))][1].tracked["report"] = Series(2, {"ValueError": 1}, bins([5.0, 5.0]))
    told = json.loads(json.dumps(summary([found.cells], START + 0.5, START - 9)))
    assert list(told) == ["10s", "1m", "5m", "1h"]
    hour = told["1h"]
    assert (hour["requests"], hour["errors"], hour["error_rate"], hour["span_s"]) == (40, 3, 0.075, 9.5)
    assert hour["by_type"] == {"upstream_5xx": {"errors": 3, "error_rate": 0.075}}
    assert list(hour["by_endpoint"]) == ["messages", "models"]
    assert hour["by_endpoint"]["messages"]["error_rate"] == 0.1
    assert hour["by_endpoint"]["models"]["latency_ms"]["p95"] == pytest.approx(20, rel=0.01)
    assert hour["tracked"]["report"]["latency_ms"]["p50"] == pytest.approx(5, rel=0.01)
    assert hour["tracked"]["report"]["errors"] == 1
    assert told["10s"]["tracked"] == {}
