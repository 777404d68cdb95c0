"""A results file is taken whole or refused with one sentence that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.machine import facts
from app.bench.report import Report, Row, Variant
from app.bench.results import Results, ResultsError, parse, read, same_terms

MACHINE = {"cpu": "Rapid 9", "cores": 2, "at": "2026-01-01T00:00:00+00:00"}
ROUND: dict[str, Any] = {"rps": 100.0, "error_pct": 0.0, "requests": 500, "statuses": {"200": 500}}


def report(**changes: Any) -> dict[str, Any]:
    whole = {
        "bench": "latency",
        "format": 1,
        "machine": MACHINE,
        "settings": {"requests": 500, "rounds": 3},
        "variants": {"gateway": {"rounds": [dict(ROUND) for _ in range(3)]}},
        "faults": [],
    }
    return {name: value for name, value in (whole | changes).items() if value is not ...}


def suite(**changes: Any) -> dict[str, Any]:
    whole = {"bench": "all", "format": 2, "machine": MACHINE, "parts": {"latency": report()}, "faults": []}
    return {name: value for name, value in (whole | changes).items() if value is not ...}


def refusal(text: str, part: str = "latency") -> str:
    with pytest.raises(ResultsError) as caught:
        parse(text, "a.json", part)
    return str(caught.value)


def parsed(**changes: Any) -> Results:
    return parse(json.dumps(report(**changes)), "a.json", "latency")


def with_value(value: Any, figure: str = "rps") -> Results:
    rounds = [dict(ROUND), {**ROUND, figure: value}, dict(ROUND)]
    if value is ...:
        del rounds[1][figure]
    return parse(json.dumps(report(variants={"gateway": {"rounds": rounds}})), "a.json", "latency")


def test_a_single_report_and_one_of_several_are_read_alike() -> None:
    one, other = parsed(), parse(json.dumps(suite()), "a.json", "latency")
    assert one == other
    assert one.series("gateway", "rps") == pytest.approx([100.0] * 3)
    assert one.series("gateway", "error_pct") == pytest.approx([0.0] * 3)
    assert (one.bench, one.machine["cores"], one.settings["requests"]) == ("latency", 2, 500)


def test_the_machine_of_several_reports_may_stand_once() -> None:
    whole = suite(parts={"latency": report(machine=...), "streaming": report(bench="streaming")})
    assert parse(json.dumps(whole), "a.json", "latency").machine == MACHINE
    assert parse(json.dumps(whole), "a.json", "streaming").bench == "streaming"


def test_what_a_bench_writes_is_read(tmp_path: Path) -> None:
    variant = Variant("gateway", "words", [{"rps": 10.0 + number} for number in range(3)])
    data = Report("latency", "title", {"rounds": 3}, [Row("rps", "words")], [variant], []).json(facts())
    file = tmp_path / "a.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert read(file, "latency").series("gateway", "rps") == pytest.approx([10.0, 11.0, 12.0])


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ([], "the file is not an object"),
        (None, "the file is missing"),
        ({}, "not a results file"),
        (report(format=3), "not a results file"),
        (report(bench=7), "not a results file"),
        (report(faults=...), "nothing says whether"),
        (report(faults=["3 samples of 4"]), "has faults, so it is not to be used: 3 samples of 4"),
        (report(faults=["first", "second", "third"]), "first (and 2 more)"),
        (report(bench="storm"), "of bench 'storm', asked for is 'latency' (--part)"),
        (report(machine=...), "machine is missing"),
        (report(machine={"cpu": "Rapid 9"}), "processor or number of cores"),
        (report(machine={"cpu": None, "cores": None}), "processor or number of cores"),
        (report(machine={"cores": 2}), "processor or number of cores"),
        (report(settings=...), "settings is missing"),
        (report(settings=[]), "settings is not an object"),
        (report(variants=...), "variants is missing"),
        (report(variants={"gateway": 1}), "gateway is not an object"),
        (report(variants={"gateway": {"rounds": None}}), "gateway has no rounds"),
        (report(variants={"gateway": {"rounds": [{}, 1]}}), "round 2 of gateway is not an object"),
        (suite(parts=...), "parts is missing"),
        (suite(parts={}), "no part 'latency' (there is: none)"),
        (suite(parts={"storm": {}}), "no part 'latency' (there is: storm)"),
        (suite(parts={"latency": None}), "latency is missing"),
        (suite(parts={"latency": report(bench="storm")}), "of bench 'storm'"),
        (suite(parts={"latency": report(faults=["lost"])}), "faults"),
        (suite(parts={"latency": report(faults=...)}), "nothing says whether"),
        (suite(faults=["storm: lost"]), "faults"),
        (suite(faults=...), "nothing says whether"),
    ],
)
def test_a_file_that_cannot_be_decided_on_is_refused(whole: Any, said: str) -> None:
    found = refusal(json.dumps(whole))
    assert found.startswith("a.json: ")
    assert said in found
    assert "\n" not in found


@pytest.mark.parametrize("text", ["", "{", "no", "[" * 100_000, "1" * 5000, '{"bench": "latency", '])
def test_what_is_not_json_is_refused(text: str) -> None:
    assert refusal(text) == "a.json: this is not JSON."


@given(st.text(max_size=40) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_whatever_a_file_holds_the_answer_is_one_sentence(text: str) -> None:
    assert refusal(text).startswith("a.json: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(report())), json_values)
def test_whatever_one_field_holds_there_is_a_report_or_a_sentence(field: str, value: Any) -> None:
    try:
        parsed(**{field: value}).series("gateway", "rps")
    except ResultsError as error:
        assert str(error).startswith("a.json: ")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (..., "is missing"),
        (None, "is missing"),
        ("100", "is '100', not a number"),
        (True, "is True, not a number"),
        ([1.0], "not a number"),
        ({"x" * 100: 1}, "..., not a number"),
        (float("nan"), "is nan, which is no measurement"),
        (float("inf"), "is inf, which is no measurement"),
        (float("-inf"), "is -inf, which is no measurement"),
        (0, "is 0, but has to be above zero"),
        (0.0, "has to be above zero"),
        (-1.5, "has to be above zero"),
        (1e-300, "is no measurement"),
        (10**400, "is no measurement"),
    ],
)
def test_a_value_that_was_not_measured_is_refused_by_name(value: Any, said: str) -> None:
    with pytest.raises(ResultsError) as caught:
        with_value(value).series("gateway", "rps")
    assert str(caught.value).startswith("a.json: gateway.rps of round 2 of 3 ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan"), None])
def test_a_percentage_lies_within_its_bounds(value: Any) -> None:
    with pytest.raises(ResultsError, match=r"gateway\.error_pct of round 2"):
        with_value(value, "error_pct").series("gateway", "error_pct")


@pytest.mark.parametrize("planned", [2, 4, "3", None])
def test_rounds_that_are_not_as_many_as_were_planned(planned: Any) -> None:
    results = parsed(settings={"requests": 500, "rounds": planned})
    with pytest.raises(ResultsError, match=r"a\.json: gateway has 3 rounds, but its settings say"):
        results.rounds("gateway")


def test_cold_starts_are_counted_by_themselves() -> None:
    variants = {name: {"rounds": [ROUND] * count} for name, count in (("cold_start", 5), ("one_worker", 3))}
    results = parsed(settings={"rounds": 3, "starts": 5}, variants=variants)
    assert [len(results.rounds(name)) for name in variants] == [5, 3]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_rounds_do_not_tell_how_far_they_scatter(count: int) -> None:
    results = parsed(variants={"gateway": {"rounds": [ROUND] * count}})
    with pytest.raises(ResultsError, match=rf"gateway has {count} round\(s\), at least 3"):
        results.series("gateway", "rps")


def test_a_variant_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ResultsError, match=r"no variant 'burst' \(there is: gateway\)"):
        parsed().rounds("burst")
    with pytest.raises(ResultsError, match=r"there is: none"):
        parsed(variants={}).rounds("burst")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    lost, binary = tmp_path / "lost.json", tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    for file, said in ((lost, "No such file"), (tmp_path, "directory"), (binary, "not text in UTF-8")):
        with pytest.raises(ResultsError, match=said) as caught:
            read(file, "latency")
        assert str(caught.value).startswith(str(file))


def _refused_together(one: Results, other: Results) -> str:
    with pytest.raises(ResultsError) as caught:
        same_terms(one, other, allow_other_machine=False)
    return str(caught.value)


def test_other_settings_are_named_but_for_those_that_may_differ() -> None:
    more = parsed(settings={"requests": 500, "rounds": 9, "against": ["http://127.0.0.1:1"]})
    same_terms(parsed(), more, allow_other_machine=False)
    other = parsed(settings={"requests": 600, "workers": 2})
    for allowed in (False, True):
        with pytest.raises(ResultsError, match="cannot be compared") as caught:
            same_terms(parsed(), other, allow_other_machine=allowed)
        assert "setting requests (500, 600), setting workers (not there, 2)" in str(caught.value)
        assert "allow" not in str(caught.value)


def test_an_absent_setting_is_not_one_that_is_null() -> None:
    assert "workers (not there, None)" in _refused_together(
        parsed(settings={"requests": 500}), parsed(settings={"requests": 500, "workers": None})
    )


@pytest.mark.parametrize("change", [{"cpu": "Rapid 10"}, {"cores": 4}, {"cpu": None}])
def test_another_machine_has_to_be_allowed(change: dict[str, Any]) -> None:
    one, other = parsed(), parsed(machine=MACHINE | change)
    said = _refused_together(one, other)
    assert f"machine {next(iter(change))} (" in said
    assert "--allow-other-machine" in said
    same_terms(one, other, allow_other_machine=True)


def test_a_machine_may_have_another_day_and_kernel() -> None:
    same_terms(parsed(), parsed(machine=MACHINE | {"at": "later", "system": "x"}), allow_other_machine=False)


def test_other_benches_are_not_compared() -> None:
    other = parse(json.dumps(report(bench="streaming")), "b.json", "streaming")
    assert _refused_together(parsed(), other).startswith(
        "a.json and b.json cannot be compared: bench (latency, str"
    )
