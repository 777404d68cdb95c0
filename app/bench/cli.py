"""``penstock bench``: one sub-command per measurement; each starts what it needs and ends it.

Exit codes: 0 measured; 1 something is missing or did not come up; 3 measured, ``--strict``, and an aim is missed.

Runs on: start-up.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from app.bench import machine
from app.bench.report import Report
from app.bench.servers import BenchError

MISSED = 3
_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Measure the gateway against the simulator, with a control in the same run."""


def _with_output(wrapped: _Command) -> _Command:
    """The options that all sub-commands have."""
    wrapped = click.option("--strict", is_flag=True, help="Exit 3 when an aim is missed.")(wrapped)
    return click.option(
        "--output", type=click.Path(dir_okay=False, path_type=Path), help="File for the results, JSON."
    )(wrapped)


def say(text: str) -> None:
    """Progress; not among the results."""
    click.echo(text, err=True)


def _interrupted(signum: int, frame: object) -> NoReturn:
    """SIGTERM ends a bench as Ctrl-C does, so that its servers end with it."""
    raise KeyboardInterrupt


def finish(measure: Callable[[], Report], output: Path | None, strict: bool) -> None:
    """Measures, shows, writes, and ends with the exit code the outcome deserves."""
    before = signal.signal(signal.SIGTERM, _interrupted)
    about = machine.facts()
    if about["load_1m"] > about["cores"] / 2:
        say(f"this machine is busy already: load {about['load_1m']:g} on {about['cores']} cores")
    try:
        report = measure()
    except (BenchError, OSError) as fault:
        raise click.ClickException(str(fault)) from fault
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo(report.text())
    if output is not None:
        output.write_text(json.dumps(report.json(about), indent=2) + "\n", encoding="utf-8")
    if report.faults:
        raise click.ClickException("\n".join(["incomplete, so not to be used:", *report.faults]))
    if strict and not report.reached:
        sys.exit(MISSED)


@command.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="The median is shown.")
@click.option("--requests", type=click.IntRange(4, 15_000), default=1000, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option(
    "--answer-ms",
    type=click.IntRange(1, 60_000),
    default=800,
    show_default=True,
    help="Mean time of an upstream answer; the 3 s of 529 have to fit into the run.",
)
@click.option(
    "--outage-s", type=click.FloatRange(0, 600), default=3.0, show_default=True, help="Length of the 529 spell."
)
@click.option(
    "--retry-after-s", type=click.IntRange(1, 60), default=2, show_default=True, help="What the 429s ask for."
)
@_with_output
def storm(
    rounds: int,
    requests: int,
    concurrency: int,
    answer_ms: int,
    outage_s: float,
    retry_after_s: int,
    output: Path | None,
    strict: bool,
) -> None:
    """Four upstream keys, three of them in trouble, with the gateway and without."""
    from app.bench.storm import run
    from app.bench.storm_figures import Script

    script = Script(requests, concurrency, answer_ms, retry_after_s, outage_s)
    finish(lambda: run(script, rounds, say), output, strict)


@command.command()
@click.option("--requests", type=click.IntRange(2, 1000), default=500, show_default=True, help="At once.")
@click.option("--concurrency", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--buffer", type=click.IntRange(1, 1000), default=75, show_default=True, help="Running and waiting.")
@click.option(
    "--repetitions", type=click.IntRange(1, 1000), default=20, show_default=True, help="Memory is watched."
)
@click.option(
    "--answer-ms",
    type=click.IntRange(5, 60_000),
    default=2000,
    show_default=True,
    help="Time of an upstream answer: longer than the arrivals take, or some are served twice.",
)
@click.option(
    "--spread-s", type=click.FloatRange(0, 60), default=0.5, show_default=True, help="All arrive within this time."
)
@_with_output
def overload(
    requests: int,
    concurrency: int,
    buffer: int,
    repetitions: int,
    answer_ms: int,
    spread_s: float,
    output: Path | None,
    strict: bool,
) -> None:
    """More requests at once than the buffer holds, dropped and made to wait."""
    from app.bench.overload import Plan, run

    plan = Plan(requests, concurrency, buffer, repetitions, answer_ms, spread_s)
    finish(lambda: run(plan, say), output, strict)


@command.command()
@click.option("--trials", type=click.IntRange(1, 50), default=5, show_default=True, help="The median is shown.")
@click.option(
    "--retry-after-s", type=click.IntRange(1, 60), default=10, show_default=True, help="What the 429 asks for."
)
@click.option(
    "--watch-s", type=click.FloatRange(0.2, 30), default=2.0, show_default=True, help="How long after the 429."
)
@_with_output
def sharing(trials: int, retry_after_s: int, watch_s: float, output: Path | None, strict: bool) -> None:
    """How long until a second worker, or node, leaves a key alone that answered 429 to the first."""
    from app.bench.sharing import Plan, run

    if watch_s >= retry_after_s:
        raise click.UsageError("--watch-s must be shorter than --retry-after-s: after that the key is used again.")
    finish(lambda: run(Plan(trials, retry_after_s, watch_s), say), output, strict)
