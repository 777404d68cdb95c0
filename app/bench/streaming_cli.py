"""``penstock bench streaming``: its options, and what they mean.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.bench.command import finish, understood, with_others, with_output, with_page
from app.bench.progress import Say, shown
from app.bench.report import Report


@click.command("streaming")
@click.option("--streams", type=click.IntRange(1, 8000), default=200, show_default=True, help="At once.")
@click.option("--events", type=click.IntRange(1, 10_000), default=100, show_default=True, help="In each stream.")
@click.option(
    "--gap",
    "gap_ms",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Milliseconds between events.",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="The median is shown.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Gateway's and floor's.")
@click.option("--worker-class", type=click.Choice(["gevent", "gthread"]), default="gevent", show_default=True)
@click.option(
    "--burst-streams", type=click.IntRange(1, 1000), default=32, show_default=True, help="At once, without gaps."
)
@click.option(
    "--burst-events", type=click.IntRange(1, 10_000), default=50, show_default=True, help="In each of those."
)
@click.option(
    "--burst-s", type=click.FloatRange(0.01, 60), default=3.0, show_default=True, help="Length of the burst."
)
@click.option(
    "--requests",
    "floor_requests",
    type=click.IntRange(1, 100_000),
    default=3000,
    show_default=True,
    help="To the WSGI floor, in each round.",
)
@with_others
@with_page
@with_output
def command(
    against: tuple[str, ...],
    against_pid: tuple[int, ...],
    header: tuple[str, ...],
    simulator: Path | None,
    page: Path | None,
    output: Path | None,
    strict: bool,
    **sizes: Any,
) -> None:
    """Event streams: CPU per event, added first byte and delay, memory; beside direct and the WSGI floor."""
    from app.bench import servers
    from app.bench.streaming import run, steps
    from app.bench.streaming_figures import Plan

    plan, others = Plan(**sizes), understood(against, against_pid, header)

    def measure(tell: Say) -> Report:
        return run(plan, tell, others, servers.told(simulator) if simulator else None)

    finish(lambda: shown(steps(plan, len(others)), measure, "streaming"), output, strict, page)
