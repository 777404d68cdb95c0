"""Whether a results file may be quoted: it is whole, its numbers are numbers, its aims follow from its rounds.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from app.bench.results import MACHINE
from app.bench.verdict import Aim

_DIGITS: Final = 1e-9


def lacks(data: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against a results file, one report or several.

    Args:
        data: Its content.

    Raises:
        KeyError: Something is not there; as TypeError, AttributeError and ValueError: not what it should be.
    """
    yield from _faults(data)
    if not _finite(data):
        yield "it has a number that is none"
    for bench, part in data["parts"].items() if data["bench"] == "all" else [(data["bench"], data)]:
        if part is not data:
            yield from (f"{bench}: {text}" for text in _faults(part))
        yield from (f"{bench}: {text}" for text in _report(part))


def _faults(report: Mapping[str, Any]) -> Iterator[str]:
    """The faults that a report names itself; to be silent about them is one too."""
    if not isinstance(report.get("faults"), list):
        yield "nothing says whether it has faults"
    yield from (f"incomplete, so not to be used: {text}" for text in report.get("faults") or ())


def _report(report: Mapping[str, Any]) -> Iterator[str]:
    """What one report has in its variants and aims."""
    variants = report["variants"]
    if not variants:
        yield "nothing was measured"
    # A peer that could not be measured is shown as such.
    known = report.get("settings", {}).get("peers", {})
    for name, variant in variants.items():
        if not variant["rounds"] and not known.get(name, {}).get("faults"):
            yield f"{name} has no rounds"
    for row in report["aims"]:
        if not _follows(row, variants[row["variant"]]["rounds"]):
            yield f"{row['variant']}.{row['figure']}: what was reached does not follow from the rounds"


def _follows(row: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether value and verdict of an aim are those of its rounds."""
    figure = row["figure"]
    if row["relation"] not in ("<=", ">=") or row["over"] not in ("median", "worst"):
        return False
    aim = Aim(row["variant"], figure, row["relation"], row["bound"], row["over"])
    value = aim.value([{figure: one.get(figure)} for one in rounds])
    same = value is row["value"] if value is None or row["value"] is None else _near(value, row["value"])
    return same and row["met"] is aim.met_by(value)


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_DIGITS, abs_tol=_DIGITS)


def _finite(data: object) -> bool:
    """Whether all numbers in a value from JSON are finite."""
    if isinstance(data, Mapping):
        return all(_finite(one) for one in data.values())
    if isinstance(data, list):
        return all(_finite(one) for one in data)
    return not isinstance(data, float) or math.isfinite(data)


def machines(results: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    """What tells apart the machines that the files of a section come from: one, if they may stand together."""
    whole, peers = results.get("all"), results.get("peers")
    reports = [one for one in (whole, peers, *(whole or {}).get("parts", {}).values()) if one]
    return {tuple(one["machine"].get(name) for name in MACHINE) for one in reports if one.get("machine")}
