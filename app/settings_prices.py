"""Read a table of prices: its shape, and every fault in it.

    {"as_of": "2026-11-12", "source": "https://…",
     "server_tools": {"web_search": 10},
     "models": {"claude-sonnet-4-5": {
        "input": 3, "output": 15, "cache_write_5m": 3.75, "cache_write_1h": 6, "cache_read": 0.3,
        "long_context": {"above_input_tokens": 200000, "input": 6, "output": 22.5, …},
        "multipliers": {"inference_geo:us": 1.1, "speed:fast": 2}}}}

Rates are USD per million tokens, tools' USD per 1,000 uses. Only ``models`` is required, and of a model ``input``
and ``output``. A name stands for the model and its dated ids (``…-20250929``); one that ends in ``*`` for all that
begin so. ``multipliers`` raise all of a model's rates when the answer's usage says so.

Numbers stay exact: a rate is held in 10^-12 USD, a multiplier in thousandths.
Pure.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from app.settings_fields import redacted

KINDS: Final = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
DECIMALS: Final = 6
UNIT: Final = 10**DECIMALS
"""A micro-USD in what rates are held in: one USD per million tokens is one micro-USD a token."""
THOUSANDTHS: Final = 3

_TOP: Final = ("as_of", "source", "server_tools", "models")
_MODEL: Final = (*KINDS, "long_context", "multipliers")
_LONG: Final = ("above_input_tokens", *KINDS)
_REQUIRED: Final = ("input", "output")
_NAME: Final = re.compile(r"[!-)+-~]{1,200}\*?")
_TERM: Final = re.compile(r"(?:speed|inference_geo):[!-~]{1,64}")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_RATE: Final = f"a number from 0 to 1000000 with at most {DECIMALS} decimals"
_FACTOR: Final = "a number above 0 up to 1000 with at most 3 decimals"
_TOKENS: Final = "a whole number from 1 to 1000000000"


@dataclass(frozen=True, slots=True)
class Rates:
    """What one token costs, by kind, in 10^-12 USD; None: no price is known."""

    input: int
    output: int
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    cache_read: int | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """Of one model.

    Attributes:
        rates: Of tokens.
        above_tokens: Prompts of more tokens, cached ones included, cost ``long`` throughout; 0: there are none.
        long: See there.
        multipliers: In thousandths, by what the answer states: ``speed:fast``.
    """

    rates: Rates
    above_tokens: int = 0
    long: Rates | None = None
    multipliers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """Prices of a day.

    Attributes:
        as_of: That day, ISO 8601; "" if not said.
        source: Where they were read.
        models: By name, see the module.
        tools: One use of a server tool by its name, in 10^-12 USD.
    """

    as_of: str = ""
    source: str = ""
    models: Mapping[str, Price] = field(default_factory=dict)
    tools: Mapping[str, int] = field(default_factory=dict)


class _Faults(list[str]):
    """Sentences: which key, which value, what is allowed."""

    def at(self, path: str, value: object, allowed: str) -> None:
        self.append(f"{path}: {_shown(value)}: allowed is {allowed}.")

    def unknown(self, path: str, given: Mapping[str, object], known: tuple[str, ...]) -> None:
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
                self.append(f"{_join(path, redacted(name, name))}: unknown key; {hint}")


def parse(text: str | bytes) -> tuple[Table, list[str]]:
    """A table, and what is wrong with it; if anything is, the table is not to be used."""
    faults = _Faults()
    try:
        found = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_refused)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return Table(), [f"is not JSON ({str(error)[:100]})."]
    if not isinstance(found, dict):
        return Table(), ["is not a JSON object; allowed is one with the key models."]
    faults.unknown("", found, _TOP)
    as_of, source = found.get("as_of", ""), found.get("source", "")
    if not isinstance(as_of, str) or (as_of and not _DATE.fullmatch(as_of)):
        faults.at("as_of", as_of, "a date like 2026-11-12")
    if not isinstance(source, str):
        faults.at("source", source, "a text")
    tools = {name: rate * 1000 for name, rate in _numbers(found.get("server_tools", {}), "server_tools", faults)}
    models = found.get("models")
    if not isinstance(models, dict):
        faults.at("models", models, "an object with a model's name for each key")
        models = {}
    prices = {name: price for name, row in models.items() if (price := _price(name, row, faults)) is not None}
    table = Table(str(as_of), str(source), MappingProxyType(prices), MappingProxyType(tools))
    return table, list(faults)


def _refused(constant: str) -> object:
    raise ValueError(f"{constant} is no number of JSON")


def _price(name: str, row: object, faults: _Faults) -> Price | None:
    path = f"models.{redacted(name, name)}"
    if not _NAME.fullmatch(name):
        faults.append(f"{path}: allowed as a name is printable ASCII without spaces, with * at its end only.")
    if not isinstance(row, dict):
        faults.at(path, row, "an object with input, output and more")
        return None
    faults.unknown(path, row, _MODEL)
    rates = _rates(row, path, faults)
    above, long = _long_context(row.get("long_context"), f"{path}.long_context", faults)
    multipliers = _multipliers(row.get("multipliers", {}), f"{path}.multipliers", faults)
    return Price(rates, above, long, multipliers)


def _rates(row: Mapping[str, object], path: str, faults: _Faults) -> Rates:
    found: dict[str, int] = {}
    for kind in KINDS:
        if kind not in row:
            if kind in _REQUIRED:
                faults.append(f"{path}.{kind}: is missing; allowed is {_RATE}.")
            continue
        rate = _exact(row[kind], DECIMALS, 1_000_000)
        if rate is None:
            faults.at(f"{path}.{kind}", row[kind], _RATE)
        else:
            found[kind] = rate
    return Rates(**{"input": 0, "output": 0} | found)


def _long_context(row: object, path: str, faults: _Faults) -> tuple[int, Rates | None]:
    if row is None:
        return 0, None
    if not isinstance(row, dict):
        faults.at(path, row, f"an object with {', '.join(_LONG)}")
        return 0, None
    faults.unknown(path, row, _LONG)
    above = _exact(row.get("above_input_tokens"), 0, 1_000_000_000)
    if not above:
        faults.at(f"{path}.above_input_tokens", row.get("above_input_tokens"), _TOKENS)
    return above or 0, _rates(row, path, faults)


def _multipliers(row: object, path: str, faults: _Faults) -> dict[str, int]:
    if not isinstance(row, dict):
        faults.at(path, row, "an object")
        return {}
    found = {}
    for term, value in row.items():
        factor = _exact(value, THOUSANDTHS, 1000)
        if not _TERM.fullmatch(term):
            faults.append(f"{path}.{redacted(term, term)}: allowed are speed:… and inference_geo:….")
        elif not factor:
            faults.at(f"{path}.{term}", value, _FACTOR)
        else:
            found[term] = factor
    return found


def _numbers(row: object, path: str, faults: _Faults) -> Iterator[tuple[str, int]]:
    if not isinstance(row, dict):
        faults.at(path, row, "an object with a tool's name for each key")
        return
    for name, value in row.items():
        rate = _exact(value, DECIMALS, 1_000_000)
        if rate is None:
            faults.at(_join(path, redacted(name, name)), value, _RATE)
        else:
            yield name, rate


def _exact(value: object, decimals: int, most: int) -> int | None:
    """A number from 0 to ``most`` as so many parts of ten; None if it is none, or is not exact so."""
    if not isinstance(value, Decimal) or not 0 <= value <= most:
        return None
    scaled = value.scaleb(decimals)
    return int(scaled) if scaled == scaled.to_integral_value() else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    if isinstance(value, Decimal):
        return redacted("", str(value))
    return redacted("", json.dumps(value, default=str))
