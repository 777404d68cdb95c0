"""What all sub-commands of ``penstock bench`` share: options, the outcome on screen and in files, exit codes.

    0   measured
    1   something is missing or did not come up: the figures are not to be used
    3   measured, ``--strict``, and an aim is missed

Runs on: start-up.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import click

from app.bench import machine
from app.bench.against import Against, against
from app.bench.page import page as drawn
from app.bench.report import Report
from app.bench.servers import BenchError

MISSED = 3
_SECRET = ("header",)
_TYPED = "app.bench.command.typed"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_output(wrapped: _Command) -> _Command:
    """Adds the options that all sub-commands have: ``output`` and ``strict``."""
    wrapped = click.option("--strict", is_flag=True, help="Exit 3 when an aim is missed.")(wrapped)
    return click.option(
        "--output", type=click.Path(dir_okay=False, path_type=Path), help="File for the results, JSON."
    )(wrapped)


def with_page(wrapped: _Command) -> _Command:
    """Adds the option ``page``."""
    return click.option(
        "--page",
        "--plot",
        "page",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File for a page with charts, HTML.",
    )(wrapped)


def with_others(wrapped: _Command) -> _Command:
    """Adds the options ``against``, ``against_pid``, ``header`` and ``simulator``."""
    options = (
        click.option("--against", multiple=True, metavar="URL", help="A gateway that runs already, beside ours."),
        click.option("--against-pid", multiple=True, type=click.IntRange(1), help="Its first process, for CPU."),
        click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="Sent to --against only: its key."),
        click.option(
            "--simulator",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="First line of a running `penstock simulator`, so that --against can have the same upstream.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def understood(urls: Sequence[str], pids: Sequence[int], headers: Sequence[str]) -> list[Against]:
    """What those options mean.

    Raises:
        click.UsageError: Nothing.
    """
    try:
        return against(urls, pids, headers)
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault


class Outcome(Protocol):
    """What a bench found: a report, or several."""

    @property
    def title(self) -> str:
        """One line."""

    @property
    def sections(self) -> Sequence[Report]:
        """For the page."""

    @property
    def faults(self) -> Sequence[str]:
        """What is missing; anything here and the figures are not to be used."""

    @property
    def reached(self) -> bool:
        """Whether every aim is met."""

    def text(self) -> str:
        """For people."""

    def json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """For machines."""


def say(text: str) -> None:
    """Progress; not among the results."""
    click.echo(text, err=True)


def _interrupted(signum: int, frame: object) -> NoReturn:
    """SIGTERM ends a bench as Ctrl-C does, so that its servers end with it."""
    raise KeyboardInterrupt


def finish(measure: Callable[[], Outcome], output: Path | None, strict: bool, page: Path | None = None) -> None:
    """Measures, shows, writes, and ends with the exit code the outcome deserves.

    Args:
        measure: Does the work.
        output: File for the results, if any.
        strict: Whether a missed aim matters.
        page: File for the page, if any.

    Raises:
        click.UsageError: Those files cannot be written; nothing is measured then.
        click.ClickException: Nothing was measured, something is missing, or the files could not be written.
    """
    _writable(output, page)
    before = signal.signal(signal.SIGTERM, _interrupted)
    about = machine.facts()
    if about["load_1m"] > about["cores"] / 2:
        say(f"this machine is busy already: load {about['load_1m']:g} on {about['cores']} cores")
    try:
        found = measure()
    except (BenchError, OSError) as fault:
        raise click.ClickException(str(fault)) from fault
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo(found.text())
    lacks = ["incomplete, so not to be used:", *found.faults] if found.faults else []
    lacks += _unwritten(found, about, output, page)
    if lacks:
        raise click.ClickException("\n".join(lacks))
    if strict and not found.reached:
        sys.exit(MISSED)


def _writable(output: Path | None, page: Path | None) -> None:
    """Returns if both files can be written, as far as can be told without touching them.

    Raises:
        click.UsageError: One of them cannot, or they are the same.
    """
    if output is not None and page is not None and output.resolve() == page.resolve():
        raise click.UsageError("--output and --page are the same file.")
    for file in (output, page):
        if file is None:
            continue
        if not file.parent.is_dir():
            raise click.UsageError(f"{file}: there is no folder {file.parent}.")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise click.UsageError(f"{file} cannot be written.")


def _unwritten(found: Outcome, about: Mapping[str, Any], output: Path | None, page: Path | None) -> Iterator[str]:
    """Writes the files; a sentence on each that could not be."""
    command = typed(click.get_current_context())
    contents: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (output, lambda: json.dumps({**found.json(about), "command": command}, indent=2) + "\n"),
        (page, lambda: drawn(found.title, found.sections, about, command)),
    )
    for file, content in contents:
        try:
            if file is not None:
                file.write_text(content(), encoding="utf-8")
        except OSError as fault:
            yield f"{file} could not be written: {fault.strerror or fault}"


class Remembering(click.Group):
    """A group whose commands know their arguments as they were typed, for whoever wants to measure again."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; that makes other values of them."""
        found = super().resolve_command(ctx, args)
        ctx.meta[_TYPED] = list(found[2])
        return found


def typed(ctx: click.Context) -> str:
    """The command as it was typed, without where its results go and without what may be secret."""
    return " ".join([ctx.command_path, *_given(ctx)])


def _given(ctx: click.Context) -> Iterator[str]:
    """The options that were typed, in their order; of one that counts once, what was typed last."""
    texts, _, order = ctx.command.make_parser(ctx).parse_args(list(ctx.meta.get(_TYPED, ())))
    for param in dict.fromkeys(order):
        name = param.name or ""
        if name in ("output", "page"):
            continue
        for text in texts[name] if param.multiple else [texts[name]]:
            if isinstance(param, click.Option) and param.is_flag:
                yield param.opts[0]
                continue
            shown = f"{text.partition(':')[0]}: ..." if name in _SECRET else str(text)
            yield f"{param.opts[0]} {shlex.quote(shown)}"
