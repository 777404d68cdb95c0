"""observe/folding: a label has few values, whatever clients send (B41).

Pure.
"""

from __future__ import annotations

import pytest

from app.observe.folding import Fold, reason_label, status_label


def test_b41_the_first_names_stand_for_themselves() -> None:
    fold = Fold(2)
    assert [fold(name) for name in ("a", "b", "c", "a", "", "b", "d")] == [
        "a",
        "b",
        "other",
        "a",
        "",
        "b",
        "other",
    ]


def test_b41_no_name_stands_for_itself_at_zero() -> None:
    fold = Fold(0)
    assert [fold(name) for name in ("a", "")] == ["other", ""]


@pytest.mark.parametrize("name", ["x" * 101, "a\nb", "\ud800", "tab\t", "bell\x07"])
def test_b41_no_name_is_long_or_unprintable_and_takes_no_place(name: str) -> None:
    fold = Fold(1)
    assert fold(name) == "other"
    assert fold("x" * 100) == "x" * 100


@pytest.mark.parametrize(
    ("status", "label"), [(100, "100"), (599, "599"), (99, "other"), (600, "other"), (0, "other"), (-1, "other")]
)
def test_b41_a_status_is_a_status(status: int, label: str) -> None:
    assert status_label(status) == label


@pytest.mark.parametrize(
    ("outcome", "label"), [("529", "529"), ("999", "other"), ("connect_failed", "connect_failed"), ("", "")]
)
def test_b41_what_came_of_a_try_is_few_words(outcome: str, label: str) -> None:
    assert reason_label(outcome) == label
