"""What a bench found, as one value: a table for people, JSON for machines, faults that spoil it.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.bench.bootstrap import intervals
from app.bench.figures import Figures, median_of
from app.bench.table import NOTHING, shown, table
from app.bench.verdict import Judged, in_words, reached

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure in words, with its unit and the digits worth showing."""

    figure: str
    words: str
    unit: str = ""
    digits: int = 0


@dataclass(slots=True)
class Variant:
    """One column.

    Attributes:
        name: In the results file.
        words: In the table.
        rounds: The figures of each round.
        details: What each round has besides figures: counts by status, by key.
    """

    name: str
    words: str
    rounds: list[Figures] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one command.

    Attributes:
        bench: Its name.
        title: What was done, one line.
        settings: The options it ran with.
        rows: Lines of the table.
        variants: Columns of the table.
        judged: Aims and what was reached.
        faults: What is missing; anything here and the figures are not to be used.
        notes: Lines below the table.
    """

    bench: str
    title: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    variants: Sequence[Variant]
    judged: Sequence[Judged]
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def sections(self) -> Sequence[Report]:
        """What a page shows, one below the other."""
        return [self]

    @property
    def reached(self) -> bool:
        """Whether every aim is met, or one that would do instead."""
        return reached(self.judged)

    def text(self) -> str:
        """Title, figures, aims, notes."""
        medians = [median_of(variant.rounds) for variant in self.variants]
        lines = []
        for row in self.rows:
            cells = [shown(median.get(row.figure), row.unit, row.digits) for median in medians]
            if not all(cell == NOTHING for cell in cells):
                lines.append([row.words, *cells])
        parts = [self.title, "", table(["", *(variant.words for variant in self.variants)], lines)]
        if self.judged:
            parts += ["", table(["aim", "for", "over rounds", "bound", "reached", ""], self._aims())]
        return "\n".join([*parts, *(["", *self.notes] if self.notes else [])])

    def _aims(self) -> list[list[str]]:
        """One line for each aim."""
        rows = {row.figure: row for row in self.rows}
        words = {variant.name: variant.words for variant in self.variants}
        lines = []
        for one in self.judged:
            aim, row = one.aim, rows[one.aim.figure]
            value = shown(one.value, row.unit, row.digits)
            verdict = in_words(one, self.judged)
            lines.append([row.words, words[aim.variant], aim.over, aim.text(), value, verdict])
        return lines

    def json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What ``--output`` writes."""
        return {
            "bench": self.bench,
            "format": FORMAT,
            "title": self.title,
            "machine": dict(machine),
            "settings": dict(self.settings),
            "variants": {one.name: _variant(one) for one in self.variants},
            "aims": [one.row() for one in self.judged],
            "faults": list(self.faults),
        }


def _variant(variant: Variant) -> dict[str, Any]:
    details: list[dict[str, Any]] = variant.details or [{} for _ in variant.rounds]
    return {
        "median": median_of(variant.rounds),
        "interval": intervals(variant.rounds),
        "rounds": [{**figures, **more} for figures, more in zip(variant.rounds, details, strict=True)],
    }
