"""web/server: what gunicorn's hooks do for a request, and for the end of a worker.

Runs on: the test's thread.
"""

from __future__ import annotations

import gc
import os
import weakref
from types import SimpleNamespace
from typing import Any, cast

from gunicorn.config import Config
from gunicorn.http import RequestParser

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


def test_a_request_that_is_over_leaves_nothing_to_the_cyclic_collector() -> None:
    life: Any = SimpleNamespace(draining=False)
    keeper = Keeper(cast(Any, None), life, cast(Any, None), False)
    request = next(RequestParser(Config(), [b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"], ("::1", 1)))
    gc.disable()
    try:
        keeper.before_request(request)
        assert request.body.penstock_request is request
        body = request.body
        keeper.after_request(request)
        gone = weakref.ref(request)
        del request
        assert gone() is None
        assert body.read() == b"hi"
    finally:
        gc.enable()
