"""One outcome, for people and for machines."""

from __future__ import annotations

from dataclasses import replace

from app.bench.report import Report, Row, Variant
from app.bench.verdict import Aim, judge


def _report() -> Report:
    variants = [
        Variant("without", "no gateway", [{"ok": 40.0, "bad": 9.0}]),
        Variant(
            "with",
            "gateway",
            [{"ok": 100.0, "bad": 0.0}, {"ok": 99.0, "bad": 0.0}, {"ok": 100.0, "bad": 2.0}],
            [{"n": 1}, {"n": 2}, {"n": 3}],
        ),
    ]
    aims = [Aim("with", "ok", ">=", 99.5), Aim("with", "bad", "<=", 0, "worst")]
    rows = [Row("ok", "success", "%", 1), Row("bad", "mishaps"), Row("none", "never measured"), Row("free", "-")]
    judged = judge(aims, {one.name: one.rounds for one in variants})
    return Report("demo", "demo: a title", {"rounds": 3}, rows, variants, judged, ["a fault"], ["a note"])


def test_the_table_shows_medians_aims_and_what_was_missed() -> None:
    lines = _report().text().splitlines()
    assert lines[0] == "demo: a title"
    assert lines[2].split() == ["no", "gateway", "gateway"]
    assert lines[4].split() == ["success", "40.0", "%", "100.0", "%"]
    assert lines[5].split() == ["mishaps", "9", "0"]
    assert lines[7].split() == ["aim", "for", "over", "rounds", "bound", "reached"]
    assert lines[9].split() == ["success", "gateway", "median", "≥", "99.5", "100.0", "%", "met"]
    assert lines[10].split() == ["mishaps", "gateway", "worst", "≤", "0", "2", "missed"]
    assert lines[11:] == ["", "a note"]


def test_without_aims_there_is_no_table_of_them() -> None:
    report = replace(_report(), judged=[], notes=[])
    variants = [Variant("v", "words", [{"ok": 1.0}])]
    text = replace(report, variants=variants).text()
    assert "aim" not in text
    assert text.endswith("success  1.0 %")


def test_the_results_file_has_all_rounds() -> None:
    data = _report().json({"cores": 2})
    assert data["variants"] == {
        "without": {
            "median": {"ok": 40.0, "bad": 9.0},
            "interval": {"ok": None, "bad": None},
            "rounds": [{"ok": 40.0, "bad": 9.0}],
        },
        "with": {
            "median": {"ok": 100.0, "bad": 0.0},
            "interval": {"ok": [99.0, 100.0], "bad": [0.0, 2.0]},
            "rounds": [
                {"ok": 100.0, "bad": 0.0, "n": 1},
                {"ok": 99.0, "bad": 0.0, "n": 2},
                {"ok": 100.0, "bad": 2.0, "n": 3},
            ],
        },
    }
    assert [(aim["figure"], aim["value"], aim["met"]) for aim in data["aims"]] == [
        ("ok", 100.0, True),
        ("bad", 2.0, False),
    ]
    rest = {name: data[name] for name in ("bench", "format", "machine", "settings", "faults", "title")}
    assert rest == {
        "bench": "demo",
        "format": 1,
        "machine": {"cores": 2},
        "settings": {"rounds": 3},
        "faults": ["a fault"],
        "title": "demo: a title",
    }


def test_all_aims_have_to_be_met() -> None:
    report = _report()
    assert not report.reached
    assert replace(report, judged=[one for one in report.judged if one.met]).reached
