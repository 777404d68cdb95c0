"""The gateway with a scripted upstream instead of a pool: no sockets.

Runs on: worker.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from app.assembly import Assembly
from app.bridge import call
from app.bridge.wait import original
from app.exchange import Outbound
from app.settings import Settings, load
from app.upstream.pool import Pool
from app.upstream.transport_base import Inbound


class Canned(Inbound):
    """An answer from a script: bytes come, exceptions are raised, ``None`` waits until it is cancelled."""

    __slots__ = ("closed", "steps")

    def __init__(self, status: int, headers: list[tuple[str, str]], steps: tuple[Any, ...]) -> None:
        super().__init__(status, headers, "HTTP/2")
        self.steps = list(steps)
        self.closed = False

    async def __anext__(self) -> bytes:
        if not self.steps:
            self._finish()
            raise StopAsyncIteration
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        data: bytes = step
        return data

    async def _close(self) -> None:
        self.closed = True


class Upstream:
    """Stands for every pool: notes what is sent, answers as told."""

    def __init__(self) -> None:
        self.seen: list[Outbound] = []
        self.bodies: list[bytes] = []
        self.given: list[Canned] = []
        self.fails: BaseException | None = None
        self.reads_body = True
        self.answers(200, [("content-type", "application/json")], b"{}")

    def answers(self, status: int, headers: list[tuple[str, str]], *steps: Any) -> None:
        """The answer to everything from now on."""
        self.script = (status, headers, steps)

    async def send(
        self, outbound: Outbound, *, streaming: bool, download: bool = False, asker: object = None
    ) -> Inbound:
        self.seen.append(outbound)
        body: bytes | AsyncIterator[bytes] = outbound.body
        if self.reads_body:
            self.bodies.append(body if isinstance(body, bytes) else b"".join([piece async for piece in body]))
        if self.fails is not None:
            raise self.fails
        self.given.append(Canned(*self.script))
        return self.given[-1]

    @property
    def last(self) -> Outbound:
        return self.seen[-1]


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    """What everything goes to."""
    made = Upstream()

    async def send(self: Pool, outbound: Outbound, **how: Any) -> Inbound:
        return await made.send(outbound, **how)

    monkeypatch.setattr(Pool, "send", send)
    return made


@pytest.fixture(autouse=True)
def fresh_bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bridge of its own, its threads measured like all others; nothing assembled before, no keeper after."""
    assembled: list[Assembly] = []

    def start(work: Callable[..., object], args: tuple[Any, ...]) -> object:
        def run() -> None:
            sys.settrace(threading.gettrace())
            work(*args)

        return original("_thread", "start_new_thread")(run, ())

    def replaced(module: str, name: str) -> Any:
        return start if (module, name) == ("_thread", "start_new_thread") else original(module, name)

    monkeypatch.setattr("app.bridge.loop.original", replaced)
    monkeypatch.setattr(call, "_bridge", None)
    monkeypatch.setattr("app.factory._assembled", assembled)
    yield
    for assembly in assembled:
        assembly.keeper._stopping = True
    if call._bridge is not None:
        call._bridge.stop()


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings with a few changes."""

    def make(**environ: str) -> Settings:
        calm = {"LOG_LEVEL": "error", "PRODUCTION_WARMUP_CONNECTIONS": "false", "WEB_CONCURRENCY": "1"}
        return load({**calm, "RETRY_MAX_ATTEMPTS": "1", "BREAKER_MIN_CALLS": "1000000", **environ})

    return make
