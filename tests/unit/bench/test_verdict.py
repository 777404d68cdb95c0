"""Aims are held against the median or the worst round, and never met by what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest

from app.bench.verdict import Aim, in_words, judge, reached

ROUNDS: list[Mapping[str, float | None]] = [{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]


@pytest.mark.parametrize(
    ("relation", "bound", "over", "value", "met"),
    [
        ("<=", 2, "median", 2.0, True),
        ("<=", 1.9, "median", 2.0, False),
        (">=", 2, "median", 2.0, True),
        (">=", 2.1, "median", 2.0, False),
        ("<=", 4.9, "worst", 5.0, False),
        ("<=", 5, "worst", 5.0, True),
        (">=", 1.1, "worst", 1.0, False),
    ],
)
def test_an_aim(
    relation: Literal["<=", ">="], bound: float, over: Literal["median", "worst"], value: float, met: bool
) -> None:
    (found,) = judge([Aim("v", "a", relation, bound, over)], {"v": ROUNDS})
    assert (found.value, found.met) == (value, met)
    assert found.row() == {
        "variant": "v",
        "figure": "a",
        "over": over,
        "relation": relation,
        "bound": bound,
        "value": value,
        "met": met,
    }


@pytest.mark.parametrize("over", ["median", "worst"])
@pytest.mark.parametrize("rounds", [[], [{"a": None}], [{"a": 1.0}, {"a": None}]])
def test_what_was_not_measured_meets_nothing(
    rounds: list[Mapping[str, float | None]], over: Literal["median", "worst"]
) -> None:
    (found,) = judge([Aim("v", "a", ">=", 0, over)], {"v": rounds})
    assert (found.value, found.met) == (None, False)


def test_a_bound_in_words() -> None:
    assert Aim("v", "a", "<=", 1.15).text() == "≤ 1.15"
    assert Aim("v", "a", ">=", 99.9).text() == "≥ 99.9"


@pytest.mark.parametrize(
    ("bounds", "words", "all_of_it"),
    [
        ((1, 1), ["met", "met"], True),
        ((1, 0), ["met", "missed, the other met"], True),
        ((0, 1), ["missed, the other met", "met"], True),
        ((0, 0), ["missed", "missed"], False),
    ],
)
def test_of_two_aims_one_may_be_enough(bounds: tuple[float, float], words: list[str], all_of_it: bool) -> None:
    aims = [Aim("v", "a", "<=", bound, either="cost") for bound in bounds]
    other = Aim("v", "a", "<=", 1)
    judged = judge([*aims, other], {"v": [{"a": 1.0}]})
    assert [in_words(one, judged) for one in judged] == [*words, "met"]
    assert reached(judged) is all_of_it
    assert [one.row().get("either") for one in judged] == ["cost", "cost", None]


def test_an_aim_of_its_own_has_no_stand_in() -> None:
    judged = judge([Aim("v", "a", "<=", 0), Aim("v", "a", "<=", 1)], {"v": [{"a": 1.0}]})
    assert not reached(judged)
    assert in_words(judged[0], judged) == "missed"
