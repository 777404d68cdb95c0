"""``penstock bench peers``: ours next to other proxies and gateways, each started by its script in deploy/peers.

Runs on: start-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.bench.command import finish, with_output, with_page
from app.bench.peers_scripts import PEERS
from app.bench.progress import Say, shown
from app.bench.report import Report

_CACHE = Path("~/.cache/penstock-peers")


class _Names(click.ParamType[tuple[str, ...]]):
    """Peers, separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, each once.

        Raises:
            click.BadParameter: One of them is no peer.
        """
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        strangers = [name for name in found if name not in PEERS]
        if strangers or not found:
            return self.fail(f"{', '.join(strangers) or 'nothing'}: there is {', '.join(PEERS)}.", param, ctx)
        return found


@click.command()
@click.option(
    "--only", type=_Names(), metavar="NAME,NAME", help=f"Of {', '.join(PEERS)}; without it, all of them."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="The median is shown.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=5.0, show_default=True, help="Of a closed load, about."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 500), default=32, show_default=True, help="Requests at once."
)
@click.option("--streams", type=click.IntRange(1, 2000), default=200, show_default=True, help="At once.")
@click.option("--events", type=click.IntRange(1, 10_000), default=100, show_default=True, help="In each stream.")
@click.option(
    "--gap", "gap_ms", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Milliseconds."
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=_CACHE,
    show_default=True,
    help="Folder in which peers are installed, and stay.",
)
@with_page
@with_output
def command(
    only: tuple[str, ...] | None, cache: Path, page: Path | None, output: Path | None, strict: bool, **sizes: Any
) -> None:
    """Other proxies and gateways beside ours, one worker each: CPU, latency, memory, what they do to bytes.

    The first run installs them from PyPI into --cache. One that cannot be measured is shown with its fault; the
    exit code is 1 if it was asked for with --only, or if none could be measured.
    """
    from app.bench.peers import run, steps
    from app.bench.peers_figures import Plan

    plan, names = Plan(**sizes), only or tuple(PEERS)

    def measure(say: Say) -> Report:
        return run(plan, names, cache.expanduser(), say, asked=only is not None)

    finish(lambda: shown(steps(plan, len(names)), measure, "peers"), output, strict, page)
