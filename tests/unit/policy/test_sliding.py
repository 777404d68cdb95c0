"""policy/sliding: the window slides out what is old, and only that.

Pure.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policy.sliding import BUCKETS, Sliding


def seen(window: Sliding, now: float) -> tuple[int, int]:
    window.turn(now)
    return window.total, window.marked


def test_counts_and_marks_are_kept_apart() -> None:
    window = Sliding(10.0)
    window.add(0.0, 3, 1)
    window.add(0.0, 0, 2)
    assert seen(window, 0.0) == (3, 3)


@pytest.mark.parametrize(
    ("at", "now", "counted"), [(0.0, 9.99, 1), (0.0, 10.0, 0), (0.99, 9.99, 1), (0.99, 10.0, 0), (5.5, 1e9, 0)]
)
def test_an_event_counts_for_nine_tenths_of_the_window_and_at_most_the_whole(
    at: float, now: float, counted: int
) -> None:
    window = Sliding(10.0)
    window.add(at, 1, 1)
    assert seen(window, now) == (counted, counted)


def test_what_is_added_lets_go_what_is_old() -> None:
    window = Sliding(10.0)
    window.add(0.0, 5, 5)
    window.add(10.0, 1, 0)
    assert (window.total, window.marked) == (1, 0)


def test_a_clock_that_stands_still_or_steps_back_loses_nothing() -> None:
    window = Sliding(10.0)
    for now in (100.0, 100.0, 3.0, -1.0):
        window.add(now, 1, 1)
    assert seen(window, 50.0) == (4, 4)
    assert seen(window, 109.9) == (4, 4)
    assert seen(window, 110.0) == (0, 0)


def test_clear_forgets_for_good() -> None:
    window = Sliding(10.0)
    window.add(0.0, 7, 7)
    window.clear()
    assert (window.total, window.marked) == (0, 0)
    assert seen(window, 5.0) == (0, 0)
    assert seen(window, 10.0) == (0, 0)


@given(
    window_s=st.sampled_from([0.3, 1.0, 10.0, 60.0]),
    start=st.floats(0, 1e7),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=60),
)
def test_the_window_holds_what_is_recent(
    window_s: float, start: float, steps: list[tuple[float, int, int]]
) -> None:
    """At least what came in nine tenths of the window counts, at most what came in all of it."""
    window = Sliding(window_s)
    events: list[tuple[float, int, int]] = []
    now = start
    slack = window_s * 1e-3
    for share, total, marked in steps:
        now += share * window_s
        window.add(now, total, marked)
        events.append((now, total, marked))
        for which, have in ((1, window.total), (2, window.marked)):
            least = sum(one[which] for one in events if one[0] > now - window_s * (1 - 1 / BUCKETS) + slack)
            most = sum(one[which] for one in events if one[0] >= now - window_s - slack)
            assert least <= have <= most
