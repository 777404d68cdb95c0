"""The ``ledger`` command: tokens and costs by day, caller, credential and model, from the log.

Runs on: start-up.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import click
import orjson

from app.observe.ledger import BY, COLUMNS, Ledger, as_json, table


def _columns(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """``day,model`` as columns.

    Raises:
        click.BadParameter: One of them is unknown, or named twice.
    """
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not names or len(set(names)) < len(names):
        what = f"{', '.join(unknown)}: unknown" if unknown else f"{value!r}"
        raise click.BadParameter(f"{what}; allowed are {', '.join(COLUMNS)}, each once.", ctx, param)
    return names


@click.command("ledger")
@click.option(
    "--log",
    "logs",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    multiple=True,
    help="Log to read, plain or .gz; several may be given. Without it: standard input.",
)
@click.option("--by", default=",".join(BY), show_default=True, callback=_columns, help="Columns to make rows by.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON; costs in micro-USD and in USD.")
def command(logs: tuple[str, ...], by: tuple[str, ...], wants_json: bool) -> None:
    """Add up what the log says was used: exchanges, tokens by kind, cost in USD."""
    ledger = Ledger(by)
    for name in logs or ("-",):
        if name == "-":
            ledger.read(sys.stdin.buffer)
            continue
        with gzip.open(name, "rb") if name.endswith(".gz") else Path(name).open("rb") as lines:
            ledger.read(lines)
    if wants_json:
        click.echo(orjson.dumps(as_json(ledger), option=orjson.OPT_INDENT_2))
    else:
        click.echo("\n".join(table(ledger)))
    if ledger.bad:
        click.echo(f"Passed over, being no log lines of Penstock: {ledger.bad}.", err=True)
