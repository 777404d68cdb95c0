"""When requests are sent: as many at once as allowed, or spread over a time whatever became of the others.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from app.simulator.server import new_event_loop

T = TypeVar("T")

HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01", "accept": "application/json"}
PATH = "/v1/messages"


def on_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work`` to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


def body(model: str, text: str) -> bytes:
    """A messages request; a different ``text`` is a different conversation."""
    return json.dumps(
        {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": text}]}, separators=(",", ":")
    ).encode()


async def closed(count: int, concurrency: int, send: Callable[[int], Awaitable[T]]) -> list[T]:
    """Sends 0 to ``count`` - 1, always ``concurrency`` at once: the next begins when one ends."""
    indices = iter(range(count))
    found: list[T] = []

    async def caller() -> None:
        for index in indices:
            found.append(await send(index))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(caller())
    return found


async def spread(count: int, over_s: float, send: Callable[[int], Awaitable[T]]) -> list[T]:
    """Sends 0 to ``count`` - 1 at even distances within ``over_s`` seconds; 0 sends all at once."""
    began_s = time.monotonic()
    tasks: list[asyncio.Task[T]] = []

    async def sent(index: int) -> T:
        return await send(index)

    async with asyncio.TaskGroup() as group:
        for index in range(count):
            ahead_s = began_s + over_s * index / count - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.append(group.create_task(sent(index)))
    return [task.result() for task in tasks]
