"""Percentiles are measured values, medians need every round."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from app.bench.figures import median_of, milliseconds, percentile, worst_of


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.5, None),
        ([7.0], 0.0, 7.0),
        ([7.0], 1.0, 7.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 0.51, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 1.0, 4.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], share: float, wanted: float | None) -> None:
    assert percentile(values, share) == wanted


def test_a_median_is_taken_figure_by_figure() -> None:
    rounds = [{"a": 1.0, "b": 10.0}, {"a": 3.0, "b": 30.0}, {"a": 2.0, "b": 20.0}]
    assert median_of(rounds) == {"a": 2.0, "b": 20.0}
    assert median_of(rounds[:2]) == {"a": 2.0, "b": 20.0}
    assert median_of([]) == {}


def test_a_figure_that_a_round_lacks_has_no_median_and_no_worst() -> None:
    rounds: list[Mapping[str, float | None]] = [{"a": 1.0, "b": None}, {"a": 2.0, "b": 5.0}, {"a": 0.0, "b": 6.0}]
    assert median_of(rounds) == {"a": 1.0, "b": None}
    assert worst_of(rounds, "b", high=True) is None
    assert worst_of([], "a", high=True) is None
    assert worst_of(rounds, "absent", high=False) is None


def test_the_worst_is_on_the_side_that_is_bad() -> None:
    rounds = [{"a": 1.0}, {"a": 3.0}]
    assert worst_of(rounds, "a", high=True) == 3.0
    assert worst_of(rounds, "a", high=False) == 1.0


def test_milliseconds() -> None:
    assert milliseconds(0.0123456) == 12.346
    assert milliseconds(None) is None
