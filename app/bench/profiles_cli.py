"""``penstock bench profiles``: its options, and what they mean.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.bench.command import finish, with_output, with_page
from app.bench.progress import shown


@click.command("profiles")
@click.option(
    "--what",
    type=click.Choice(["connections", "chunk", "workers", "switch", "all"]),
    default="all",
    show_default=True,
    help="Which setting is turned.",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="The median is shown.")
@click.option("--streams", type=click.IntRange(1, 1000), default=200, show_default=True, help="At once.")
@click.option("--events", type=click.IntRange(1, 10_000), default=100, show_default=True, help="In each stream.")
@click.option(
    "--gap",
    "gap_ms",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Milliseconds between events.",
)
@click.option(
    "--requests", type=click.IntRange(1, 1_000_000), default=4000, show_default=True, help="Short requests."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 500), default=32, show_default=True, help="Of those, at once."
)
@click.option("--downloads", type=click.IntRange(1, 1000), default=8, show_default=True, help="Large answers.")
@click.option(
    "--downloads-at-once", type=click.IntRange(1, 100), default=4, show_default=True, help="Of those, at once."
)
@click.option(
    "--download-kib", type=click.IntRange(64, 1_048_576), default=32_768, show_default=True, help="Size of each."
)
@click.option("--markdown", is_flag=True, help="Tables in Markdown, a line for each position.")
@with_page
@with_output
def command(what: str, markdown: bool, page: Path | None, output: Path | None, strict: bool, **sizes: Any) -> None:
    """What the connection cap, chunk size, worker count and switch interval do."""
    from app.bench.profiles import possible, run, steps
    from app.bench.profiles_figures import SWITCH, WHAT, Plan

    plan = Plan(**sizes)
    names = WHAT if what == "all" else (what,)
    if what == "switch" and what not in possible(plan):
        raise click.UsageError(f"there is no setting {SWITCH}, so nothing to turn")
    finish(
        lambda: shown(steps(plan, names), lambda tell: run(plan, names, tell, markdown=markdown), "profiles"),
        output,
        strict,
        page,
    )
