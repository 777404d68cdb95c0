"""When a key was left alone, on records made by hand."""

from __future__ import annotations

import pytest

from app.bench.sharing_figures import Record, faults, figures, told_at, unused

BEFORE = [(0.1, 200), (0.2, 200), (0.4, 200)]


def _record(*after_s: float, end_s: float = 3.5) -> Record:
    """A key that answered 429 at 1.0 s, and attempts on it after that; another key keeps the load going."""
    return {
        "k": [*BEFORE, (1.0, 429), *((1.0 + t_s, 200) for t_s in after_s)],
        "other": [(0.0, 200), (end_s, 200)],
    }


@pytest.mark.parametrize(
    ("after_s", "until_ms", "attempts"),
    [
        ((), 0.0, 0),
        ((0.125, 0.25), 250.0, 2),
        ((0.5, 1.5), 1500.0, 2),
        ((0.5, 1.501), None, 2),
        ((0.25, 2.5), 250.0, 1),  # beyond what is watched, where the load ends anyhow
    ],
)
def test_the_news_took_until_the_last_attempt(
    after_s: tuple[float, ...], until_ms: float | None, attempts: int
) -> None:
    assert figures(_record(*after_s), "k", 2.0, 3) == {
        "until_ms": until_ms,
        "left_alone": int(until_ms is not None),
        "attempts_after": attempts,
        "gap_ms": 300.0,
        "others": 3,
    }


def test_without_attempts_before_there_is_no_resolution() -> None:
    assert figures({"k": [(1.0, 429)]}, "k", 2.0, 0)["gap_ms"] is None


def test_a_trial_that_says_nothing() -> None:
    assert faults(_record(), "k", 2.0) == []
    assert faults(_record(end_s=2.5), "k", 2.0) == ["k: the load went on for 1.50 s after the 429, not for 2 s"]
    assert faults({"k": BEFORE}, "k", 2.0) == ["k never came to answer its 429"]
    assert faults({}, "k", 2.0) == ["k never came to answer its 429"]
    assert told_at(_record(), "k") == 1.0
    assert told_at(_record(), "other") is None


def test_keys_that_nobody_used() -> None:
    assert unused({"a": [(0.0, 200)], "b": []}, ["a", "b", "c"]) == ["b", "c"]
