"""observe/alerts: what is told, and when, as a script of values (B44).

Pure.
"""

from __future__ import annotations

import json

import pytest

from app.observe.alerts import Rule, State, alert, plain, restored, rules, step

CEILING = Rule("error_rate", 0.05, "share of exchanges that failed")
FLOOR = Rule("requests_per_second_min", 1.0, "requests per second", floor=True)


def told(rule: Rule, *values: float | None) -> str:
    """One letter per evaluation: ok, pending, firing; a capital where something is told."""
    state, found = State(), ""
    for at, value in enumerate(values, 1):
        before = state
        state, change = step(rule, state, value, float(at))
        found += state.phase[0].upper() if change else state.phase[0]
        assert change in {"", "firing", "resolved"}
        assert (state.since == at) == (state.phase != before.phase)
    return found


@pytest.mark.parametrize(
    ("values", "phases"),
    [
        ((0.04, 0.05, 0.0, None), "oooo"),
        ((0.06, 0.06, 0.06, 0.06), "ppFf"),
        ((0.06, 0.06, 0.05, 0.06, 0.06, 0.06), "ppoppF"),
        ((0.06, None, 0.06, 0.06), "popp"),
        ((0.06, 0.06, 0.06, 0.0451, 0.0451, 0.0451, 0.0451), "ppFffff"),
        ((0.06, 0.06, 0.06, 0.044, 0.044, 0.044, 0.044), "ppFffOo"),
        ((0.06, 0.06, 0.06, 0.044, 0.044, 0.046, 0.044, 0.044, 0.044), "ppFfffffO"),
        ((0.06, 0.06, 0.06, None, None, None), "ppFffO"),
        ((0.06, 0.06, 0.06, 0.01, 0.01, 0.01, 0.06, 0.06, 0.06), "ppFffOppF"),
    ],
)
def test_b44_a_ceiling(values: tuple[float | None, ...], phases: str) -> None:
    assert told(CEILING, *values) == phases


@pytest.mark.parametrize(
    ("values", "phases"),
    [
        ((0.0, 0.0, 0.0, 0.0), "oooo"),
        ((None, 0.5, 0.5, 0.5, 0.5), "ooooo"),
        ((1.0, 0.9, 0.9, 0.9, 0.9), "oppFf"),
        ((2.0, 0.0, 0.0, 0.0, 1.05, 1.05, 1.05, 1.2, 1.2, 1.2), "oppFfffffO"),
    ],
)
def test_b44_a_floor_is_armed_by_a_value_above_it(values: tuple[float | None, ...], phases: str) -> None:
    assert told(FLOOR, *values) == phases


def test_b44_the_defaults_and_their_switches() -> None:
    defaults = rules(
        p95_latency_ms=500,
        p99_latency_ms=1000,
        error_rate=0.05,
        memory_growth_mb=50,
        requests_per_second_min=1,
    )
    assert [(rule.name, rule.threshold, rule.floor, rule.window_s) for rule in defaults] == [
        ("p95_latency_ms", 500, False, 60),
        ("p99_latency_ms", 1000, False, 60),
        ("error_rate", 0.05, False, 60),
        ("memory_growth_mb", 50, False, 3600),
        ("requests_per_second_min", 1, True, 60),
    ]
    off = rules(p95_latency_ms=0, p99_latency_ms=1, error_rate=0, memory_growth_mb=0, requests_per_second_min=0)
    assert [rule.name for rule in off] == ["p99_latency_ms"]


def test_b44_what_is_told_is_for_programs_and_for_people() -> None:
    begin = alert(CEILING, "firing", 100.7, 100.7, 0.25, "web-1")
    end = alert(CEILING, "resolved", 100.7, 200.0, None, "web-1")
    assert begin.alert == end.alert == "web-1/error_rate/100"
    assert (begin.state, end.state, begin.at, end.at) == ("firing", "resolved", 100.7, 200.0)
    assert begin.text == (
        "penstock on web-1: firing: share of exchanges that failed over 60 s is 0.25 (at most 0.05)"
    )
    assert end.text.endswith("too little traffic to judge by (at most 0.05)")
    assert "(at least 1)" in alert(FLOOR, "firing", 1, 1, 0.5, "h").text


def test_b44_a_state_survives_being_written_down() -> None:
    states = {
        "a": State("firing", 1, 12.5, 0.3, True, ("firing", 12.5, 12.5, 0.3)),
        "b": State(),
    }
    assert restored(json.loads(json.dumps(plain(states)))) == states
