"""Time an application's own work, as a context manager or a decorator.

Runs on: worker.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, Self, TypeVar

from app.observe.cells import Tracked

_Called = TypeVar("_Called", bound=Callable[..., Any])


def tracked(endpoint: str, duration_ms: float, status: int, error: str | BaseException | None) -> Tracked:
    """What is counted of one piece of work: failed where there is an ``error``, or a ``status`` of 500 and above.

    Raises:
        ValueError: ``duration_ms`` is no length of time.
    """
    if not math.isfinite(duration_ms) or duration_ms < 0:
        raise ValueError(f"duration_ms must be a length of time in milliseconds; got {duration_ms!r}")
    if isinstance(error, BaseException):
        error = type(error).__name__
    return Tracked(endpoint, float(duration_ms), error or ("status_5xx" if status >= 500 else ""))


class Timed(ContextDecorator):
    """From entering to leaving; an exception that passes through is its error.

    Args:
        endpoint: Name.
        sink: Takes what came of it.

    Attributes:
        status: HTTP status, where there is one; may be set meanwhile.
        error: Why it failed, where no exception says so; may be set meanwhile.
    """

    def __init__(self, endpoint: str, sink: Callable[[Tracked], None]) -> None:
        self._endpoint = endpoint
        self._sink = sink
        self._began_at = 0.0
        self.status = 200
        self.error: str | None = None

    def __call__(self, func: _Called) -> _Called:
        """Time every call of ``func``.

        Raises:
            TypeError: A call of it would be over before its work is.
        """
        if inspect.iscoroutinefunction(func) or inspect.isgeneratorfunction(func):
            raise TypeError(f"{func.__qualname__} works after its call is over: use `with track_request(…)` in it")
        return super().__call__(func)

    def _recreate_cm(self) -> Self:
        return type(self)(self._endpoint, self._sink)  # of its own for every call: they overlap

    def __enter__(self) -> Self:
        self._began_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken_ms = (time.monotonic() - self._began_at) * 1000.0
        self._sink(tracked(self._endpoint, taken_ms, self.status, error if error is not None else self.error))
