"""All benches in one outcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.bench import suite
from app.bench.progress import Say
from app.bench.report import Report, Row, Variant
from app.bench.servers import BenchError
from app.bench.suite import Part, Suite, Wish, measure, parts
from app.bench.verdict import Aim, judge


def _report(name: str, value: float = 1, *faults: str) -> Report:
    variant = Variant("v", "words", [{"a": value}])
    judged = judge([Aim("v", "a", "<=", 1)], {"v": variant.rounds})
    return Report(name, f"{name}: title", {}, [Row("a", "figure")], [variant], judged, faults)


def _part(name: str, *faults: str) -> Part:
    def run(say: Say) -> Report:
        say("round 1")
        return _report(name, 1, *faults)

    return Part(name, run)


def _raising(fault: Exception) -> Callable[[Say], Report]:
    def run(say: Say) -> Report:
        raise fault

    return run


def test_all_parts_are_in_the_file_and_say_who_speaks() -> None:
    told: list[str] = []
    found = measure("all: title", [_part("one"), _part("two")], told.append)
    assert told == ["one: round 1", "two: round 1"]
    data = found.json({"cores": 2})
    assert list(data) == ["bench", "format", "title", "machine", "parts", "faults"]
    assert (data["bench"], data["format"], data["machine"], data["faults"]) == ("all", 2, {"cores": 2}, [])
    assert {name: part["bench"] for name, part in data["parts"].items()} == {"one": "one", "two": "two"}
    assert data["parts"]["one"]["machine"] == {"cores": 2}
    assert found.reached
    assert [report.bench for report in found.sections] == ["one", "two"]
    assert found.text().count("title") == 2


@pytest.mark.parametrize("fault", [BenchError("no server"), OSError("no room"), ImportError("no module")])
def test_a_part_that_breaks_is_a_fault_and_the_others_go_on(fault: Exception) -> None:
    found = measure("t", [Part("one", _raising(fault)), _part("two")], lambda _: None)
    assert list(found.reports) == ["two"]
    (text,) = found.faults
    assert text.startswith("one: ")
    assert str(fault) in text
    assert found.json({})["faults"] == [text]
    assert not found.reached


def test_other_exceptions_are_faults_of_ours() -> None:
    with pytest.raises(ZeroDivisionError):
        measure("t", [Part("one", _raising(ZeroDivisionError()))], lambda _: None)


def test_faults_and_missed_aims_of_parts_are_those_of_all() -> None:
    found = measure("t", [_part("one", "2 of 3"), _part("two")], lambda _: None)
    assert found.faults == ["one: 2 of 3"]
    assert not Suite("t", {"one": _report("one", 2)}).reached


def test_the_parts_of_the_suite() -> None:
    assert [part.name for part in parts(Wish())] == ["latency", "streaming", "concurrent", "storm"]


def test_more_rounds_are_more_steps_and_fewer_sizes_are_quick() -> None:
    few, many = ({part.name: part.steps for part in parts(Wish(rounds=number))} for number in (1, 2))
    assert all(few[name] < many[name] for name in ("latency", "streaming", "storm"))
    assert Wish(quick=True).sizes({"requests": 5, "rounds": 3}) == {"requests": 5, "rounds": 3}
    assert Wish(quick=True, rounds=7).sizes({"rounds": 3}) == {"rounds": 7}
    assert Wish(rounds=7).sizes({"rounds": 3, "requests": 5}) == {"rounds": 7}
    assert Wish().sizes({"requests": 5}) == {}


def test_a_part_that_is_not_installed_is_told_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(wish: Wish) -> Part:
        raise ModuleNotFoundError("No module named 'app.bench.absent'")

    monkeypatch.setattr(suite, "_BUILDERS", {"absent": absent, "here": lambda wish: _part("here")})
    found = measure("t", parts(Wish()), lambda _: None)
    assert found.faults == ["absent: not part of this installation (No module named 'app.bench.absent')"]
    assert list(found.reports) == ["here"]
