"""Reports as one HTML page for people: a chart for each figure, its interval, the machine, the command.

It loads nothing: styles and drawings (SVG) are in the file. Every text is escaped.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from app.bench.bootstrap import Interval, interval
from app.bench.chart import Bar, chart
from app.bench.figures import median_of
from app.bench.report import Report, Row, Variant
from app.bench.table import shown
from app.bench.verdict import enough, in_words

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5f6d7c; --line: #d5dbe1; --bar: #2f6f9f; --bad: #a4262c;
  --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #38434e; --bar: #5fa3d6;
  --bad: #ff8f8f; --paper: #14191f; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
figure { margin: 1.2rem 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
svg .bar { fill: var(--bar); } svg .axis, svg .ends { stroke: var(--ink); fill: none; }
svg .axis { stroke: var(--line); }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  vertical-align: top; } th { font-weight: 600; }
code, pre { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .bad { color: var(--bad); }
"""


def page(title: str, reports: Sequence[Report], about: Mapping[str, Any], command: str) -> str:
    """The page.

    Args:
        title: Its heading.
        reports: One section each.
        about: Facts about the machine, as ``machine.facts`` has them.
        command: What was typed to make it.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p><code>{escape(command)}</code></p>",
        '<p class="soft">Bars are medians over the rounds; the line across the end of a bar is the 95 % bootstrap '
        "interval of that median, drawn from three rounds on.</p>",
        _pairs(about),
        *(part for report in reports for part in _section(report)),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(report: Report) -> Iterator[str]:
    """One report."""
    yield f"<h2>{escape(report.title)}</h2>"
    if report.faults:
        lines = "".join(f"<li>{escape(text)}</li>" for text in report.faults)
        yield f'<div class="bad"><p>Incomplete, so not to be used:</p><ul>{lines}</ul></div>'
    if report.judged:
        yield _aims(report)
    medians = [median_of(variant.rounds) for variant in report.variants]
    for row in report.rows:
        bars = [
            bar
            for variant, median in zip(report.variants, medians, strict=True)
            if (bar := _bar(row, variant, median.get(row.figure))) is not None
        ]
        if bars:
            caption = f"{row.words}, {row.unit}" if row.unit else row.words
            yield f"<figure><figcaption>{escape(caption)}</figcaption>{chart(caption, bars)}</figure>"
    yield from (f"<p>{escape(note)}</p>" for note in report.notes)
    yield f"<details><summary>Settings</summary>{_pairs(report.settings)}</details>"


def _bar(row: Row, variant: Variant, value: float | None) -> Bar | None:
    """A variant's bar for one figure; None where nothing was measured."""
    if value is None:
        return None
    ends: Interval | None = interval([one.get(row.figure) for one in variant.rounds])
    return Bar(variant.words, value, shown(value, row.unit, row.digits), ends)


def _aims(report: Report) -> str:
    """The aims and what was reached."""
    rows = {row.figure: row for row in report.rows}
    words = {variant.name: variant.words for variant in report.variants}
    lines = ["<tr><th>aim</th><th>for</th><th>over rounds</th><th>bound</th><th>reached</th><th></th></tr>"]
    for one in report.judged:
        row = rows[one.aim.figure]
        cells = [row.words, words[one.aim.variant], one.aim.over, one.aim.text()]
        cells += [shown(one.value, row.unit, row.digits), in_words(one, report.judged)]
        mark = "" if enough(one, report.judged) else ' class="bad"'
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values, nested ones on one line."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{one} {what}" for one, what in value.items())
        lines.append(f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>")
    return f"<table>{''.join(lines)}</table>"
