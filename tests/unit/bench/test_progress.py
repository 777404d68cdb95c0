"""Progress on stderr."""

from __future__ import annotations

import io
import sys

import pytest

from app.bench.progress import Say, shown


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _three(say: Say) -> str:
    for number in range(1, 4):
        say(f"step {number}")
    return "done"


def test_without_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(3, _three) == "done"
    assert tuple(capsys.readouterr()) == ("", "step 1\nstep 2\nstep 3\n")


@pytest.mark.parametrize("total", [0, 2, 3, 9])
def test_a_terminal_has_a_bar_that_ends_full(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert shown(total, _three, "latency") == "done"
    assert "latency" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert "step 1\n" not in terminal.getvalue()


def test_a_bar_counts_steps_that_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def two_of_four(say: Say) -> None:
        for number in range(2):
            say(f"step {number}")
        raise OSError("the server left")

    with pytest.raises(OSError, match="left"):
        shown(4, two_of_four)
    assert "25%" in terminal.getvalue()
    assert "50%" not in terminal.getvalue()
