"""Add up log lines: who used how much of what, and what it cost, exactly.

A line counts if it is one of an exchange, whatever a platform has put before its JSON; lines of other events are
passed over, and what is no line of ours is counted as such. Costs are whole micro-USD and stay so.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson

COLUMNS: Final = ("day", "caller", "credential", "model", "provider", "route")
"""What rows can be made by; the day is UTC's."""

BY: Final = COLUMNS[:4]
FIGURES: Final = (
    "exchanges",
    "input",
    "output",
    "cache_write_5m",
    "cache_write_1h",
    "cache_read",
    "server_tools",
    "partial",
    "unpriced",
    "cost_micro_usd",
)
_TIME: Final = re.compile(r"(\d{4}-\d{2}-\d{2})T\d{2}:", re.ASCII)
_TOOL: Final = re.compile(r"server_tool_use\.\w+_requests", re.ASCII)
_NOT_OURS: Final[dict[str, Any]] = {}


@dataclass(slots=True)
class Sum:
    """Of some exchanges.

    Attributes:
        exchanges: How many, those without usage included.
        input: Tokens, neither written to a cache nor read from it; so the next four by their kinds.
        server_tools: Uses of the vendor's own tools.
        partial: Exchanges whose figures are not the final ones: somebody left, or the stream broke.
        unpriced: Exchanges with usage and no price; not in the cost.
        cost_micro_usd: Of all others.
    """

    exchanges: int = 0
    input: int = 0
    output: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    server_tools: int = 0
    partial: int = 0
    unpriced: int = 0
    cost_micro_usd: int = 0

    def add(self, other: Sum) -> None:
        """Add another one to this."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Ledger:
    """Rows by some columns.

    Args:
        by: Of ``COLUMNS``; in this order.

    Attributes:
        bad: Lines that are no JSON object, or an exchange's with something amiss.
        rows: Sums by the columns' values; exchanges without one have "" there.
    """

    def __init__(self, by: Sequence[str] = BY) -> None:
        self.by = tuple(by)
        self.bad = 0
        self.rows: dict[tuple[str, ...], Sum] = {}

    def read(self, lines: Iterable[bytes]) -> None:
        """Add the exchanges of these lines."""
        for line in lines:
            found = _object(line)
            if found is _NOT_OURS or found.get("event") != "exchange":
                self.bad += found is _NOT_OURS and bool(line.strip())
                continue
            entry = _entry(found, self.by)
            if entry is None:
                self.bad += 1
            else:
                self.rows.setdefault(entry[0], Sum()).add(entry[1])

    def total(self) -> Sum:
        """Of all rows."""
        total = Sum()
        for one in self.rows.values():
            total.add(one)
        return total


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object at a line's end; platforms put a time, a process's name or the like before it."""
    try:
        found = orjson.loads(line[max(line.find(b"{"), 0) :])
    except orjson.JSONDecodeError:
        return _NOT_OURS
    return found if isinstance(found, dict) else _NOT_OURS


def _entry(line: dict[str, Any], by: Sequence[str]) -> tuple[tuple[str, ...], Sum] | None:
    """One exchange, with the values of its row; None if one of them is not what we write."""
    day = _TIME.match(str(line.get("time", "")))
    tokens, cost = line.get("tokens") or {}, line.get("cost_micro_usd")
    known = {name: line.get(name, "") for name in COLUMNS} | {"day": day.group(1) if day is not None else None}
    key = tuple(known[name] for name in by)
    if not all(isinstance(part, str) for part in key) or not _are_figures(tokens):
        return None
    if cost is not None and not _is_figure(cost):
        return None
    made = _sum(tokens)
    made.partial = int(bool(tokens) and not line.get("usage_complete", False))
    made.unpriced = int(bool(tokens) and cost is None)
    made.cost_micro_usd = cost or 0
    return key, made


def _sum(tokens: dict[str, int]) -> Sum:
    written = tokens.get("cache_creation_input_tokens", 0)
    hour = min(written, tokens.get("cache_creation.ephemeral_1h_input_tokens", 0))
    return Sum(
        exchanges=1,
        input=tokens.get("input_tokens", 0),
        output=tokens.get("output_tokens", 0),
        cache_write_5m=written - hour,
        cache_write_1h=hour,
        cache_read=tokens.get("cache_read_input_tokens", 0),
        server_tools=sum(count for name, count in tokens.items() if _TOOL.fullmatch(name)),
    )


def _are_figures(tokens: object) -> bool:
    return isinstance(tokens, dict) and all(_is_figure(count) for count in tokens.values())


def _is_figure(value: object) -> bool:
    return type(value) is int and value >= 0


def usd(micro_usd: int) -> str:
    """``12.345678``; nothing is rounded."""
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d}"


def as_json(ledger: Ledger) -> dict[str, object]:
    """Rows, sorted, and their total, JSON-ready; costs also as text in USD."""
    rows = [dict(zip(ledger.by, key, strict=True)) | _figures(one) for key, one in sorted(ledger.rows.items())]
    return {"by": list(ledger.by), "rows": rows, "total": _figures(ledger.total()), "bad_lines": ledger.bad}


def _figures(one: Sum) -> dict[str, object]:
    return {name: getattr(one, name) for name in FIGURES} | {"cost_usd": usd(one.cost_micro_usd)}


def table(ledger: Ledger) -> list[str]:
    """Rows, sorted, and their total as lines of text; what cannot be printed is a question mark."""
    heads = [*ledger.by, *(name.replace("_", " ") for name in FIGURES[:-1]), "USD"]
    body = [[*map(_printable, key), *_cells(one)] for key, one in sorted(ledger.rows.items())]
    total = [*("total" if n == 0 else "" for n in range(len(ledger.by))), *_cells(ledger.total())]
    widths = [max(map(len, column)) for column in zip(heads, *body, total, strict=True)]
    named = len(ledger.by)

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.ljust(w) if n < named else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(texts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return [line(heads), rule, *map(line, body), rule, line(total)]


def _cells(one: Sum) -> list[str]:
    return [*(f"{getattr(one, name):,}" for name in FIGURES[:-1]), usd(one.cost_micro_usd)]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "-"
