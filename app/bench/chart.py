"""Draws a figure as an SVG: a bar for each variant, its interval across the end, its value behind.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.bench.bootstrap import Interval

_WIDTH, _ROW, _THICK = 760, 28, 16
_LEFT, _RIGHT = 190, 130
_SPAN = _WIDTH - _LEFT - _RIGHT


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        words: On its left.
        value: Its length.
        text: On its right.
        ends: The interval, if there is one.
    """

    words: str
    value: float
    text: str
    ends: Interval | None = None


def chart(label: str, bars: Sequence[Bar]) -> str:
    """The drawing, from zero; below zero to the left of the axis.

    Args:
        label: For those who cannot see it.
        bars: From top to bottom.
    """
    values = [0.0, *(bar.value for bar in bars), *(end for bar in bars for end in bar.ends or ())]
    low, high = min(values), max(values)
    unit = _SPAN / (high - low) if high > low else 0.0
    zero = _LEFT - low * unit
    height = _ROW * len(bars)
    lines = [line for number, bar in enumerate(bars) for line in _drawn(bar, number * _ROW, zero, unit)]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f'<path class="axis" d="M{zero:.1f} 0V{height}"/>{"".join(lines)}</svg>'
    )


def _drawn(bar: Bar, top: int, zero: float, unit: float) -> list[str]:
    """One bar with its words, its interval and its value."""
    tip = zero + bar.value * unit
    middle = top + _ROW / 2
    ends = [zero + end * unit for end in bar.ends or ()]
    text = max([zero, tip, *ends]) + 8
    found = [
        f'<text x="{_LEFT - 190}" y="{middle + 4:.1f}">{escape(bar.words)}</text>',
        f'<rect class="bar" x="{min(zero, tip):.1f}" y="{middle - _THICK / 2:.1f}" '
        f'width="{abs(tip - zero):.1f}" height="{_THICK}"/>',
        f'<text x="{text:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text>',
    ]
    if ends:
        left, right = ends
        found.append(
            f'<path class="ends" d="M{left:.1f} {middle:.1f}H{right:.1f}'
            f'M{left:.1f} {middle - 5:.1f}v10M{right:.1f} {middle - 5:.1f}v10"/>'
        )
    return found
