"""The ``penstock`` command: each sub-command imports what it needs only when it runs.

Runs on: start-up.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module, metadata
from math import isnan
from pathlib import Path
from typing import Any, Final

import click

from app.errors import ConfigError
from app.settings import rows

# Commands that live with their subject: name -> ``module:attribute``, ``command`` if no attribute is named.
ELSEWHERE: Final = {
    "demo": "app.demo",
    "bench": "app.bench.cli",
    "explain": "app.explain",
    "ledger": "app.ledger_cli",
    "assert-latency": "app.bench.gates_cli:assert_latency",
    "rollout-guard": "app.bench.gates_cli:rollout_guard",
}


class _Lazy(click.Group):
    """A group that imports a command of another module when it is asked for, and lists only what exists."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names, sorted."""
        return sorted([*super().list_commands(ctx), *(name for name in ELSEWHERE if _exists(name))])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in ELSEWHERE or not _exists(cmd_name):
            return super().get_command(ctx, cmd_name)
        module, _, attribute = ELSEWHERE[cmd_name].partition(":")
        found = getattr(import_module(module), attribute or "command")
        return found if isinstance(found, click.Command) else None

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; faulty settings are printed one a line and end with exit code 2."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo("\n".join(error.faults), err=True)
            ctx.exit(2)


def _exists(name: str) -> bool:
    """Whether the module of a command is part of this installation; looked up without importing it."""
    parts = ELSEWHERE[name].partition(":")[0].split(".")
    return Path(__file__).parents[1].joinpath(*parts).with_suffix(".py").is_file()


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the installed version and stop; a checkout that is not installed has none."""
    if asked:
        try:
            click.echo(f"penstock {metadata.version('penstock')}")
        except metadata.PackageNotFoundError:
            click.echo("penstock, not installed")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def main() -> None:
    """Penstock, an Anthropic-native LLM gateway."""


@main.command()
@click.option("--offline", is_flag=True, help="Do not talk to the upstream.")
def check(offline: bool) -> None:
    """Look for what would hurt in production; name the line to change. Exit 1 if something fails."""
    from app.check import FAIL, findings

    worst = 0
    for finding in findings(offline=offline):
        click.echo(finding.line())
        worst = max(worst, int(finding.level == FAIL))
    sys.exit(worst)


@main.command()
@click.option("--markdown", is_flag=True, help="As a table for the README.")
def settings(markdown: bool) -> None:
    """List every setting: name, default, allowed values, meaning."""
    click.echo(markdown_table() if markdown else plain_table())


@main.command()
@click.option("--plain", type=click.IntRange(0, 65535), default=0, help="Port for plain HTTP; 0 takes a free one.")
@click.option("--tls", type=click.IntRange(0, 65535), default=0, help="Port for HTTPS; 0 takes a free one.")
@click.option("--dir", "ca_dir", type=click.Path(file_okay=False), default="", help="Folder for ca.pem.")
@click.option("--replay", type=click.Path(), default="", help="Recorded traffic to answer with (JSON lines).")
@click.option("--max-streams", type=click.IntRange(1, 2**31 - 1), help="Streams per HTTP/2 connection.")
def simulator(plain: int, tls: int, ca_dir: str, replay: str, max_streams: int | None) -> None:
    """Run the embedded fake Anthropic provider until interrupted."""
    from app.simulator.options import Options
    from app.simulator.server import serve

    options = Options(plain_port=plain, tls_port=tls, ca_dir=ca_dir, replay=replay)
    serve(options if max_streams is None else replace(options, max_concurrent_streams=max_streams))


class _Amount(click.FloatRange):
    """A number above zero; a range alone would let nan pass."""

    name = "number"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=10_000_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        number = float(super().convert(value, param, ctx))
        return self.fail(f"{value!r} is not a number.", param, ctx) if isnan(number) else number


@main.command()
@click.option("--rps", type=_Amount(), required=True, help="Requests per second, over all nodes.")
@click.option("--seconds", type=_Amount(), required=True, help="How long one takes on average.")
@click.option("--workers", type=click.IntRange(1, 512), required=True, help="Worker processes per node.")
@click.option("--nodes", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Nodes that share it.")
def size(rps: float, seconds: float, workers: int, nodes: int) -> None:
    """Print the slots that a load needs, as JSON for PENSTOCK_CONFIG; what it means goes to stderr."""
    from app import size as sizing

    try:
        found = sizing.size(rps, seconds, workers, nodes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(sizing.config(found), indent=2))
    for line in sizing.meaning(found):
        click.echo(line, err=True)


def markdown_table() -> str:
    """The settings as a Markdown table."""
    lines = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for row in rows():
        names = ", ".join(f"`{name}`" for name in row.env)
        lines.append(f"| {names} | {row.default} | {row.allowed} | {row.help} |")
    return "\n".join(lines)


def plain_table() -> str:
    """The settings as indented text, one paragraph each."""
    return "\n\n".join(
        f"{', '.join(row.env)}\n    {row.help}\n    default {row.default}; allowed {row.allowed}" for row in rows()
    )
