"""What the options of ``bench streaming``, ``concurrent`` and ``profiles`` mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.bench import concurrent, machine, profiles, streaming, suite
from app.bench.cli import command
from app.bench.concurrent_figures import Plan as ConcurrentPlan
from app.bench.profiles_figures import SWITCH, WHAT, Profiles, sweeps
from app.bench.profiles_figures import Plan as ProfilesPlan
from app.bench.report import Report, Row, Variant
from app.bench.streaming_figures import Plan as StreamingPlan


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been run."""
    seen: list[Any] = []
    monkeypatch.setattr(machine, "facts", lambda: {"load_1m": 0.0, "cores": 2})

    def report(*given: Any) -> Report:
        seen.append(given)
        return Report("demo", "demo: title", {}, [Row("a", "figure")], [Variant("v", "words", [{"a": 1}])], [])

    def swept(plan: ProfilesPlan, what: Any, tell: Any, *, markdown: bool) -> Profiles:
        seen.append((plan, what, markdown))
        return Profiles("profiles: title", {"demo": report()}, markdown)

    monkeypatch.setattr(streaming, "run", report)
    monkeypatch.setattr(concurrent, "run", report)
    monkeypatch.setattr(profiles, "run", swept)
    return seen


def _invoked(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_without_options_a_command_does_what_its_plan_does(calls: list[Any]) -> None:
    for name in ("streaming", "concurrent", "profiles"):
        assert _invoked(name).exit_code == 0
    assert calls[0][0] == StreamingPlan()
    assert calls[1][0] == ConcurrentPlan()
    assert calls[2] == (ProfilesPlan(), WHAT, False)


def test_options_of_streaming(calls: list[Any]) -> None:
    sizes = ["--streams", "5", "--events", "6", "--gap", "7", "--rounds", "8", "--workers", "9"]
    more = ["--worker-class", "gthread", "--burst-streams", "1", "--burst-events", "2", "--burst-s", "3"]
    others = ["--against", "http://127.0.0.1:4/v1/messages", "--against-pid", "77", "--header", "X-Api-Key: k"]
    assert _invoked("streaming", *sizes, *more, "--requests", "4", *others).exit_code == 0
    ((plan, _, against, simulator),) = calls
    assert plan == StreamingPlan(5, 6, 7, 8, 9, "gthread", 0.5, 1, 2, 3.0, 4)
    assert [(one.url, one.pid, one.headers) for one in against] == [("http://127.0.0.1:4", 77, {"x-api-key": "k"})]
    assert simulator is None


@pytest.mark.parametrize("wrong", [["--against", "nowhere"], ["--header", "a: b"], ["--worker-class", "sync"]])
def test_what_means_nothing_is_refused(wrong: list[str], calls: list[Any]) -> None:
    assert _invoked("streaming", *wrong).exit_code == 2
    assert calls == []


def test_options_of_concurrent(calls: list[Any]) -> None:
    sizes = [
        "--streams",
        "5",
        "--hold-ms",
        "600",
        "--slow-requests",
        "7",
        "--answer-ms",
        "800",
        "--spread-s",
        ".5",
    ]
    more = ["--starts", "9", "--idle-s", "1", "--requests", "2", "--concurrency", "3", "--rounds", "4"]
    assert _invoked("concurrent", *sizes, *more).exit_code == 0
    assert calls[0][0] == ConcurrentPlan(5, 600, 7, 800, 0.5, 9, 1.0, 2, 3, 4)


def test_what_cannot_be_in_flight_at_once_is_refused(calls: list[Any]) -> None:
    result = _invoked("concurrent", "--answer-ms", "500", "--spread-s", "0.5")
    assert result.exit_code == 2
    assert "--spread-s must be shorter than --answer-ms" in result.output
    assert calls == []
    for quick in (True, False):
        suite.parts(suite.Wish(quick))[2].run(lambda _: None)
    assert len(calls) == 2
    assert all(1000 * plan.spread_s <= plan.answer_ms / 2 for plan, _ in calls), "of the suite, quick or not"


def test_options_of_profiles(calls: list[Any], tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--streams", "2", "--events", "3", "--gap", "4", "--requests", "5"]
    more = ["--concurrency", "6", "--downloads", "7", "--downloads-at-once", "8", "--download-kib", "99"]
    output = tmp_path / "out.json"
    result = _invoked("profiles", "--what", "chunk", *sizes, *more, "--markdown", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert calls[0] == (ProfilesPlan(1, 2, 3, 4, 5, 6, 7, 8, 99), ("chunk",), True)
    assert "| --- |" in result.output
    assert json.loads(output.read_text())["bench"] == "profiles"


def test_a_setting_that_does_not_exist_is_not_swept(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    monkeypatch.setattr(profiles, "possible", lambda plan: sweeps(plan, {"WEB_CONCURRENCY"}))
    result = _invoked("profiles", "--what", "switch")
    assert result.exit_code == 2
    assert SWITCH in result.output
    assert calls == []
    assert _invoked("profiles").exit_code == 0
    assert calls[0][1] == WHAT
