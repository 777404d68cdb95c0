"""wire/router: how long a request waited in the platform's router, in whatever unit that one writes.

Pure.
"""

from __future__ import annotations

import pytest

from app.wire.router import waited_ms

NOW = 1_699_999_999.500


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("1699999999250", 250.0),
        ("t=1699999999250", 250.0),
        ("t=1699999999.250", 250.0),
        ("1699999999.25", 250.0),
        (" t=1699999999250 ", 250.0),
        ("1699999999250000", 250.0),
        ("t=1699999999250000000", 250.0),
        ("1699999999", 500.0),
        ("1699999999500", 0.0),
        ("1699999999900", 0.0),  # its clock is ahead
        ("1699996400000", 3_599_500.0),
    ],
)
def test_every_unit_is_understood(value: str, ms: float) -> None:
    assert waited_ms(value, NOW) == pytest.approx(ms, abs=0.01)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "t=",
        "now",
        "nan",
        "inf",
        "-1699999999250",
        "1e12",
        "1_699_999_999_250",
        "1699996399000",  # over an hour ago
        "1700003600000",  # over an hour ahead
        "1699999999250, 1699999999251",
        "\u0661\u0666\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669",
        "9" * 40,
        "12345",
        "1699999999.1234567890123",
    ],
)
def test_nonsense_is_none(value: str) -> None:
    assert waited_ms(value, NOW) is None
