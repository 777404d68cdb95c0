"""Figures as text for people: a table with columns side by side.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def shown(value: float | None, unit: str = "", digits: int = 0) -> str:
    """A figure with its unit; a dash where nothing was measured."""
    if value is None:
        return NOTHING
    text = f"{value:,.{digits}f}"
    return f"{text} {unit}" if unit else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with the first column left and the others right; every row as long as the header."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], _line(["-" * width for width in widths], widths), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join(
        [first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    ).rstrip()
