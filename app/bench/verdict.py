"""What a bench aims at, and whether its figures reach that.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from app.bench.figures import median_of, worst_of


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound on one figure of one variant.

    Attributes:
        variant: Whose figure.
        figure: Its name.
        relation: Which side of ``bound`` is good; the bound itself is.
        bound: In the figure's unit.
        over: ``median`` of the rounds, or the ``worst`` of them: for what may not happen even once.
        either: Of the aims with the same word here, one has to be met; empty: this one.
    """

    variant: str
    figure: str
    relation: Literal["<=", ">="]
    bound: float
    over: Literal["median", "worst"] = "median"
    either: str = ""

    def value(self, rounds: Sequence[Mapping[str, float | None]]) -> float | None:
        """The figure that is held against the bound."""
        if self.over == "worst":
            return worst_of(rounds, self.figure, high=self.relation == "<=")
        return median_of(rounds).get(self.figure)

    def met_by(self, value: float | None) -> bool:
        """Whether ``value`` is good; what was not measured never is."""
        if value is None:
            return False
        return value <= self.bound if self.relation == "<=" else value >= self.bound

    def text(self) -> str:
        """The bound as a table shows it."""
        sign = "≤" if self.relation == "<=" else "≥"
        return f"{sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Judged:
    """An aim and what was reached."""

    aim: Aim
    value: float | None
    met: bool

    def row(self) -> dict[str, object]:
        """As the results file has it."""
        aim = self.aim
        group: dict[str, object] = {"either": aim.either} if aim.either else {}
        return {
            "variant": aim.variant,
            "figure": aim.figure,
            "over": aim.over,
            "relation": aim.relation,
            "bound": aim.bound,
            "value": self.value,
            "met": self.met,
            **group,
        }


def judge(aims: Sequence[Aim], variants: Mapping[str, Sequence[Mapping[str, float | None]]]) -> list[Judged]:
    """Every aim against the rounds of its variant."""
    found = []
    for aim in aims:
        value = aim.value(variants[aim.variant])
        found.append(Judged(aim, value, aim.met_by(value)))
    return found


def reached(judged: Sequence[Judged]) -> bool:
    """Whether every aim is met, or another one that would do instead."""
    return all(enough(one, judged) for one in judged)


def enough(one: Judged, judged: Sequence[Judged]) -> bool:
    """Whether ``one`` is met, or another of ``judged`` that would do instead."""
    return one.met or any(other.met for other in judged if one.aim.either and other.aim.either == one.aim.either)


def in_words(one: Judged, judged: Sequence[Judged]) -> str:
    """The outcome of ``one`` as a table shows it."""
    if one.met:
        return "met"
    return "missed, the other met" if enough(one, judged) else "missed"
