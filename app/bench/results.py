"""Results files of ``penstock bench`` as a gate reads them: rounds of figures, and what makes two comparable.

A file is one report (``bench latency --output``) or all of them (``bench all --output``, under ``parts``).
Whatever is wrong with it ends in a ``ResultsError`` of one sentence that names the file; nothing is filled in.

Pure: but for ``read``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.bench.bootstrap import LEAST

FORMATS: Final = (1, 2)
# Two measurements may differ in these settings: rounds are resampled on each side, and what is compared may stand
# at two addresses.
MAY_DIFFER: Final = frozenset({"rounds", "against"})
# What makes a machine another one; memory, kernel and package versions may be the very thing that is compared.
MACHINE: Final = ("cpu", "cores")
# Beyond these a number is a broken file, and ratios of such would overflow.
_SMALLEST, _LARGEST = 1e-9, 1e15

Round = Mapping[str, Any]


class ResultsError(Exception):
    """A results file that nothing can be decided on; the message is for people."""


@dataclass(frozen=True, slots=True)
class Results:
    """One report of a results file.

    Attributes:
        file: As it was given, for messages.
        bench: What was measured.
        machine: Facts about where.
        settings: The options of the bench.
        variants: The rounds of each.
    """

    file: str
    bench: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    variants: Mapping[str, Sequence[Round]]

    def rounds(self, variant: str) -> Sequence[Round]:
        """The rounds of a variant.

        Raises:
            ResultsError: There is no such variant, it has not as many rounds as its settings say, or too
                few to know how far they scatter.
        """
        found = self.variants.get(variant)
        if found is None:
            known = ", ".join(sorted(self.variants)) or "none"
            raise ResultsError(f"{self.file}: there is no variant {variant!r} (there is: {known}).")
        if len(found) < LEAST:
            raise ResultsError(f"{self.file}: {variant} has {len(found)} round(s), at least {LEAST} are needed.")
        planned = self.settings.get("starts" if variant == "cold_start" else "rounds", len(found))
        if planned != len(found):
            text = f"{variant} has {len(found)} rounds, but its settings say {_brief(planned)}"
            raise ResultsError(f"{self.file}: {text}.")
        return found

    def series(self, variant: str, figure: str) -> list[float]:
        """A figure over the rounds of a variant: each above zero, or from 0 to 100 for a ``_pct``.

        Raises:
            ResultsError: A round has no such figure, or none that can have been measured.
        """
        rounds = self.rounds(variant)
        values = []
        for number, one in enumerate(rounds, start=1):
            where = f"{self.file}: {variant}.{figure} of round {number} of {len(rounds)}"
            values.append(_measured(one.get(figure), where, share=figure.endswith("_pct")))
        return values


def _measured(value: object, where: str, *, share: bool) -> float:
    """A value from a file, if it can have been measured.

    Raises:
        ResultsError: It cannot.
    """
    if value is None:
        raise ResultsError(f"{where} is missing.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ResultsError(f"{where} is {_brief(value)}, not a number.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where} is {value}, which is no measurement.")
    if share and not 0 <= value <= 100:
        raise ResultsError(f"{where} is {_brief(value)}, not from 0 to 100.")
    if not share and value <= 0:
        raise ResultsError(f"{where} is {_brief(value)}, but has to be above zero.")
    if not share and not _SMALLEST <= value <= _LARGEST:
        raise ResultsError(f"{where} is {_brief(value)}, which is no measurement.")
    return float(value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def parse(text: str, file: str, part: str) -> Results:
    """The report ``part`` of a results file.

    Args:
        text: The content of the file.
        file: Its name, for messages.
        part: Which bench is asked for; of several if the file is of ``bench all``.

    Raises:
        ResultsError: It is no results file, has no such report, or says of itself that it is not to be used.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{file}: this is not JSON.") from error
    whole = _table(whole, file, "the file")
    if whole.get("format") not in FORMATS or not isinstance(whole.get("bench"), str):
        raise ResultsError(f"{file}: this is not a results file of penstock bench.")
    _without_faults(whole, file)
    report = whole
    if whole["bench"] == "all":
        parts = _table(whole.get("parts"), file, "parts")
        if part not in parts:
            raise ResultsError(f"{file}: there is no part {part!r} (there is: {', '.join(parts) or 'none'}).")
        report = {"machine": whole.get("machine"), **_table(parts[part], file, part)}
        _without_faults(report, file)
    if report.get("bench") != part:
        raise ResultsError(
            f"{file}: this is of bench {_brief(report.get('bench'))}, asked for is {part!r} (--part)."
        )
    return Results(
        file,
        part,
        _machine(_table(report.get("machine"), file, "machine"), file),
        _table(report.get("settings"), file, "settings"),
        dict(_variants(_table(report.get("variants"), file, "variants"), file)),
    )


def read(path: Path, part: str) -> Results:
    """The report ``part`` of the results file at ``path``.

    Raises:
        ResultsError: It cannot be read; or as ``parse``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ResultsError(f"{path}: this is not text in UTF-8.") from error
    return parse(text, str(path), part)


def _table(value: object, file: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ResultsError(f"{file}: {what} is {'missing' if value is None else 'not an object'}.")
    return value


def _without_faults(report: Mapping[str, Any], file: str) -> None:
    """Refuses what the bench itself refused.

    Raises:
        ResultsError: There are faults, or nothing says that there are none.
    """
    faults = report.get("faults")
    if not isinstance(faults, list):
        raise ResultsError(f"{file}: nothing says whether the measurement has faults.")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ResultsError(f"{file}: the measurement has faults, so it is not to be used: {faults[0]}{more}")


def _machine(machine: dict[str, Any], file: str) -> dict[str, Any]:
    """Refuses facts that do not tell one machine from another; a processor without a name is one."""
    if "cpu" not in machine or not machine.get("cores"):
        raise ResultsError(f"{file}: the machine's processor or number of cores is missing.")
    return machine


def _variants(variants: dict[str, Any], file: str) -> Iterator[tuple[str, list[Round]]]:
    for name, variant in variants.items():
        rounds = _table(variant, file, name).get("rounds")
        if not isinstance(rounds, list):
            raise ResultsError(f"{file}: {name} has no rounds.")
        yield name, [_table(one, file, f"round {number} of {name}") for number, one in enumerate(rounds, start=1)]


def same_terms(before: Results, after: Results, *, allow_other_machine: bool) -> None:
    """Refuses what cannot be compared.

    Raises:
        ResultsError: Another bench, other settings, or another machine; the message says what differs.
    """
    found = []
    if before.bench != after.bench:
        found.append(f"bench ({before.bench}, {after.bench})")
    names = sorted((before.settings.keys() | after.settings.keys()) - MAY_DIFFER)
    found += _differences("setting", names, before.settings, after.settings)
    if not allow_other_machine:
        found += _differences("machine", MACHINE, before.machine, after.machine)
    if found:
        hint = (
            "; --allow-other-machine compares nevertheless"
            if all(one.startswith("machine") for one in found)
            else ""
        )
        raise ResultsError(f"{before.file} and {after.file} cannot be compared: {', '.join(found)}{hint}.")


def _differences(kind: str, names: Sequence[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind} {name} ({_shown(one, name)}, {_shown(other, name)})"
        for name in names
        if (name in one) != (name in other) or one.get(name) != other.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return _brief(values[name]) if name in values else "not there"
