"""How far a median of few rounds can be trusted."""

from __future__ import annotations

import pytest

from app.bench.bootstrap import interval, intervals


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, None, 2.0, 3.0], [None, None, None]])
def test_too_little_has_no_interval(values: list[float | None]) -> None:
    assert interval(values) is None


def test_equal_rounds_leave_no_doubt() -> None:
    assert interval([4.0] * 5) == (4.0, 4.0)


def test_an_interval_holds_the_median_lies_within_the_rounds_and_is_the_same_again() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0]
    low, high = interval(values) or (0.0, 0.0)
    assert 1.0 <= low < 4.0 < high <= 9.0
    assert interval(values) == (low, high)


def test_a_smaller_share_is_narrower_and_an_outlier_alone_does_not_move_it() -> None:
    values = [float(number) for number in range(21)]
    wide, narrow = interval(values, 0.95), interval(values, 0.5)
    assert wide
    assert narrow
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert interval([*values[:-1], 1e9]) == wide


def test_each_figure_has_its_own() -> None:
    rounds: list[dict[str, float | None]] = [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": None}, {"a": 1.0, "b": 1.0}]
    assert intervals(rounds) == {"a": [1.0, 1.0], "b": None}
    assert intervals([]) == {}
