"""How far the median of few rounds can be trusted: a bootstrap interval, the same for the same rounds.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, the percentile interval.

Pure.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence

LEAST = 3
_RESAMPLES = 2000
_SEED = 1

Interval = tuple[float, float]


def interval(values: Sequence[float | None], share: float = 0.95, seed: int = _SEED) -> Interval | None:
    """Within which the median of ``values`` lies with probability ``share``, as far as they can tell.

    Returns:
        The lower and the upper end; None with fewer than 3 values, or if one of them was not measured.
    """
    measured = [value for value in values if value is not None]
    if len(measured) < LEAST or len(measured) < len(values):
        return None
    draw = random.Random(seed)  # noqa: S311 - resampling, the same in every run
    medians = sorted(statistics.median(draw.choices(measured, k=len(measured))) for _ in range(_RESAMPLES))
    cut = int((1 - share) / 2 * _RESAMPLES)
    return medians[cut], medians[_RESAMPLES - 1 - cut]


def intervals(rounds: Sequence[Mapping[str, float | None]]) -> dict[str, list[float] | None]:
    """Per figure of the first round, the interval of its median over the rounds, as the results file has it."""
    found: dict[str, list[float] | None] = {}
    for name in rounds[0] if rounds else ():
        ends = interval([one.get(name) for one in rounds])
        found[name] = None if ends is None else list(ends)
    return found
