"""What two results files mean for the exit code, on screen and in the file that machines read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app import cli

Write = Callable[..., Path]
MACHINE = {"cpu": "Rapid 9", "cores": 2, "at": "2026-01-01T00:00:00+00:00"}
LIMITS = ("--latency-p95-improve-pct", "0", "--throughput-drop-pct", "5", "--error-rate-max", "0.01")
ALL = ("--ttfb-p95-improve", "0", "--full-p95-improve", "0", "--cpu-per-request-max-ratio", "1.05")


def _rounds(factor: float, scatter: Sequence[float], changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds whose latencies and CPU are ``factor`` times those of 1.0, and rps the inverse."""
    return [
        {
            "requests": 1000,
            "rps": 500.0 / factor / one,
            "cpu_ms_per_request": 2.0 * factor * one,
            "ttfb_p95_ms": 30.0 * factor * one,
            "full_p95_ms": 40.0 * factor * one,
            "error_pct": 0.0,
            **changes,
        }
        for one in scatter
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a results file; figures are ``factor`` times those of 1.0."""

    def written(
        name: str,
        factor: float = 1.0,
        scatter: Sequence[float] = (0.99, 1.0, 1.01),
        top: Any = None,
        **changes: Any,
    ) -> Path:
        report = {
            "bench": "latency",
            "format": 1,
            "title": name,
            "machine": MACHINE,
            "settings": {"requests": 1000},
            "variants": {"gateway": {"rounds": _rounds(factor, scatter, changes)}},
            "faults": [],
        } | (top or {})
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(report), encoding="utf-8")
        return file

    return written


def _run(gate: str, before: Path, after: Path, *more: str) -> Result:
    return CliRunner().invoke(cli.main, [gate, "--before", str(before), "--after", str(after), *more])


def _guard(before: Path, after: Path, stage: int, *more: str) -> Result:
    return _run("rollout-guard", before, after, "--stage", str(stage), *LIMITS, *more)


def _assert(before: Path, after: Path, *more: str) -> Result:
    return _run("assert-latency", before, after, *(more or ALL))


@pytest.mark.parametrize(
    ("factor", "word", "code"), [(0.8, "PASS", 0), (1.0, "PASS", 0), (1.001, "PASS", 0), (1.2, "FAIL", 3)]
)
def test_a_build_that_is_worse_fails(write: Write, factor: float, word: str, code: int) -> None:
    result = _assert(write("a"), write("b", factor))
    assert (result.exit_code, result.stdout.splitlines()[0], result.stderr) == (code, word, "")
    names = [line.partition(":")[0] for line in result.stdout.splitlines()[1:]]
    assert names == ["ttfb_p95_ms", "full_p95_ms", "cpu_ms_per_request"]


@pytest.mark.parametrize("option", ["--ttfb-p95-improve", "--full-p95-improve", "--cpu-per-request-max-ratio"])
def test_each_option_stands_alone_and_looks_at_its_own_figure(write: Write, option: str) -> None:
    figure = {"--ttfb-p95-improve": "ttfb_p95_ms", "--full-p95-improve": "full_p95_ms"}.get(
        option, "cpu_ms_per_request"
    )
    bound = "1" if "ratio" in option else "0"
    assert _assert(write("a"), write("b", 0.5, **{figure: 1000.0}), option, bound).exit_code == 3
    assert _assert(write("a"), write("b", 2.0, **{figure: 1.0}), option, bound).exit_code == 0


@pytest.mark.parametrize(("asked", "code"), [("10", 0), ("30", 3), ("-50", 0)])
def test_a_gain_has_to_be_reached(write: Write, asked: str, code: int) -> None:
    assert _assert(write("a"), write("b", 0.8), "--full-p95-improve", asked).exit_code == code


def test_what_is_not_certain_passes_unless_certainty_is_due(write: Write) -> None:
    before, after = write("a"), write("b", 1.0, (0.95, 1.0, 1.02))
    assert _assert(before, after).exit_code == 0
    assert "undecided" in _assert(before, after).stdout
    strictly = _assert(before, after, *ALL, "--margin-pct", "0")
    assert (strictly.exit_code, strictly.stdout.splitlines()[0]) == (1, "UNDECIDED")


def test_rounds_that_scatter_far_pass_nothing(write: Write, tmp_path: Path) -> None:
    before, after = write("a", 1.0, (0.5, 1.0, 1.5)), write("b", 0.99, (0.5, 1.0, 1.5))
    output = tmp_path / "decision.json"
    result = _assert(before, after, *ALL, "--output", str(output))
    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, "UNDECIDED")
    assert json.loads(output.read_text(encoding="utf-8"))["decision"] == "UNDECIDED"
    assert _guard(before, after, 5).exit_code == 3


def test_asking_for_nothing_is_a_fault_of_usage(write: Write) -> None:
    result = _run("assert-latency", write("a"), write("b"))
    assert result.exit_code == 2
    assert "Ask for something" in result.stderr


@pytest.mark.parametrize(
    ("factor", "word", "code"), [(0.8, "PROMOTE", 0), (1.0, "HOLD", 3), (1.2, "ROLLBACK", 4), (3.0, "ROLLBACK", 4)]
)
@pytest.mark.parametrize("stage", [50, 100])
def test_a_build_is_promoted_held_or_rolled_back(
    write: Write, stage: int, factor: float, word: str, code: int
) -> None:
    result = _guard(write("a"), write("b", factor), stage)
    assert (result.exit_code, result.stdout.splitlines()[0], result.stderr) == (code, word, "")
    names = [line.partition(":")[0] for line in result.stdout.splitlines()[1:]]
    assert names == ["full_p95_ms", "ttfb_p95_ms", "rps", "error_pct"]
    assert ("would settle it" in result.stdout or "settle it:" in result.stdout) is (word == "HOLD")


@pytest.mark.parametrize(("stage", "code"), [(5, 0), (20, 0), (50, 3), (100, 3)])
def test_a_small_stage_is_content_with_less(write: Write, stage: int, code: int) -> None:
    assert _guard(write("a"), write("b", 0.995), stage).exit_code == code
    assert _guard(write("a"), write("b", 0.995), stage, "--margin-pct", "0").exit_code == 3


@pytest.mark.parametrize("stage", [5, 20, 50, 100])
def test_each_limit_alone_rolls_back(write: Write, stage: int) -> None:
    before = write("a")
    for change in ({"rps": 100.0}, {"full_p95_ms": 99.0}, {"ttfb_p95_ms": 99.0}, {"error_pct": 5.0}):
        assert _guard(before, write("b", 0.8, **change), stage).exit_code == 4
    assert _guard(before, write("b", 0.8), stage).exit_code == 0


def test_the_error_rate_is_a_share(write: Write) -> None:
    result = _guard(write("a"), write("b", 0.8, error_pct=0.5), 100)
    assert result.exit_code == 0
    more = ("--error-rate-max", "0.001")
    assert _guard(write("a"), write("b", 0.8, error_pct=0.5), 100, *more).exit_code == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rps": None}, "gateway.rps of round 1 of 3 is missing"),
        ({"full_p95_ms": 0}, "gateway.full_p95_ms of round 1 of 3 is 0"),
        ({"ttfb_p95_ms": float("nan")}, "gateway.ttfb_p95_ms of round 1 of 3 is nan"),
        ({"error_pct": "none"}, "gateway.error_pct of round 1 of 3 is 'none'"),
        ({"requests": None}, "gateway.requests of round 1 of 3 is missing"),
        ({"top": {"faults": ["lost"]}}, "has faults"),
        ({"top": {"settings": {"requests": 9}}}, "setting requests (1000, 9)"),
        ({"top": {"machine": MACHINE | {"cores": 64}}}, "machine cores (2, 64)"),
        ({"top": {"variants": {}}}, "no variant 'gateway'"),
        ({"top": {"bench": "storm"}}, "of bench 'storm'"),
        ({"scatter": (1.0, 1.0)}, "gateway has 2 round(s)"),
    ],
)
@pytest.mark.parametrize("stage", [5, 100])
def test_without_data_nothing_is_decided(
    write: Write, tmp_path: Path, stage: int, change: dict[str, Any], said: str
) -> None:
    output = tmp_path / "decision.json"
    output.write_text('{"decision": "PROMOTE"}', encoding="utf-8")
    result = _guard(write("a"), write("b", 0.5, **change), stage, "--output", str(output))
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert str(tmp_path / "b.json") in result.stderr
    decision = json.loads(output.read_text(encoding="utf-8"))
    assert decision["decision"] is None
    assert said in "\n".join(decision["refused"])
    assert decision["criteria"] == []


def test_the_side_that_lacks_something_may_be_before(write: Write) -> None:
    for gate in (lambda one, two: _guard(one, two, 5), _assert):
        result = gate(write("a", full_p95_ms=None), write("b", 0.5))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "a.json: gateway.full_p95_ms" in result.stderr


def test_files_that_are_not_there_are_named(write: Write, tmp_path: Path) -> None:
    for gate in (lambda one, two: _guard(one, two, 5), _assert):
        result = gate(write("a"), tmp_path / "lost.json")
        assert result.exit_code == 1
        assert result.stderr == f"Error: {tmp_path / 'lost.json'}: No such file or directory.\n"


def test_a_measurement_is_not_compared_with_itself(write: Write, tmp_path: Path) -> None:
    one, copied, linked = write("a"), tmp_path / "copied.json", tmp_path / "linked.json"
    copied.write_bytes(one.read_bytes())
    linked.symlink_to(one)
    for other in (one, copied, linked, tmp_path / "." / "a.json"):
        for gate in (lambda one, two: _guard(one, two, 5), _assert):
            result = gate(one, other)
            assert (result.exit_code, result.stdout) == (1, "")
            assert "are the same measurement" in result.stderr


@pytest.mark.parametrize(
    ("was", "now", "code"), [(0.0, 0.1, 3), (0.5, 0.6, 3), (0.5, 0.5, 0), (0.6, 0.5, 0), (0.0, 0.0, 0)]
)
def test_a_quick_build_with_more_errors_fails(write: Write, was: float, now: float, code: int) -> None:
    result = _assert(write("a", error_pct=was), write("b", 0.5, error_pct=now))
    assert result.exit_code == code
    assert ("error_pct: bad" in result.stdout) is (code == 3)


def test_errors_have_to_be_on_both_sides_or_on_none(write: Write) -> None:
    def without(file: Path) -> Path:
        whole = json.loads(file.read_text(encoding="utf-8"))
        for one in whole["variants"]["gateway"]["rounds"]:
            del one["error_pct"]
        file.write_text(json.dumps(whole), encoding="utf-8")
        return file

    one = _assert(without(write("a")), write("b", 0.5))
    assert (one.exit_code, one.stdout) == (1, "")
    assert "gateway.error_pct of round 1 of 3 is missing" in one.stderr
    assert _assert(without(write("a")), without(write("b", 0.5))).exit_code == 0


def test_another_machine_can_be_allowed(write: Write) -> None:
    before, after = write("a"), write("b", 0.8, top={"machine": MACHINE | {"cpu": "other"}})
    assert _assert(before, after).exit_code == 1
    assert _assert(before, after, *ALL, "--allow-other-machine").exit_code == 0


def test_another_part_and_variant_can_be_asked_for(write: Write, tmp_path: Path) -> None:
    files: list[Path] = []
    for name, factor in (("a", 1.0), ("b", 0.8)):
        inner = json.loads(write(name, factor).read_text(encoding="utf-8"))
        inner["variants"]["burst"] = inner["variants"].pop("gateway")
        whole = {"bench": "all", "format": 2, "machine": MACHINE, "faults": []}
        whole["parts"] = {"storm": inner | {"bench": "storm"}}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(whole), encoding="utf-8")
    before, after = files
    assert _assert(before, after).exit_code == 1
    assert "no variant 'gateway'" in _assert(before, after, *ALL, "--part", "storm").stderr
    assert _assert(before, after, *ALL, "--part", "storm", "--variant", "burst").exit_code == 0


def test_the_decision_for_machines(write: Write, tmp_path: Path) -> None:
    output = tmp_path / "decision.json"
    result = _guard(write("a"), write("b", 0.8, (0.9, 1.0, 1.1, 1.0)), 20, "--output", str(output))
    assert result.exit_code == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert (found["gate"], found["stage"], found["decision"]) == ("rollout-guard", 20, "PROMOTE")
    assert (found["part"], found["variant"]) == ("latency", "gateway")
    assert found["before"] == {"file": str(tmp_path / "a.json"), "at": MACHINE["at"], "rounds": 3}
    assert found["after"]["rounds"] == 4
    first = found["criteria"][0]
    assert (first["figure"], first["verdict"], first["measure"]) == ("full_p95_ms", "good", "ratio")
    assert (first["before"], first["after"], first["value"]) == (
        pytest.approx(40.0),
        pytest.approx(32.0),
        pytest.approx(0.8),
    )
    assert first["interval"][0] < 0.8 < first["interval"][1]
    assert _assert(write("a"), write("b", 2.0), *ALL, "--output", str(output)).exit_code == 3
    assert json.loads(output.read_text(encoding="utf-8"))["decision"] == "FAIL"


def test_a_decision_that_cannot_be_written_is_none(write: Write, tmp_path: Path) -> None:
    result = _guard(write("a"), write("b", 0.8), 5, "--output", str(tmp_path / "no" / "decision.json"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No such file or directory" in result.stderr


def test_results_are_not_overwritten(write: Write) -> None:
    before, after = write("a"), write("b", 0.8)
    kept = after.read_text(encoding="utf-8")
    result = _guard(before, after, 5, "--output", str(after))
    assert result.exit_code == 2
    assert after.read_text(encoding="utf-8") == kept


@pytest.mark.parametrize(
    "more",
    [
        ("--stage", "10"),
        ("--error-rate-max", "1"),  # a percentage by mistake
        ("--error-rate-max", "-0.1"),
        ("--error-rate-max", "nan"),
        ("--throughput-drop-pct", "100"),
        ("--throughput-drop-pct", "-1"),
        ("--latency-p95-improve-pct", "nan"),
        ("--latency-p95-improve-pct", "100"),
        ("--latency-p95-improve-pct", "x"),
        ("--margin-pct", "nan"),
        ("--margin-pct", "-1"),
    ],
)
def test_limits_that_mean_nothing_are_faults_of_usage(write: Write, more: tuple[str, str]) -> None:
    assert _guard(write("a"), write("b", 0.8), 5, *more).exit_code == 2


@pytest.mark.parametrize("bound", ["nan", "0", "-1", "inf"])
def test_a_ratio_is_a_number_above_zero(write: Write, bound: str) -> None:
    assert _assert(write("a"), write("b"), "--cpu-per-request-max-ratio", bound).exit_code == 2


@pytest.mark.parametrize("lacking", range(3))
def test_every_limit_has_to_be_given(write: Write, lacking: int) -> None:
    limits = [*LIMITS[: 2 * lacking], *LIMITS[2 * lacking + 2 :]]
    result = _run("rollout-guard", write("a"), write("b", 0.8), "--stage", "5", *limits)
    assert result.exit_code == 2
    assert f"Missing option '{LIMITS[2 * lacking]}'" in result.stderr


def test_help_shows_the_rule_and_the_exit_codes() -> None:
    guard = CliRunner().invoke(cli.main, ["rollout-guard", "--help"]).output
    for text in ("50, 100 %   no        no           no\n", "0 PROMOTE", "3 HOLD", "4 ROLLBACK", "0.01 is 1"):
        assert text in guard
    latency = CliRunner().invoke(cli.main, ["assert-latency", "--help"]).output
    for text in ("0 PASS", "1 UNDECIDED", "3 FAIL", "--margin-pct", "more of them than before"):
        assert text in latency
