"""gateway/life: serving, draining, cut (B50). The clock is passed in.

Pure.
"""

from __future__ import annotations

from app.gateway.life import Life


def test_b50_drains_once_and_cuts_after_its_time() -> None:
    life = Life(22.0)
    assert (life.draining, life.is_cut(1e12)) == (False, False)
    life.drain(100.0)
    life.drain(200.0)
    assert life.draining
    assert [life.is_cut(now) for now in (121.9, 122.0)] == [False, True]


def test_b50_drains_from_now_on() -> None:
    life = Life(0.0)
    life.drain()
    assert life.is_cut(float("inf"))
