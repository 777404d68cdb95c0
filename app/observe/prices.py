"""Put a price on what an answer's usage states, exactly.

Prices are those of ``prices.json``, the vendor's list of the day that stands in it, and of the operator's own
file, which replaces models or adds some. The longest name that fits wins. What a single exchange does not show has
no part in it: discounts, commitments, batches (their answers are files), code execution by the hour, and tokens
that stand only in ``usage.iterations``.

Context: a model whose name begins like another's may cost a third of it (``claude-opus-4`` and its successors).
Choice: a name stands for itself and its dated ids only; what is not in the table has no price, and is counted.
Price: a new model costs nothing in the ledger until it is entered; ``penstock_unpriced`` says so.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from app.settings_prices import THOUSANDTHS, UNIT, Price, Rates, Table, parse

OWN: Final = Path(__file__).with_name("prices.json")
_DATED: Final = re.compile(r"[-@]20\d{6}(?:-v\d+(?::\d+)?)?|-latest", re.ASCII)
_REMEMBERED: Final = 1000
_NO_TERMS: Final[frozenset[str]] = frozenset()


def tables(path: str | None) -> tuple[Table, ...]:
    """The package's table and the operator's.

    Args:
        path: Of the operator's file, which ``app.settings.load()`` has checked; None if there is none.

    Raises:
        ValueError: One of them is faulty: it was changed since.
        OSError: It cannot be read.
    """
    found = []
    for one in (OWN, Path(path)) if path is not None else (OWN,):
        table, faults = parse(one.read_bytes())
        if faults:
            raise ValueError(f"{one.name}: {' '.join(faults)}")
        found.append(table)
    return tuple(found)


class Prices:
    """What usage costs; call it.

    Args:
        tables: Later ones replace what earlier ones say of the same name.
    """

    def __init__(self, *tables: Table) -> None:
        models: dict[str, Price] = {}
        tools: dict[str, int] = {}
        for table in tables:
            models |= table.models
            tools |= table.tools
        self._models = sorted(models.items(), key=lambda one: (len(one[0].rstrip("*")), not one[0].endswith("*")))
        self._tools = tuple(
            (f"server_tool_use.{name}_requests", per_use) for name, per_use in tools.items() if per_use
        )
        self._known: dict[str, Price | None] = {}

    def __call__(self, model: str, tokens: Mapping[str, int], terms: frozenset[str] = _NO_TERMS) -> int | None:
        """Micro-USD, rounded half up, once.

        Args:
            model: As the request named it.
            tokens: As ``Record.tokens``.
            terms: What the answer says of how it was made, where that is not the usual: ``speed:fast``.

        Returns:
            None where there is no price: an unknown model, or a kind of tokens or a term that the table does not
            have for it.
        """
        try:
            price = self._known[model]
        except KeyError:
            price = self._find(model)
        if price is None:
            return None
        cost = _cost(price, tokens)
        if cost is None:
            return None
        unit = UNIT
        for term in terms:
            factor = price.multipliers.get(term)
            if factor is None:
                return None
            cost *= factor
            unit *= 10**THOUSANDTHS
        for name, per_use in self._tools:
            if name in tokens:
                cost += tokens[name] * per_use * (unit // UNIT)
        return (2 * cost + unit) // (2 * unit)

    def _find(self, model: str) -> Price | None:
        """The longest name that fits; remembered, though not for ever, since callers choose their names."""
        found = None
        for name, price in self._models:
            if _fits(name, model):
                found = price
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[model] = found
        return found


def _fits(name: str, model: str) -> bool:
    if name.endswith("*"):
        return model.startswith(name[:-1])
    return model.startswith(name) and (len(model) == len(name) or _DATED.fullmatch(model, len(name)) is not None)


def _cost(price: Price, tokens: Mapping[str, int]) -> int | None:
    """Of the tokens, in 10^-12 USD; a cache write whose lifetime is not stated is one of five minutes.

    ``cache_creation_input_tokens`` is the sum of both lifetimes; ``input_tokens`` holds neither writes nor reads.
    """
    get = tokens.get
    fresh = get("input_tokens", 0)
    write = get("cache_creation_input_tokens", 0)
    read = get("cache_read_input_tokens", 0)
    rates: Rates = price.rates
    if price.long is not None and fresh + write + read > price.above_tokens:
        rates = price.long
    cost = fresh * rates.input + get("output_tokens", 0) * rates.output
    if read:
        if rates.cache_read is None:
            return None
        cost += read * rates.cache_read
    if write:
        if rates.cache_write_5m is None or rates.cache_write_1h is None:
            return None
        hour = min(write, get("cache_creation.ephemeral_1h_input_tokens", 0))
        cost += (write - hour) * rates.cache_write_5m + hour * rates.cache_write_1h
    return cost
