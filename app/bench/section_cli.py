"""``penstock bench section``: the README's performance section, from results files.

Runs on: start-up.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from app.bench.section import SectionError, collected, markdown, put


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--collect",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the files as one to this file, for the repository, instead of showing the section.",
)
@click.option(
    "--into",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the section between the marks of this file, instead of showing it.",
)
def command(files: tuple[Path, ...], collect: Path | None, into: Path | None) -> None:
    """The README's performance section, made of FILES: of `bench all`, `bench peers`, one bench, or --collect.

    Of two files with the same bench, the later one counts.
    """
    try:
        results = collected({str(path): json.loads(path.read_text(encoding="utf-8")) for path in files})
        text = markdown(results)
        if collect is not None:
            collect.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if into is not None:
            into.write_text(put(into.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (SectionError, OSError, ValueError) as fault:
        raise click.ClickException(str(fault)) from fault
    if collect is None and into is None:
        click.echo(text, nl=False)
