"""Tables line up, and say when there is nothing."""

from __future__ import annotations

import pytest

from app.bench.table import shown, table


@pytest.mark.parametrize(
    ("value", "unit", "digits", "wanted"),
    [
        (None, "ms", 0, "-"),
        (1234.5678, "ms", 0, "1,235 ms"),
        (0.5, "", 2, "0.50"),
        (0, "", 0, "0"),
    ],
)
def test_a_figure_is_shown_with_its_unit(value: float | None, unit: str, digits: int, wanted: str) -> None:
    assert shown(value, unit, digits) == wanted


def test_a_table_has_its_columns_side_by_side() -> None:
    text = table(["", "one", "two"], [["short", "1", "22,222"], ["a longer name", "1,000", ""]])
    assert text.splitlines() == [
        "                 one     two",
        "-------------  -----  ------",
        "short              1  22,222",
        "a longer name  1,000",
    ]
