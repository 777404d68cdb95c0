"""observe/growth: memory now against the least within the hour (B44).

Pure.
"""

from __future__ import annotations

from app.observe.growth import Growth


def test_b44_the_first_minute_is_left_out() -> None:
    growth = Growth(1000.0)
    assert growth.take(1030.0, 10_000_000) is None
    assert growth.take(1060.0, 90_000_000) == 0.0
    assert growth.take(1065.0, 95_000_000) == 5.0


def test_b44_it_is_held_against_the_least_of_the_last_hour() -> None:
    growth = Growth(0.0)
    assert growth.take(100.0, 80_000_000) == 0.0
    assert growth.take(105.0, 70_000_000) == 0.0
    assert growth.take(110.0, 75_000_000) == 5.0
    for now in range(200, 3700, 5):
        assert growth.take(float(now), 130_000_000) == 60.0
    assert growth.take(3705.0, 131_000_000) == 1.0
    assert len(growth._least) <= 61
