"""How far a bench has got: a bar on a terminal, one line for each step anywhere else; stderr, never the results.

Runs on: start-up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

T = TypeVar("T")
Say = Callable[[str], None]
_WORDS = 36


def shown(total: int, work: Callable[[Say], T], label: str = "") -> T:
    """Runs ``work`` with a way to say which step begins.

    Args:
        total: How many steps are expected; more or fewer do no harm.
        work: Calls what it is given once at the beginning of each step, with words for it.
        label: In front of the bar.
    """
    if not sys.stderr.isatty():
        return work(lambda text: click.echo(text, err=True))
    total, begun = max(total, 1), 0
    with click.progressbar(
        length=total, label=label, file=sys.stderr, item_show_func=_cut, update_min_steps=0
    ) as bar:

        def say(text: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(1 if 1 < begun <= total else 0, text)

        found = work(say)
        bar.update(total - bar.pos, "")
    return found


def _cut(text: str | None) -> str:
    """As much of a step's words as has room behind the bar."""
    return (text or "")[:_WORDS]
