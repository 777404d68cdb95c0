from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.bench.peers_scripts import SCRIPTS
from app.bench.section import BEGIN, END, SectionError, between, collected, markdown, put, stale
from app.bench.section_cli import command
from app.bench.servers import ROOT

MACHINE = {
    "at": "2026-11-21T10:00:00+00:00",
    "cpu": "Some CPU",
    "cores": 2,
    "memory_kib": 8 * 2**20,
    "load_1m": 0.1,
    "system": "Linux 6",
    "python": "3.11.7",
    "packages": {"gunicorn": "27.0.1", "gevent": None, "flask": "3.1.3"},
}


def aim(variant: str, figure: str, bound: float, value: float | None, **more: Any) -> dict[str, Any]:
    """A row of a results file's aims."""
    relation = more.get("relation", "<=")
    met = value is not None and (value <= bound if relation == "<=" else value >= bound)
    row = {"variant": variant, "figure": figure, "over": "median", "relation": relation, "bound": bound}
    return {**row, "value": value, "met": met, **more}


def report(bench: str, aims: list[dict[str, Any]], interval: dict[str, Any] | None = None) -> dict[str, Any]:
    """A results file of one bench."""
    variants: dict[str, Any] = {}
    for one in aims:
        variant = variants.setdefault(
            one["variant"], {"median": {}, "interval": interval or {}, "rounds": [{}, {}, {}]}
        )
        for number, row in enumerate(variant["rounds"]):
            spread = (number - 1) * (one["over"] == "median")
            row[one["figure"]] = one["value"] and one["value"] + spread
    head = {"bench": bench, "format": 1, "machine": MACHINE, "settings": {}, "faults": []}
    return {**head, "variants": variants, "aims": aims, "command": f"penstock bench {bench} --rounds 5"}


LATENCY = report("latency", [aim("gateway", "floor_ratio", 2.5, 2.1234)], {"floor_ratio": [2.1, 2.249]})
STREAMING = report(
    "streaming",
    [
        aim("gateway", "cpu_ms_per_event", 0.06, 0.07),
        aim("gateway", "floor_ratio", 0.27, 0.2),
        aim("burst", "events_per_core_s", 25_000, 31_234.5, relation=">="),
        aim("gateway", "error_pct", 0, 0.0, over="worst"),
    ],
    {"error_pct": [0, 0], "events_per_core_s": None},
)
WHOLE = {
    "bench": "all",
    "format": 2,
    "machine": MACHINE,
    "parts": {
        one["bench"]: {name: value for name, value in one.items() if name != "command"}
        for one in (LATENCY, STREAMING)
    },
    "faults": [],
    "command": "penstock bench all --rounds 5",
}


def changed(data: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy with another value at ``path``."""
    found = copy.deepcopy(data)
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return found


def test_the_aims() -> None:
    text = markdown(collected({"all.json": WHOLE}))
    assert text.startswith("## Performance\n\n")
    assert "| JSON: CPU per request over the WSGI floor's | ≤ 2.5 × | 2.12 × (2.1 to 2.25) | met |" in text
    assert "| Streams: CPU per event | ≤ 0.06 ms | 0.07 ms | missed; the other is met |" in text
    assert "| or: CPU per event over the floor's request | ≤ 0.27 × | 0.2 × | met |" in text
    assert "| Back to back: events per second of CPU | ≥ 25,000 | 31,234 | met |" in text
    assert "| Streams: errors | ≤ 0 % | 0 % | met |" in text


@pytest.mark.parametrize(
    ("event_ms", "ratio", "verdicts"),
    [(0.05, 0.3, ("met", "missed; the other is met")), (0.07, 0.3, ("**missed**", "**missed**"))],
)
def test_one_of_two_aims_is_enough(event_ms: float, ratio: float, verdicts: tuple[str, str]) -> None:
    aims = [aim("gateway", "cpu_ms_per_event", 0.06, event_ms), aim("gateway", "floor_ratio", 0.27, ratio)]
    text = markdown(collected({"streaming.json": report("streaming", aims)}))
    assert f"≤ 0.06 ms | {event_ms:g} ms | {verdicts[0]} |" in text
    assert f"≤ 0.27 × | {ratio:g} × | {verdicts[1]} |" in text


def test_what_was_missed_or_not_measured_is_shown() -> None:
    aims = [aim("gateway", "floor_ratio", 2.5, 2.6), aim("gateway", "error_pct", 0, None)]
    text = markdown(collected({"latency.json": report("latency", aims)}))
    assert "| ≤ 2.5 × | 2.6 × | **missed** |" in text
    assert "| JSON: errors | ≤ 0 % | not measured | **missed** |" in text


def test_a_figure_without_words_is_shown_by_its_names() -> None:
    text = markdown(collected({"new.json": report("new", [aim("mine", "colour", 1, 0.5)])}))
    assert "| new, mine: colour | ≤ 1 | 0.5 | met |" in text


def test_where_and_how() -> None:
    text = markdown(collected({"all.json": WHOLE}))
    assert (
        "Measured on 2026-11-21, with a load of 0.1 when it began: Some CPU, 2 cores, 8 GiB, Linux 6, "
        "Python 3.11.7, gunicorn 27.0.1, flask 3.1.3.\n"
    ) in text
    assert "```sh\npenstock bench all --rounds 5 --output all.json\npenstock bench section all.json\n```" in text


def test_single_files_have_commands_of_their_own() -> None:
    streaming = {name: value for name, value in STREAMING.items() if name != "command"}
    text = markdown(collected({"a.json": LATENCY, "b.json": streaming}))
    assert (
        "```sh\npenstock bench latency --rounds 5 --output latency.json\n"
        "penstock bench streaming --output streaming.json\n"
        "penstock bench section latency.json streaming.json\n```"
    ) in text
    text = markdown(collected({"all.json": WHOLE, "latency.json": LATENCY}))
    assert (
        "```sh\npenstock bench all --rounds 5 --output all.json\n"
        "penstock bench latency --rounds 5 --output latency.json\n"
        "penstock bench section all.json latency.json\n```"
    ) in text


def test_where_peers_were_installed_is_nobodys_business() -> None:
    data = changed(WHOLE, "command", to="penstock bench all --cache '/some/where else' --rounds 5")
    found = collected({"all.json": data})
    assert found["all"]["command"] == "penstock bench all --rounds 5"
    assert "penstock bench all --rounds 5 --output all.json" in markdown(found)
    assert "/some/where" not in json.dumps(collected({"one.json": {"bench": "section", "all": data}}))


def test_several_files_become_one() -> None:
    newer = report("latency", [aim("gateway", "floor_ratio", 2.5, 1.5)])
    found = collected({"all.json": WHOLE, "latency.json": newer})
    assert list(found["all"]["parts"]) == ["latency", "streaming"]
    assert found["all"]["parts"]["latency"] == newer
    assert "command" not in WHOLE["parts"]["latency"]  # type: ignore[index]
    assert collected({"results.json": found}) == found
    alone = collected({"latency.json": LATENCY})
    assert (alone["bench"], alone["format"], list(alone["all"]["parts"])) == ("section", 1, ["latency"])
    assert "peers" not in alone


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "this is not a results file"),
        ({"format": 1}, "this is not a results file"),
        (
            changed(WHOLE, "faults", to=["latency: too few"]),
            "a.json: incomplete, so not to be used: latency: too few",
        ),
        ({"bench": "section", "all": changed(WHOLE, "faults", to=["x"])}, "a.json: all: incomplete"),
        ({"bench": "section", "peers": 3}, "a.json: peers: this is not a results file"),
        ({"bench": "section"}, "there is nothing in these files"),
    ],
)
def test_files_that_no_section_is_made_of(data: Any, words: str) -> None:
    with pytest.raises(SectionError, match=words):
        collected({"a.json": data})


RATIO: dict[str, Any] = LATENCY["aims"][0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(LATENCY, "faults", to=None), "nothing says whether it has faults"),
        (
            {name: value for name, value in LATENCY.items() if name != "faults"},
            "nothing says whether it has faults",
        ),
        (changed(WHOLE, "parts", "latency", "faults", to=None), "latency: nothing says whether it has faults"),
        (changed(WHOLE, "parts", "latency", "faults", to=["x"]), "latency: incomplete, so not to be used: x"),
        (changed(LATENCY, "variants", to={}), "nothing was measured"),
        (changed(LATENCY, "variants", "gateway", "rounds", to=[]), "latency: gateway has no rounds"),
        (changed(LATENCY, "variants", "gateway", "median", to={"x": float("nan")}), "a number that is none"),
        (changed(LATENCY, "variants", "gateway", "rounds", to=[{"x": float("inf")}]), "a number that is none"),
        (changed(LATENCY, "aims", to=[{**RATIO, "value": 2.1235}]), "gateway.floor_ratio: what was reached"),
        (changed(LATENCY, "aims", to=[{**RATIO, "value": None}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "met": False}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "met": 1}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "bound": 2.0}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "over": "worst"}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "over": "best"}]), "does not follow from the rounds"),
        (changed(LATENCY, "aims", to=[{**RATIO, "relation": "<"}]), "does not follow from the rounds"),
    ],
)
def test_figures_that_nobody_measured_are_not_quoted(data: Any, words: str) -> None:
    for file in (data, {"bench": "section", "all": data} if data["bench"] == "all" else data):
        with pytest.raises(SectionError, match=words):
            collected({"a.json": file})


@pytest.mark.parametrize("fact", [{"cpu": "Other CPU"}, {"cores": 4}])
def test_files_of_several_machines_are_no_section(fact: dict[str, Any]) -> None:
    other = {**MACHINE, **fact}
    for first, second in (
        (WHOLE, changed(STREAMING, "machine", to=other)),
        (LATENCY, changed(STREAMING, "machine", to=other)),
        (changed(WHOLE, "parts", "latency", "machine", to=other), STREAMING),
        (LATENCY, {"bench": "section", "all": changed(WHOLE, "machine", to=other)}),
    ):
        with pytest.raises(SectionError, match="different machines"):
            collected({"a.json": first, "b.json": second})
    later = changed(STREAMING, "machine", to={**MACHINE, "at": "2026-12-01T00:00:00", "load_1m": 1.0})
    assert collected({"a.json": WHOLE, "b.json": later})


@pytest.mark.parametrize("path", [("machine",), ("parts",), ("parts", "latency", "aims", 0)])
def test_a_file_that_is_not_whole(path: tuple[str | int, ...]) -> None:
    with pytest.raises(SectionError, match="not whole"):
        markdown(collected({"all.json": changed(WHOLE, *path, to={})}))


README = f"# Penstock\n\n{BEGIN}\nold\n{END}\n\n## Next\n"


def test_the_section_goes_between_the_marks() -> None:
    results = collected({"all.json": WHOLE})
    text = markdown(results)
    fresh = put(README, text)
    assert fresh == f"# Penstock\n\n{BEGIN}\n{text}{END}\n\n## Next\n"
    assert between(fresh) == f"\n{text}"
    assert put(fresh, text) == fresh
    assert stale(README, results)
    assert not stale(fresh, results)
    assert stale(fresh.replace("2.12", "2.11"), results)


@pytest.mark.parametrize("readme", ["", BEGIN, END, f"{END} {BEGIN}"])
def test_without_marks_there_is_no_place_for_it(readme: str) -> None:
    assert between(readme) is None
    assert stale(readme, collected({"all.json": WHOLE}))
    with pytest.raises(SectionError, match="there is no <!-- performance: begin -->"):
        put(readme, "text")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps(WHOLE), encoding="utf-8")
    (tmp_path / "latency.json").write_text(json.dumps(LATENCY), encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    files = [str(tmp_path / "all.json"), str(tmp_path / "latency.json")]
    shown = CliRunner().invoke(command, files)
    assert (shown.exit_code, shown.output) == (0, markdown(collected({"a": WHOLE, "b": LATENCY})))
    one, readme = tmp_path / "results.json", tmp_path / "README.md"
    quiet = CliRunner().invoke(command, [*files, "--collect", str(one), "--into", str(readme)])
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert not stale(readme.read_text(encoding="utf-8"), json.loads(one.read_text(encoding="utf-8")))


@pytest.mark.parametrize("content", ["no JSON", json.dumps(changed(WHOLE, "faults", to=["it broke"]))])
def test_the_command_refuses(tmp_path: Path, content: str) -> None:
    (tmp_path / "all.json").write_text(content, encoding="utf-8")
    result = CliRunner().invoke(command, [str(tmp_path / "all.json"), "--collect", str(tmp_path / "one.json")])
    assert result.exit_code == 1
    assert not (tmp_path / "one.json").exists()


def test_the_readme_shows_what_the_results_file_gives() -> None:
    results = json.loads((SCRIPTS / "results.json").read_text(encoding="utf-8"))
    again = "penstock bench section deploy/peers/results.json --into README.md"
    assert not stale((ROOT / "README.md").read_text(encoding="utf-8"), results), again
