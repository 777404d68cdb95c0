"""Bars have the length of their values."""

from __future__ import annotations

import re

from app.bench.chart import Bar, chart


def _rects(svg: str) -> list[tuple[float, float]]:
    """Left end and width of each bar."""
    return [
        (float(x), float(width)) for x, width in re.findall(r'<rect class="bar" x="(.*?)".*? width="(.*?)"', svg)
    ]


def test_lengths_are_in_proportion_and_begin_at_zero() -> None:
    svg = chart("c", [Bar("a", 1.0, "1"), Bar("b", 4.0, "4"), Bar("c", 0.0, "0")])
    (left_a, a), (left_b, b), (_, c) = _rects(svg)
    assert left_a == left_b
    assert (round(b / a, 2), c) == (4.0, 0.0)
    assert 'aria-label="c"' in svg


def test_below_zero_is_left_of_the_axis() -> None:
    (left_a, a), (left_b, _) = _rects(chart("c", [Bar("a", -2.0, "-2"), Bar("b", 2.0, "2")]))
    assert left_a + a == left_b


def test_an_interval_fits_in_and_the_value_stands_behind_it() -> None:
    svg = chart("c", [Bar("a", 5.0, "5 ms", (4.0, 10.0))])
    (end,) = re.findall(r"H([\d.]+)M", svg)
    texts = [float(x) for x in re.findall(r'<text x="([\d.]+)"', svg)]
    (left, width) = _rects(svg)[0]
    assert float(end) > left + width
    assert max(texts) > float(end)
    assert float(end) < 760 - 100, "room for the value"


def test_nothing_but_zeros_is_drawn_all_the_same() -> None:
    assert _rects(chart("c", [Bar("a", 0.0, "0")])) == [(190.0, 0.0)]


def test_words_are_escaped() -> None:
    svg = chart('"<', [Bar("<a>", 1, "<1>")])
    assert "&lt;a&gt;" in svg
    assert "&lt;1&gt;" in svg
    assert 'aria-label="&quot;&lt;"' in svg
