"""observe/prices: what usage costs, to the micro-USD, and what has no price (B43).

Pure.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observe.prices import OWN, Prices, tables
from app.settings_prices import KINDS, parse

PRICES = Prices(*tables(None))
LISTED: dict[str, Any] = json.loads(OWN.read_text())["models"]
ALL = {
    "input_tokens": 1_000_000,
    "output_tokens": 1_000_000,
    "cache_creation_input_tokens": 2_000_000,
    "cache_read_input_tokens": 1_000_000,
    "cache_creation.ephemeral_5m_input_tokens": 1_000_000,
    "cache_creation.ephemeral_1h_input_tokens": 1_000_000,
}
FAST, US = "speed:fast", "inference_geo:us"


def prices(**models: dict[str, Any]) -> Prices:
    table, faults = parse(json.dumps({"models": models}))
    assert not faults
    return Prices(*tables(None), table)


@pytest.mark.parametrize("name", LISTED)
def test_a_million_of_each_kind_costs_what_the_list_says(name: str) -> None:
    row = LISTED[name].get("long_context", LISTED[name])
    if "cache_read" not in row:
        assert PRICES(name, ALL) is None
        assert PRICES(name, {"input_tokens": 1_000_000}) == round(row["input"] * 1_000_000)
        return
    assert PRICES(name, ALL) == round(sum(row[kind] for kind in KINDS) * 1_000_000)


def test_the_list_says_of_when_it_is_and_whose() -> None:
    (own,) = tables(None)
    assert own.as_of >= "2026-11-12" and own.source.startswith("https://")
    assert len(own.models) >= 28


@pytest.mark.parametrize(
    ("model", "micro_usd"),
    [
        ("claude-opus-4", 15),
        ("claude-opus-4-20250514", 15),
        ("claude-opus-4@20250514", 15),
        ("claude-opus-4-0", 15),
        ("claude-opus-4-1-20250805", 15),
        ("claude-opus-4-5-20251101", 5),
        ("claude-opus-4-8", 5),
        ("claude-opus-5-5", 4),
        ("claude-sonnet-4-5-20250929", 3),
        ("claude-sonnet-4-5-20250929-v1:0", 3),
        ("claude-3-7-sonnet-latest", 3),
        ("claude-3-5-sonnet-20241022", 3),
        ("claude-haiku-4-5-20251001", 1),
    ],
)
def test_names_stand_for_themselves_and_their_dated_ids(model: str, micro_usd: int) -> None:
    assert PRICES(model, {"input_tokens": 1}) == micro_usd


@pytest.mark.parametrize(
    "model",
    [
        "",
        "claude",
        "claude-opus-4-9",
        "claude-opus-45",
        "claude-opus-4-2025",
        "claude-opus-6",
        "gpt-6",
        "x-claude-opus-4",
    ],
)
def test_another_model_has_no_price(model: str) -> None:
    assert PRICES(model, {"input_tokens": 1}) is None
    assert PRICES(model, {"input_tokens": 1}) is None, "nor at the second look"


def test_the_operators_prices_replace_and_add_and_the_longest_name_wins() -> None:
    own = prices(
        **{
            "claude-opus-4-5": {"input": 7, "output": 7},
            "claude-*": {"input": 100, "output": 100},
            "sim-*": {"input": 1, "output": 1},
            "sim-dear-*": {"input": 9, "output": 9},
            "sim-dear-one": {"input": 10, "output": 10},
            "tie*": {"input": 2, "output": 2},
            "tie": {"input": 1, "output": 1},
        }
    )
    one = {"input_tokens": 1}
    assert own("claude-opus-4-5-20251101", one) == 7
    assert own("claude-opus-4-1", one) == 15
    assert own("claude-opus-4-9", one) == 100
    assert [own(name, one) for name in ("sim-a", "sim-dear-x", "sim-dear-one")] == [1, 9, 10]
    assert [own(name, one) for name in ("tie", "tie-20260101", "tied")] == [1, 1, 2]


def test_a_long_prompt_costs_more_throughout_and_cached_tokens_make_it_long() -> None:
    rates = {"input": 1, "output": 2, "cache_read": 1, "cache_write_5m": 1, "cache_write_1h": 1}
    long = {"above_input_tokens": 100} | {kind: 10 * rate for kind, rate in rates.items()}
    own = prices(m=rates | {"long_context": long})
    assert own("m", {"input_tokens": 100, "output_tokens": 50}) == 200
    assert own("m", {"input_tokens": 101, "output_tokens": 50}) == 2010
    assert own("m", {"input_tokens": 1, "cache_read_input_tokens": 100}) == 1010
    assert own("m", {"input_tokens": 1, "cache_creation_input_tokens": 100}) == 1010
    assert own("m", {"input_tokens": 1, "output_tokens": 1_000}) == 2001


def test_a_write_of_unknown_lifetime_is_one_of_five_minutes() -> None:
    def cost(**tokens: int) -> int | None:
        return PRICES("claude-opus-4-5", {name.replace("__", "."): count for name, count in tokens.items()})

    assert cost(cache_creation_input_tokens=100) == 625
    hour = {"cache_creation__ephemeral_1h_input_tokens": 40}
    assert cost(cache_creation_input_tokens=100, **hour) == 60 * 6.25 + 400
    assert cost(cache_creation_input_tokens=30, **hour) == 300


def test_terms_raise_the_price_of_tokens_and_not_of_tools() -> None:
    used = {"input_tokens": 1000, "server_tool_use.web_search_requests": 2}
    model = "claude-opus-5-5"
    assert PRICES(model, used) == 4_000 + 20_000
    assert PRICES(model, used, frozenset({FAST})) == 8_000 + 20_000
    assert PRICES(model, used, frozenset({FAST, US})) == 8_800 + 20_000
    assert PRICES(model, used, frozenset({US})) == 4_400 + 20_000


def test_a_term_or_a_kind_without_a_price_makes_it_unknown() -> None:
    assert PRICES("claude-sonnet-5-5", {"input_tokens": 1}, frozenset({FAST})) is None
    assert PRICES("claude-opus-5-5", {"input_tokens": 1}, frozenset({"inference_geo:mars"})) is None
    own = prices(m={"input": 1, "output": 1})
    assert own("m", {"input_tokens": 1}) == 1
    assert own("m", {"cache_read_input_tokens": 1}) is None
    assert own("m", {"cache_creation_input_tokens": 1}) is None


def test_tools_are_priced_by_the_use() -> None:
    used = {"input_tokens": 0, "server_tool_use.web_search_requests": 1, "server_tool_use.web_fetch_requests": 5}
    assert PRICES("claude-haiku-4-5", used) == 10_000
    assert PRICES("claude-haiku-4-5", {"server_tool_use.something_requests": 5}) == 0


@given(
    counts=st.lists(st.integers(0, 10**9), min_size=4, max_size=4),
    name=st.sampled_from(["claude-haiku-5-5", "claude-3-haiku", "claude-opus-5-5", "claude-sonnet-4-5"]),
    us=st.booleans(),
)
def test_the_sum_is_exact_and_rounded_half_up_once(counts: list[int], name: str, us: bool) -> None:
    fresh, output, write, read = counts
    row = LISTED[name]
    long = row.get("long_context")
    rates = long if long and fresh + write + read > long["above_input_tokens"] else row
    kinds = ("input", "output", "cache_write_5m", "cache_read")
    exact = Fraction(0)
    for kind, count in zip(kinds, counts, strict=True):
        exact += Fraction(str(rates[kind])) * count
    us = us and US in row.get("multipliers", {})
    exact *= Fraction(11, 10) if us else 1
    tokens = {
        "input_tokens": fresh,
        "output_tokens": output,
        "cache_creation_input_tokens": write,
        "cache_read_input_tokens": read,
    }
    found = PRICES(name, tokens, frozenset({US} if us else ()))
    assert found == (exact + Fraction(1, 2)) // 1


def test_half_a_micro_usd_is_rounded_up() -> None:
    assert PRICES("claude-haiku-5-5", {"input_tokens": 4}) == 0
    assert PRICES("claude-haiku-5-5", {"input_tokens": 5}) == 1
    assert PRICES("claude-haiku-5-5", {"input_tokens": 15}) == 2


def test_names_that_callers_make_up_are_not_remembered_for_ever() -> None:
    own = prices(m={"input": 1, "output": 1})
    for number in range(5000):
        assert own(f"made-up-{number}", {"input_tokens": 1}) is None
    assert len(own._known) <= 1000
    assert own("m", {"input_tokens": 1}) == 1


def test_a_file_that_was_spoiled_since_the_start_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"models": {"m": {"input": -1, "output": 1}}}')
    with pytest.raises(ValueError, match=r"prices\.json: models\.m\.input: -1: allowed is"):
        tables(str(path))
    path.write_text('{"models": {"m": {"input": 1, "output": 1}}}')
    assert Prices(*tables(str(path)))("m", {"input_tokens": 3}) == 3
