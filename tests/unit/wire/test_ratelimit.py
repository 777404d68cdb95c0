"""wire/ratelimit: what an answer says about its key's limits (B34).

Pure.
"""

from __future__ import annotations

import pytest

from app.wire.ratelimit import Remaining, read

NOW = 1_700_000_000.0
IN_20_S = "2023-11-14T22:13:40Z"
IN_50_S = "2023-11-14T23:14:10+01:00"


def _pairs(**resources: tuple[str, str, str]) -> list[tuple[str, str]]:
    return [
        (f"Anthropic-RateLimit-{name.replace('_', '-')}-{field}", value)
        for name, values in resources.items()
        for field, value in zip(("limit", "remaining", "reset"), values, strict=True)
    ]


def test_b34_the_scarcest_resource_counts() -> None:
    pairs = _pairs(
        requests=("1000", "999", IN_20_S),
        input_tokens=("200", "10", IN_50_S),
        output_tokens=("100", "50", IN_20_S),
        tokens=("300", "60", IN_20_S),
    )
    assert read([("content-type", "x"), *pairs], NOW) == Remaining(0.05, 50.0, None)


def test_b34_exhausted_until_the_last_empty_resource_is_whole_again() -> None:
    pairs = _pairs(requests=("5", "0", IN_20_S), tokens=("5", "0", IN_50_S), input_tokens=("5", "1", IN_50_S))
    assert read(pairs, NOW) == Remaining(0.0, 50.0, 50.0)
    assert read(pairs, NOW + 30.5) == Remaining(0.0, 19.5, 19.5)
    assert read(pairs, NOW + 60) == Remaining(0.0, 0.0, 0.0)


@pytest.mark.parametrize("reset", ["", "soon", "2023-11-14T22:13:40", "1700000020"])
def test_a_reset_that_cannot_be_read_is_not_said(reset: str) -> None:
    assert read(_pairs(requests=("5", "0", reset)), NOW) == Remaining(0.0, 0.0, None)
    pairs = _pairs(requests=("5", "0", reset), tokens=("5", "0", IN_20_S))
    assert read(pairs, NOW) == Remaining(0.0, 20.0, 20.0)


def test_a_fractional_reset_and_more_left_than_the_limit() -> None:
    assert read(_pairs(tokens=("5", "9", "2023-11-14T22:13:20.250Z")), NOW) == Remaining(1.0, 0.25, None)


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("retry-after", "1"), ("anthropic-ratelimit-unified-5h-remaining", "1")],
        [("anthropic-ratelimit-requests-limit", "5")],
        [("anthropic-ratelimit-requests-remaining", "0"), ("anthropic-ratelimit-requests-reset", IN_20_S)],
        _pairs(requests=("0", "0", IN_20_S)),
        _pairs(requests=("5", "-1", IN_20_S)),
        _pairs(requests=("5", "1.5", IN_20_S)),
        _pairs(requests=("5", "٣", IN_20_S)),
        _pairs(requests=("9" * 19, "1", IN_20_S)),
    ],
)
def test_what_states_no_share_says_nothing(pairs: list[tuple[str, str]]) -> None:
    assert read(pairs, NOW) is None


def test_one_unreadable_resource_does_not_hide_another() -> None:
    assert read(_pairs(requests=("x", "1", ""), tokens=("4", " 1 ", IN_20_S)), NOW) == Remaining(0.25, 20.0, None)
