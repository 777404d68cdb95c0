"""Percentiles and medians, and nothing where nothing was measured.

Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

Figures = dict[str, float | None]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` (0..1) of ``values`` do not exceed; None without values.

    The nearest rank: a percentile is always something that was measured.
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median_of(rounds: Sequence[Mapping[str, float | None]]) -> Figures:
    """Per figure, the median over rounds; None where a round has none, for the rest would be a selection."""
    found: Figures = {}
    for name in rounds[0] if rounds else ():
        values = [one.get(name) for one in rounds]
        measured = [value for value in values if value is not None]
        found[name] = statistics.median(measured) if len(measured) == len(values) else None
    return found


def worst_of(rounds: Sequence[Mapping[str, float | None]], name: str, *, high: bool) -> float | None:
    """The worst value of figure ``name`` over rounds, the highest if ``high``; None where a round has none."""
    values = [one.get(name) for one in rounds]
    measured = [value for value in values if value is not None]
    if not values or len(measured) < len(values):
        return None
    return max(measured) if high else min(measured)


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as milliseconds, to the microsecond."""
    return None if seconds is None else round(seconds * 1000, 3)
