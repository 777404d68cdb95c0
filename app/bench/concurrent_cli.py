"""``penstock bench concurrent``: its options, and what they mean.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.bench.command import finish, with_output, with_page
from app.bench.progress import shown


@click.command("concurrent")
@click.option("--streams", type=click.IntRange(1, 8000), default=1000, show_default=True, help="Idle, at once.")
@click.option(
    "--hold-ms",
    type=click.IntRange(100, 60_000),
    default=3000,
    show_default=True,
    help="Silence of an idle stream before its event, and after it.",
)
@click.option(
    "--slow-requests", type=click.IntRange(1, 8000), default=2000, show_default=True, help="Slow ones, at once."
)
@click.option(
    "--answer-ms",
    type=click.IntRange(0, 60_000),
    default=2000,
    show_default=True,
    help="Upstream's time for them.",
)
@click.option(
    "--spread-s", type=click.FloatRange(0, 60), default=1.0, show_default=True, help="They begin within this time."
)
@click.option("--starts", type=click.IntRange(1, 100), default=5, show_default=True, help="Cold ones.")
@click.option(
    "--idle-s",
    type=click.FloatRange(0, 60),
    default=2.0,
    show_default=True,
    help="A started worker's memory is looked at after this.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    default=4000,
    show_default=True,
    help="Short ones to one worker and to two, in each round.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 500), default=32, show_default=True, help="Of those, at once."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="The median is shown.")
@with_page
@with_output
def command(page: Path | None, output: Path | None, strict: bool, **sizes: Any) -> None:
    """Idle streams, slow requests, a cold start, and two workers beside one."""
    from app.bench.concurrent import run, steps
    from app.bench.concurrent_figures import Plan

    plan = Plan(**sizes)
    if 1000 * plan.spread_s >= plan.answer_ms:
        raise click.UsageError("--spread-s must be shorter than --answer-ms: nothing would be in flight at once.")
    finish(lambda: shown(steps(plan), lambda tell: run(plan, tell), "concurrent"), output, strict, page)
