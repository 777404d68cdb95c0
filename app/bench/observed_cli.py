"""``penstock bench observed``: its options, and what they mean.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.bench.command import finish, with_output, with_page
from app.bench.progress import shown


@click.command("observed")
@click.option(
    "--turns", type=click.IntRange(1, 10_000), default=60, show_default=True, help="The median is shown."
)
@click.option(
    "--fresh",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="Turns after which new gateways take their place.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Look at this besides nothing; may be given again.")
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    default=400,
    show_default=True,
    help="Short ones, of each gateway in each turn.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 500), default=32, show_default=True, help="Of those, at once."
)
@click.option(
    "--streams", type=click.IntRange(0, 500), default=50, show_default=True, help="At once; 0: no streams."
)
@click.option("--events", type=click.IntRange(1, 10_000), default=100, show_default=True, help="In each stream.")
@click.option(
    "--gap",
    "gap_ms",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="Milliseconds between events.",
)
@click.option("--pin/--no-pin", default=True, show_default=True, help="A core for the gateways, if there are two.")
@with_page
@with_output
def command(page: Path | None, output: Path | None, strict: bool, **sizes: Any) -> None:
    """What log, metrics, usage, server-timing, monitor and recent records cost: each alone, and all."""
    from app.bench.observed import run, steps
    from app.bench.observed_figures import Plan, cells

    names = [cell.name for cell in cells()]
    if unknown := set(sizes["only"]) - set(names):
        raise click.UsageError(f"--only takes {', '.join(names)}; got {', '.join(sorted(unknown))}")
    plan = Plan(**sizes)
    finish(lambda: shown(steps(plan), lambda tell: run(plan, tell), "observed"), output, strict, page)
