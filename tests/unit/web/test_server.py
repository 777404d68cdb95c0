"""web/server: at its end a worker writes out all that its log still holds, after all that had something to say.

Runs on: the test's thread.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

from app.web.server import Keeper


def test_at_the_end_the_log_is_written_out_last_and_once() -> None:
    done: list[str] = []
    bridge = SimpleNamespace(stop=lambda: done.append("loops stopped"))
    health = SimpleNamespace(bridge=lambda: bridge, last_words=lambda: lambda: done.append("last words"))
    log = SimpleNamespace(event=lambda name, **facts: done.append(name), close=lambda: done.append("log closed"))
    life: Any = SimpleNamespace()
    keeper = Keeper(cast(Any, health), life, cast(Any, log), False, closers=(lambda: done.append("closed"),))
    keeper.stop()
    assert done == []  # it was never started here
    keeper._pid = os.getpid()
    keeper.stop()
    keeper.stop()
    assert done == ["loops stopped", "closed", "last words", "worker_stopped", "log closed"]
