"""``penstock bench counts``: calls, crossings and wake-ups of one exchange, held against their ceilings.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path

import click

from app.bench.command import finish, with_output


@click.command()
@with_output
def command(output: Path | None, strict: bool) -> None:
    """Calls, crossings and wake-ups per request and per event: the same on every machine."""
    from app.bench.counts import run

    finish(run, output, strict)
