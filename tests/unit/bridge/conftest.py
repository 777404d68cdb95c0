"""A bridge of its own for each test, stopped at its end.

Runs on: worker.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.bridge.call import Bridge
from app.bridge.loop import BackgroundLoop
from app.bridge.wait import original


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native threads do not inherit the tracer that measures coverage: hand it to them."""

    def start(work: Callable[..., object], args: tuple[Any, ...]) -> object:
        def run() -> None:
            sys.settrace(threading.gettrace())
            work(*args)

        return original("_thread", "start_new_thread")(run, ())

    def replaced(module: str, name: str) -> Any:
        return start if (module, name) == ("_thread", "start_new_thread") else original(module, name)

    monkeypatch.setattr("app.bridge.loop.original", replaced)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """A bridge with two fallback threads."""
    made = Bridge(2)
    yield made
    made.stop()


@pytest.fixture
def start() -> Iterator[Callable[[], BackgroundLoop]]:
    """Starts background loops and stops them at the end."""
    started: list[BackgroundLoop] = []

    def make() -> BackgroundLoop:
        loop = BackgroundLoop("test", deque())
        loop.start()
        started.append(loop)
        return loop

    yield make
    for loop in started:
        loop.stop()
