"""settings_prices: every fault of a price file is named at start, with its key, its value and what is allowed.

Pure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigError
from app.settings import load
from app.settings_prices import Price, Rates, parse

FINE = {"input": 3, "output": 15.5}


def faults(**row: Any) -> list[str]:
    return parse(json.dumps({"models": {"m": FINE | row}}))[1]


def test_numbers_stay_exact() -> None:
    table, found = parse(
        '{"models": {"m": {"input": 0.000001, "output": 1E-1, "multipliers": {"speed:fast": 1.1}}}}'
    )
    assert not found
    assert table.models["m"] == Price(Rates(1, 100_000), multipliers={"speed:fast": 1100})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"input": "3"}, 'models.m.input: "3": allowed is a number from 0 to 1000000 with at most 6 decimals.'),
        ({"input": -1}, "models.m.input: -1: allowed is a number from 0"),
        ({"input": True}, "models.m.input: true: allowed is a number from 0"),
        ({"input": None}, "models.m.input: null: allowed is a number from 0"),
        ({"output": 0.0000001}, "models.m.output: 1E-7: allowed is a number from 0"),
        ({"output": 2_000_000}, "models.m.output: 2000000: allowed is a number from 0"),
        ({"cache_reads": 1}, "models.m.cache_reads: unknown key; did you mean cache_read?"),
        ({"x": 1}, "models.m.x: unknown key; allowed are input, output, cache_write_5m"),
        ({"long_context": 5}, "models.m.long_context: 5: allowed is an object with above_input_tokens, input"),
        ({"long_context": FINE}, "models.m.long_context.above_input_tokens: null: allowed is a whole number"),
        (
            {"long_context": FINE | {"above_input_tokens": 1.5}},
            "models.m.long_context.above_input_tokens: 1.5: allowed is a whole number",
        ),
        ({"long_context": {"above_input_tokens": 9, "input": 1}}, "models.m.long_context.output: is missing;"),
        ({"multipliers": [2]}, 'models.m.multipliers: ["2"]: allowed is an object.'),
        ({"multipliers": {"speed:fast": 0}}, "models.m.multipliers.speed:fast: 0: allowed is a number above 0"),
        ({"multipliers": {"speed:fast": 1.0001}}, "models.m.multipliers.speed:fast: 1.0001: allowed is"),
        ({"multipliers": {"fast": 2}}, "models.m.multipliers.fast: allowed are speed:… and inference_geo:…."),
    ],
)
def test_a_fault_of_a_model_is_named(row: dict[str, Any], fault: str) -> None:
    (found,) = faults(**row)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not JSON ("),
        ("{", "is not JSON ("),
        ('{"models": {"m": {"input": NaN, "output": 1}}}', "is not JSON (NaN is no number of JSON)."),
        ("[" * 100_000, "is not JSON ("),
        ("[]", "is not a JSON object;"),
        ("{}", "models: null: allowed is an object with a model's name for each key."),
        ('{"models": {}, "as_of": "today"}', 'as_of: "today": allowed is a date like 2026-11-12.'),
        ('{"models": {}, "source": 1}', "source: 1: allowed is a text."),
        ('{"models": {}, "model": {}}', "model: unknown key; did you mean models?"),
        ('{"models": {"m": 3}}', "models.m: 3: allowed is an object with input, output and more."),
        ('{"models": {"a b": {"input": 1, "output": 1}}}', "models.a b: allowed as a name is"),
        ('{"models": {"a*b": {"input": 1, "output": 1}}}', "models.a*b: allowed as a name is"),
        ('{"models": {}, "server_tools": 1}', "server_tools: 1: allowed is an object"),
        ('{"models": {}, "server_tools": {"web_search": "10"}}', 'server_tools.web_search: "10": allowed is'),
    ],
)
def test_a_fault_of_the_file_is_named(text: str, fault: str) -> None:
    (found,) = parse(text)[1]
    assert found.startswith(fault)


def test_all_faults_are_told_at_once_with_the_variable_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"models": {"a": {"input": -1}, "b": {"input": 1, "output": 1, "outptu": 2}}, "asof": ""}')
    with pytest.raises(ConfigError) as caught:
        load({"PENSTOCK_PRICES": str(path), "RETRY_MAX_ATTEMPTS": "none"})
    about = [fault for fault in caught.value.faults if fault.startswith(f"PENSTOCK_PRICES={path}: ")]
    assert [fault.split(": ", 2)[1] for fault in about] == [
        "asof",
        "models.a.input",
        "models.a.output",
        "models.b.outptu",
    ]
    assert len(caught.value.faults) == 5


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"PENSTOCK_PRICES=.*: cannot be read \(No such file or directory\)"):
        load({"PENSTOCK_PRICES": str(tmp_path / "none.json")})
    (tmp_path / "fine.json").write_text('{"models": {"m": {"input": 1, "output": 1}}}')
    assert load({"PENSTOCK_PRICES": str(tmp_path / "fine.json")}).penstock_prices is not None
