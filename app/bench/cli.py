"""``penstock bench``: one sub-command per measurement; each starts what it needs and ends it.

Runs on: start-up.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from app.bench.command import Remembering, finish, say, understood, with_others, with_output, with_page
from app.bench.progress import Say, shown
from app.bench.report import Report

# Sub-commands that live with their subject: name -> the click command, imported only when it is asked for.
ELSEWHERE: Final = {
    "streaming": "app.bench.streaming_cli:command",
    "concurrent": "app.bench.concurrent_cli:command",
    "peers": "app.bench.peers_cli:command",
    "section": "app.bench.section_cli:command",
    "profiles": "app.bench.profiles_cli:command",
    "observed": "app.bench.observed_cli:command",
    "counts": "app.bench.counts_cli:command",
}


class _Lazy(Remembering):
    """A group that imports a sub-command of another module when it is asked for, and lists only what exists."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names, sorted."""
        return sorted([*super().list_commands(ctx), *(name for name in ELSEWHERE if _exists(name))])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in ELSEWHERE or not _exists(cmd_name):
            return super().get_command(ctx, cmd_name)
        module, _, attribute = ELSEWHERE[cmd_name].partition(":")
        found = getattr(import_module(module), attribute)
        return found if isinstance(found, click.Command) else None


def _exists(name: str) -> bool:
    """Whether the module of a sub-command is part of this installation; looked up without importing it."""
    parts = ELSEWHERE[name].partition(":")[0].split(".")
    return Path(__file__).parents[2].joinpath(*parts).with_suffix(".py").is_file()


@click.group(cls=_Lazy)
def command() -> None:
    """Measure the gateway against the simulator, with a control in the same run."""


@command.command()
@click.option("--requests", type=click.IntRange(1, 1_000_000), default=6000, show_default=True, help="A round's.")
@click.option("--concurrency", type=click.IntRange(1, 500), default=32, show_default=True, help="At once.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="The median is shown.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Gateway's and floor's.")
@click.option("--answer-ms", type=click.IntRange(0, 60_000), default=0, show_default=True, help="Upstream's time.")
@click.option(
    "--worker-class", type=click.Choice(["gevent", "gthread", "sync"]), default="gevent", show_default=True
)
@click.option("--model", default="", help="Asked for by every request, instead of what --answer-ms makes.")
@with_others
@with_page
@with_output
def latency(
    against: tuple[str, ...],
    against_pid: tuple[int, ...],
    header: tuple[str, ...],
    simulator: Path | None,
    page: Path | None,
    output: Path | None,
    strict: bool,
    **sizes: Any,
) -> None:
    """Short answers: latency added and CPU per request, beside going direct and beside the WSGI floor."""
    from app.bench import servers
    from app.bench.latency import run, steps
    from app.bench.latency_figures import Plan

    plan, others = Plan(**sizes), understood(against, against_pid, header)

    def measure(tell: Say) -> Report:
        return run(plan, tell, others, servers.told(simulator) if simulator else None)

    finish(lambda: shown(steps(plan, len(others)), measure, "latency"), output, strict, page)


@command.command("all")
@click.option("--quick", is_flag=True, help="Small sizes: a look, in some two minutes, and nothing to quote.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Of each part, instead of its own number.")
@with_others
@with_page
@with_output
def everything(
    quick: bool,
    rounds: int | None,
    against: tuple[str, ...],
    against_pid: tuple[int, ...],
    header: tuple[str, ...],
    simulator: Path | None,
    page: Path | None,
    output: Path | None,
    strict: bool,
) -> None:
    """latency, streaming, concurrent and storm, one after the other, in one file and one page."""
    from app.bench import servers, suite

    others = understood(against, against_pid, header)
    title = "all: latency, streaming, concurrent and storm" + (", small sizes" if quick else "")

    def measure() -> suite.Suite:
        parts = suite.parts(suite.Wish(quick, rounds, others, servers.told(simulator) if simulator else None))
        return shown(sum(one.steps for one in parts), lambda tell: suite.measure(title, parts, tell), "all")

    finish(measure, output, strict, page)


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
@with_output
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
@with_output
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
@with_output
def sharing(trials: int, retry_after_s: int, watch_s: float, output: Path | None, strict: bool) -> None:
    """How long until a second worker, or node, leaves a key alone that answered 429 to the first."""
    from app.bench.sharing import Plan, run

    if watch_s >= retry_after_s:
        raise click.UsageError("--watch-s must be shorter than --retry-after-s: after that the key is used again.")
    finish(lambda: run(Plan(trials, retry_after_s, watch_s), say), output, strict)
