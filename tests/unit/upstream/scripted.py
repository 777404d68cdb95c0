"""Targets whose pool follows a script, and a port that keeps what is handed up: the loop's side without sockets.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from app.exchange import Outbound, Plan, Reply
from app.policy.breaker import BreakerRules
from app.policy.key_state import Key
from app.policy.retry import Budget, Rules
from app.store.facts import Fact
from app.upstream.attempts import Patience
from app.upstream.dispatch import Dispatcher
from app.upstream.lane_news import NOBODY
from app.upstream.pool import Pool, PoolStats
from app.upstream.target import Target
from app.upstream.target_options import Secret, TargetOptions, mark_of
from app.upstream.transport_base import Asker, Inbound, Pairs

STATS = PoolStats("h2", "", "HTTP/2", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
STARTED = b'event: message_start\ndata: {"type":"message_start"}\n\n'
NEVER = object()
"""A step at which the body falls silent for ever."""

RULES = Rules(max_attempts=3, base_s=1.0, cap_s=12.0)
PLAN = Plan(
    provider="anthropic",
    method="POST",
    target="/v1/messages",
    headers=(("anthropic-version", "2023-06-01"),),
    body=b"{}",
    deadline_at=0.0,
    silence_s=300.0,
    repeatable=True,
)


class Canned(Inbound):
    """An answer from a script: bytes come, exceptions are raised, ``NEVER`` waits until it is cancelled."""

    def __init__(self, status: int, headers: Pairs, steps: Sequence[Any]) -> None:
        super().__init__(status, headers, "HTTP/2")
        self.steps = list(steps)
        self.reset = False

    async def __anext__(self) -> bytes:
        if not self.steps:
            self._finish()
            raise StopAsyncIteration
        step = self.steps.pop(0)
        if step is NEVER:
            await asyncio.get_running_loop().create_future()
        if isinstance(step, BaseException):
            raise step
        return cast(bytes, step)

    async def _close(self) -> None:
        self.reset = True


def answer(status: int = 200, *steps: Any, **headers: str) -> Canned:
    """An answer; header names with underscores for dashes."""
    return Canned(status, [(name.replace("_", "-"), value) for name, value in headers.items()], steps)


def stream(*steps: Any) -> Canned:
    """An event stream."""
    return answer(200, *steps, content_type="text/event-stream")


@dataclass
class ScriptedPool:
    """Follows a script: each send takes the next step, an answer or an exception; the last one stays."""

    script: list[Any]
    sent: list[Outbound] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    warmed: list[int] = field(default_factory=list)
    warms: bool = True

    async def send(
        self, outbound: Outbound, *, streaming: bool, download: bool = False, asker: Asker = NOBODY
    ) -> Inbound:
        self.sent.append(outbound)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if step is NEVER:
            await asyncio.get_running_loop().create_future()
        if isinstance(step, BaseException):
            raise step
        if not isinstance(outbound.body, bytes):
            self.bodies.append(b"".join([piece async for piece in outbound.body]))
        made = step() if callable(step) else step
        return cast(Inbound, made)

    async def warm_up(self, slots: int = 1) -> tuple[bool, float]:
        self.warmed.append(slots)
        return self.warms, 0.0

    def stats(self) -> PoolStats:
        return STATS

    async def close(self) -> None:
        return


class Scene:
    """A dispatcher over scripted targets.

    Args:
        scripts: Per target, in the order of the chain: what its pool does.
        keys: Labels of every target's keys; empty passes the caller's through.
        changes: To ``TargetOptions`` of all of them.
    """

    def __init__(
        self,
        *scripts: list[Any],
        keys: Sequence[str | Key] = (),
        rules: Rules = RULES,
        floor: int = 10,
        **changes: Any,
    ) -> None:
        names = ["anthropic", "eu", "us"][: len(scripts)]
        self.pools = [ScriptedPool(script) for script in scripts]
        self.events: deque[dict[str, object]] = deque()
        self.shared: list[Fact] = []
        self.news: list[Fact] = []
        labelled = [key if isinstance(key, Key) else Key(key) for key in keys]
        options = TargetOptions(
            name="",
            origin="",
            base_path="",
            secrets=tuple(Secret(key, ("x-api-key", f"sk-{key.label}")) for key in labelled),
            concurrency=10,
            buffer_size=20,
            drop=False,
            breaker=BreakerRules(min_calls=1000),
        )
        options = replace(options, **changes)
        self.targets = [
            Target(
                replace(
                    options, name=name, origin=f"https://{name}.test", fallbacks=tuple(names[index + 1 :][:1])
                ),
                cast(Pool, pool),
                lambda: 0.5,
                self.events,
                self.shared.append,
            )
            for index, (name, pool) in enumerate(zip(names, self.pools, strict=True))
        ]
        self.dispatcher = Dispatcher(
            self.targets, Patience(rules, lambda: 0.5), Budget(0.0, floor), self._take_news
        )

    def _take_news(self) -> list[Fact]:
        news, self.news = self.news, []
        return news

    @property
    def first(self) -> Target:
        """The target asked first."""
        return self.targets[0]

    def keys_used(self, index: int = 0) -> list[str]:
        """Labels of the keys in the order they were sent."""
        return [dict(one.headers).get("x-api-key", "").removeprefix("sk-") for one in self.pools[index].sent]

    def mark(self, label: str) -> str:
        """What other workers call that key."""
        return next(mark_of(one) for one in self.first.options.secrets if one.key.label == label)

    def told(self, event: str) -> list[dict[str, object]]:
        """Events of one name."""
        return [one for one in self.events if one["event"] == event]

    async def serve(
        self, upload: AsyncIterator[bytes] | None = None, within_s: float = 60.0, **changes: Any
    ) -> Port:
        """One exchange; what was handed up."""
        port = Port()
        plan = PLAN._replace(deadline_at=time.monotonic() + within_s, **changes)
        await self.dispatcher.serve(port, plan, upload)
        return port


class Port:
    """Keeps the head and the body."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.body = b""
        self.crowded = False

    def send_head(self, head: object, *, hold: bool = False) -> None:
        assert self.reply is None, "a second head"
        self.reply = cast(Reply, head)

    def offer(self, data: bytes) -> bool:
        assert self.reply is not None, "bytes before the head"
        self.body += data
        return True

    async def send(self, data: bytes) -> float:
        assert self.reply is not None, "bytes before the head"
        self.body += data
        return 0.0

    @property
    def status(self) -> int:
        assert self.reply is not None
        return self.reply.status

    @property
    def outcomes(self) -> list[str]:
        """Of the tries."""
        assert self.reply is not None
        return [one.outcome for one in self.reply.journey.attempts]


class Naps:
    """Stands for ``asyncio.sleep``: notes how long, and sleeps not at all."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run one scene in a loop of its own, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(bounded())
