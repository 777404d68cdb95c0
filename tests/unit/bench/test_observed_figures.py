"""Which gateways are compared, in which order they serve, and what comes of a turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.bench.figures import Figures
from app.bench.latency import SETTINGS
from app.bench.observed_figures import (
    BASE,
    BLIND,
    CONTROL,
    Plan,
    Served,
    cells,
    compared,
    event_figures,
    notes,
    order,
    quartiles,
    request_faults,
    request_figures,
    split,
)
from app.bench.report import Report, Variant
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Round
from app.bench.verdict import judge
from app.settings import load, rows

PLAN = Plan(turns=4, requests=3, concurrency=2, streams=2, events=2)
STREAM = Streamed(200, 1.0, 2.0, {}, body_s=1.5, delays_ns=[9, 9], stopped=True)


def test_every_cell_is_made_of_settings_of_this_gateway() -> None:
    known = {name for row in rows() for name in row.env}
    blind = load({name: str(value) for name, value in {**SETTINGS, **BLIND}.items()})
    for cell in cells():
        assert set(cell.settings) == set(BLIND) <= known
        found = load({name: str(value) for name, value in {**SETTINGS, **cell.settings}.items()})
        assert (found == blind) is (cell.name in (BASE, CONTROL))


def test_nothing_has_a_control_and_each_thing_stands_alone() -> None:
    nothing, again, *each, everything = cells()
    assert (nothing.name, again.name, everything.name) == (BASE, CONTROL, "everything")
    assert nothing.settings == again.settings == BLIND
    assert not any(everything.settings[name] == BLIND[name] for name in BLIND)
    turned = [[name for name in BLIND if cell.settings[name] != BLIND[name]] for cell in each]
    assert sorted(turned) == sorted([name] for name in BLIND)
    for cell, (name,) in zip(each, turned, strict=True):
        assert cell.settings[name] == everything.settings[name]
    assert len({cell.name for cell in cells()}) == len(cells())


def test_every_turn_has_an_order_of_its_own_which_is_that_of_every_run() -> None:
    names = [cell.name for cell in cells()]
    turns = [order(names, turn) for turn in range(1, 61)]
    assert turns == [order(names, turn) for turn in range(1, 61)]
    assert all(sorted(turn) == sorted(names) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 50
    for name in names:
        assert {turn.index(name) for turn in turns} == set(range(len(names))), "nobody has a place of its own"
    assert names == [cell.name for cell in cells()]


def test_the_gateways_have_a_core_of_their_own_if_there_are_two() -> None:
    assert split({3, 1, 2}) == ({1}, {2, 3})
    assert split([0, 1]) == ({0}, {1})
    assert split({5}) is None


def test_a_request_costs_what_all_took_if_all_were_answered() -> None:
    assert request_figures(Served([200] * 4, 0.002, 4)) == {"cpu_ms_per_request": 0.5}
    for lacking in (Served([200, 503], 0.002, 2), Served([200], None, 1), Served([], 0.002, 0)):
        assert request_figures(lacking) == {"cpu_ms_per_request": None}


@pytest.mark.parametrize(
    ("statuses", "met", "faults"),
    [
        ([200, 200, 200], 3, []),
        ([200, 200, 200], 4, []),  # one was tried again
        ([200, 0, 503], 3, ["1 of 3 requests succeeded (other statuses: [0, 503])"]),
        ([200, 200], 3, ["2 of 3 requests succeeded (other statuses: [])"]),
        ([200, 200, 200], 2, ["3 successes, but the simulator met 2 requests"]),
    ],
)
def test_what_is_missing_among_requests(statuses: Sequence[int], met: int, faults: list[str]) -> None:
    assert request_faults(Served(statuses, 0.1, met), PLAN) == faults


def test_an_event_costs_what_all_took_if_no_stream_broke() -> None:
    assert event_figures(Round([STREAM] * 2, 2, 1.0, cpu_s=0.004)) == {"cpu_ms_per_event": 1.0}
    assert event_figures(Round([STREAM] * 2, 3, 1.0, cpu_s=0.004)) == {"cpu_ms_per_event": None}


def test_a_turn_is_compared_with_its_nothing() -> None:
    base: Figures = {"cpu_ms_per_request": 0.2, "cpu_ms_per_event": None}
    log: Figures = {"cpu_ms_per_request": 0.3, "cpu_ms_per_event": 0.1}
    metrics: Figures = {"cpu_ms_per_request": None, "cpu_ms_per_event": 0.1}
    found = compared({"log": log, BASE: base, "metrics": metrics})
    assert found[BASE] == {"request_cpu_ratio": 1.0, "event_cpu_ratio": None, **base}
    assert found["log"] == {"request_cpu_ratio": 1.5, "event_cpu_ratio": None, **log}
    assert found["metrics"]["request_cpu_ratio"] is None
    only = compared({BASE: {"cpu_ms_per_request": 0.2}})
    assert only == {BASE: {"request_cpu_ratio": 1.0, "cpu_ms_per_request": 0.2}}


def test_each_thing_and_everything_has_a_bound_and_the_control_has_none() -> None:
    aims = {(aim.variant, aim.figure, aim.relation, aim.bound, aim.over) for aim in PLAN.aims()}
    judged = [cell.name for cell in cells()][2:]
    assert len(judged) == 7
    assert aims == {
        (name, figure, "<=", 1.05, "median")
        for name in judged
        for figure in ("request_cpu_ratio", "event_cpu_ratio")
    }
    assert {aim.figure for aim in Plan(streams=0).aims()} == {"request_cpu_ratio"}


def test_the_table_has_what_was_measured() -> None:
    turn = compared({cell.name: {"cpu_ms_per_request": 0.2, "cpu_ms_per_event": 0.1} for cell in cells()})
    assert {row.figure for row in PLAN.rows} == set(turn[BASE])
    variants = [Variant(cell.name, cell.words, [turn[cell.name]] * 4) for cell in cells()]
    judged = judge(PLAN.aims(), {one.name: one.rounds for one in variants})
    assert all(one.met for one in judged)
    text = Report("observed", PLAN.title(), {}, PLAN.rows, variants, judged).text()
    assert "3 short requests, 2 at once; 2 streams x 2 events x 10 ms; median of 4 turn(s)" in text
    assert "1.000 x" in text
    assert "streams" not in Plan(streams=0).title()
    assert [row.figure for row in Plan(streams=0).rows] == ["request_cpu_ratio", "cpu_ms_per_request"]


def test_quartiles_lie_within_what_was_measured() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.75)
    assert quartiles([1.0]) is None
    assert quartiles([1.0, None, 2.0]) is None


def test_the_reader_is_told_how_far_the_turns_differ() -> None:
    rounds: list[Figures] = [
        {"request_cpu_ratio": ratio, "event_cpu_ratio": ratio + 1} for ratio in (1.0, 1.1, 1.2, 1.3, 1.4)
    ]
    variants = [Variant(BASE, "nothing", rounds), Variant("log", "log", rounds), Variant("few", "few", rounds[:1])]
    told = notes(PLAN, variants, pinned=True)
    assert told[0] == (
        "Half of the turns of log: CPU per request over nothing's 1.100 to 1.300 x; "
        "CPU per event over nothing's 2.100 to 2.300 x."
    )
    assert len(told) == 2
    assert "equal gateways" in told[1]
    assert "event" not in notes(Plan(streams=0), variants, pinned=True)[0]


def test_the_reader_is_told_of_one_core_only_if_two_were_asked_for() -> None:
    assert "one core only" in notes(PLAN, [], pinned=False)[-1]
    assert "core" not in " ".join(notes(PLAN, [], pinned=True) + notes(Plan(pin=False), [], pinned=False))
