"""What all sub-commands of ``penstock bench`` share: options, the outcome on screen and in files, exit codes.

    0   measured
    1   something is missing or did not come up: the figures are not to be used
    3   measured, ``--strict``, and an aim is missed

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


def with_output(wrapped: _Command) -> _Command:
    """Adds the options that all sub-commands have: ``output`` and ``strict``."""
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
