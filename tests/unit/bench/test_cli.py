"""What a bench's outcome means for the exit code."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from app.bench import cli, machine, suite
from app.bench.cli import command
from app.bench.command import Remembering, finish, with_page
from app.bench.report import Report, Row, Variant
from app.bench.servers import BenchError
from app.bench.verdict import Aim, judge


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing else to do."""
    monkeypatch.setattr(machine, "facts", lambda: {"load_1m": 0.0, "cores": 2})


def _report(value: float, *faults: str) -> Report:
    variant = Variant("v", "words", [{"a": value}])
    judged = judge([Aim("v", "a", "<=", 1)], {"v": variant.rounds})
    return Report("demo", "demo: title", {}, [Row("a", "figure")], [variant], judged, faults)


def _finished(measure: Callable[[], Report], *, strict: bool = False, output: Path | None = None) -> Result:
    @click.command()
    def once() -> None:
        finish(measure, output, strict)

    return CliRunner().invoke(once)


def test_the_command_is_in_file_and_page_without_secrets_and_places(tmp_path: Path) -> None:
    output, drawing = tmp_path / "o.json", tmp_path / "p.html"

    top = Remembering("top")

    @top.command()
    @click.option("--rounds", type=int, default=3)
    @click.option("--requests", type=int, default=4)
    @click.option("--quick", is_flag=True)
    @click.option("--only", callback=lambda ctx, param, value: tuple(value.split(",")))
    @click.option("--header", multiple=True)
    @click.option("--against", multiple=True)
    @click.option("--output", type=click.Path(path_type=Path))
    @with_page
    def once(output: Path, page: Path, **_: object) -> None:
        finish(lambda: _report(1), output, False, page)

    arguments = ["--rounds=02", "--quick", "--only", "nginx,flask", "--header", "x-api-key: secret"]
    arguments += ["--against", "http://a/?", "--against", "b c"]
    files = ["--output", str(output), "--plot", str(drawing)]
    assert CliRunner().invoke(top, ["once", *arguments, *files]).exit_code == 0
    typed = (
        "top once --rounds 02 --quick --only nginx,flask --header 'x-api-key: ...' "
        "--against 'http://a/?' --against 'b c'"
    )
    assert json.loads(output.read_text())["command"] == typed
    assert "secret" not in drawing.read_text()
    assert "demo: title" in drawing.read_text()


@pytest.mark.parametrize(("value", "strict", "code"), [(1, False, 0), (2, False, 0), (1, True, 0), (2, True, 3)])
def test_a_missed_aim_matters_only_when_asked(value: float, strict: bool, code: int) -> None:
    result = _finished(lambda: _report(value), strict=strict)
    assert result.exit_code == code
    assert "demo: title" in result.output


def test_incomplete_figures_end_with_1_and_say_so_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    result = _finished(lambda: _report(1, "3 samples of 4"), output=output, strict=True)
    assert result.exit_code == 1
    assert "incomplete" in result.output
    assert "3 samples of 4" in result.output
    data = json.loads(output.read_text())
    assert data["faults"] == ["3 samples of 4"]
    assert data["machine"]["cores"]


@pytest.mark.parametrize("fault", [BenchError("the gateway ended"), OSError("no room")])
def test_what_did_not_come_up_ends_with_1_and_no_table(fault: Exception) -> None:
    def measure() -> Report:
        raise fault

    before = signal.getsignal(signal.SIGTERM)
    result = _finished(measure)
    assert (result.exit_code, result.output) == (1, f"Error: {fault}\n")
    assert signal.getsignal(signal.SIGTERM) is before


def _nothing_measured() -> Report:
    raise AssertionError("measured before the files were looked at")


def test_files_that_cannot_be_written_are_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = _finished(_nothing_measured, output=tmp_path / "no" / "o.json")
    assert (lost.exit_code, lost.output.splitlines()[-1]) == (
        2,
        f"Error: {tmp_path}/no/o.json: there is no folder {tmp_path}/no.",
    )
    shut = tmp_path / "shut"
    shut.mkdir()
    kept = tmp_path / "kept.json"
    kept.write_text("older", encoding="utf-8")
    monkeypatch.setattr("os.access", lambda path, mode: path not in (shut, kept))
    for file in (shut / "o.json", kept):
        result = _finished(_nothing_measured, output=file)
        assert (result.exit_code, result.output.splitlines()[-1]) == (2, f"Error: {file} cannot be written.")
    assert kept.read_text(encoding="utf-8") == "older"


def test_a_page_is_looked_at_too_and_is_no_results_file(tmp_path: Path) -> None:
    for page, output, words in (
        (tmp_path / "no" / "p.html", None, "there is no folder"),
        (tmp_path / "one", tmp_path / "." / "one", "are the same file"),
    ):

        @click.command()
        def once(output: Path | None = output, page: Path = page) -> None:
            finish(_nothing_measured, output, False, page)

        result = CliRunner().invoke(once)
        assert result.exit_code == 2
        assert words in result.output


def test_an_older_file_stays_until_there_is_something_newer(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("older", encoding="utf-8")

    def measure() -> Report:
        raise BenchError("the gateway ended")

    assert _finished(measure, output=kept).exit_code == 1
    assert kept.read_text(encoding="utf-8") == "older"


def test_figures_that_cannot_be_written_in_the_end_are_shown_nevertheless(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()

    def measure() -> Report:
        folder.rmdir()
        return _report(1, "3 samples of 4")

    result = _finished(measure, output=folder / "o.json")
    assert result.exit_code == 1
    assert "demo: title" in result.output
    assert "3 samples of 4" in result.output
    assert result.output.endswith(f"{folder}/o.json could not be written: No such file or directory\n")
    assert isinstance(result.exception, SystemExit)


def test_every_bench_can_write_its_results() -> None:
    for name in command.commands:
        shown = CliRunner().invoke(command, [name, "--help"]).output
        assert "--output" in shown
        assert "--strict" in shown


def test_a_key_must_not_come_back_while_it_is_watched() -> None:
    result = CliRunner().invoke(command, ["sharing", "--watch-s", "2", "--retry-after-s", "2"])
    assert result.exit_code == 2
    assert "must be shorter" in result.output


@pytest.mark.parametrize(("load", "said"), [(0.9, False), (1.1, True)])
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, load: float, said: bool) -> None:
    monkeypatch.setattr(machine, "facts", lambda: {"load_1m": load, "cores": 2})
    assert ("busy already" in _finished(lambda: _report(1)).output) is said


def test_benches_of_other_modules_are_imported_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ELSEWHERE", {"twin": "app.bench.cli:storm", "lost": "app.bench.nowhere:command"})
    listed = CliRunner().invoke(command, ["--help"]).output
    assert "twin" in listed
    assert "lost" not in listed
    assert "Four upstream keys" in CliRunner().invoke(command, ["twin", "--help"]).output
    assert CliRunner().invoke(command, ["lost"]).exit_code == 2
    monkeypatch.setattr(cli, "ELSEWHERE", {"odd": "app.bench.cli:ELSEWHERE"})
    assert CliRunner().invoke(command, ["odd"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nowhere"], "is no URL of a gateway"),
        (["--against-pid", "1"], "--against-pid"),
        (["--requests", "0"], "--requests"),
        (["--worker-class", "eventlet"], "--worker-class"),
    ],
)
def test_options_that_mean_nothing_are_told_before_anything_starts(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(command, ["latency", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("lacks", "reached", "strict", "code"),
    [([], 1, True, 0), ([], 2, False, 0), ([], 2, True, 3), (["gone"], 1, False, 1), (["gone"], 2, True, 1)],
)
def test_all_ends_as_its_worst_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: list[str], reached: float, strict: bool, code: int
) -> None:
    def parts(wish: suite.Wish) -> list[suite.Part]:
        assert (wish.quick, wish.rounds, [one.url for one in wish.against]) == (True, 2, ["http://a"])
        return [
            suite.Part("one", lambda tell: _report(1, *lacks), 1),
            suite.Part("two", lambda tell: _report(reached), 1),
        ]

    monkeypatch.setattr(suite, "parts", parts)
    output = tmp_path / "o.json"
    arguments = ["all", "--quick", "--rounds", "2", "--against", "http://a", "--output", str(output)]
    result = CliRunner().invoke(command, [*arguments, *(["--strict"] if strict else [])])
    assert result.exit_code == code, result.output
    data = json.loads(output.read_text())
    assert (list(data["parts"]), data["faults"]) == (["one", "two"], [f"one: {text}" for text in lacks])
    assert data["command"] == "command all --quick --rounds 2 --against http://a" + " --strict" * strict
