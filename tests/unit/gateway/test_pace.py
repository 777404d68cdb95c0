"""gateway/pace: when an event stream's pieces went out, and how long the pauses were.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.gateway import pace as module
from app.gateway.pace import LAST, Pace


def paced(monkeypatch: pytest.MonkeyPatch, *instants: float) -> Pace:
    clock: Iterator[float] = iter(instants)
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    made = Pace(b": beat\n\n")
    for _ in instants:
        made.step()
    return made


def test_a_stream_without_pieces_has_no_times() -> None:
    made = Pace(b"")
    assert (made.first_ms(5.0), made.gaps, made.gaps_ms) == (None, (), 0.0)


def test_one_piece_has_an_instant_and_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    made = paced(monkeypatch, 7.5)
    assert (made.first_ms(5.0), made.gaps, made.gaps_ms) == (2500.0, (), 0.0)


@pytest.mark.parametrize(
    ("pause_ms", "bucket"),
    [
        (0.0, 0),
        (0.99, 0),
        (1.01, 1),
        (1.99, 1),
        (2.01, 2),
        (3.99, 2),
        (4.01, 3),
        (1023.9, 10),
        (1024.1, 11),
        (65_535.9, 16),
        (65_536.1, 17),
        (600_000.0, 17),
        (1e9, 17),
    ],
)
def test_pauses_fall_into_buckets_by_bit_length(
    pause_ms: float, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = paced(monkeypatch, 100.0, 100.0 + pause_ms / 1000.0)
    assert made.gaps == (0,) * bucket + (1,)
    assert len(made.gaps) <= LAST + 1 == 18
    assert made.gaps_ms == pytest.approx(pause_ms)


def test_the_sum_and_the_counts_are_those_of_all_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = paced(monkeypatch, 10.0, 10.0005, 10.0005, 10.0035, 10.1035)
    assert made.gaps == (2, 0, 1, 0, 0, 0, 0, 1)
    assert made.gaps_ms == pytest.approx(103.5)
