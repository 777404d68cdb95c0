"""Fixtures of the contract suite: simulators in processes of their own, and pools of each transport.

Runs on: worker.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import uvloop

from app.exchange import Headers, Outbound
from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from app.upstream.pool import Events, Pool, PoolOptions
from app.upstream.transport_base import Inbound

Name = Literal["h2", "reqwest", "httpcore"]

JSON: Headers = (
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("anthropic-version", "2023-06-01"),
)
LIMIT_S = 40.0
"""A test that takes longer hangs."""


class Lab:
    """One simulator and one transport, and what the tests do with them."""

    def __init__(self, name: Name, sim: Running) -> None:
        self.name = name
        self.sim = sim
        self.ca = Path(sim.ca_path).read_bytes()
        self.events: Events = collections.deque()
        sim.reset()

    @contextlib.asynccontextmanager
    async def pool(self, origin: str = "", **options: Any) -> AsyncIterator[Pool]:
        """A pool to the simulator's TLS port, closed at the end."""
        options.setdefault("transport", self.name)
        options.setdefault("ca_pem", self.ca)
        made = Pool(PoolOptions(origin or self.sim.tls_url, **options), self.events)
        try:
            yield made
        finally:
            await made.close()

    def told(self, event: str) -> list[dict[str, Any]]:
        """What the pools said, of one name."""
        return [one for one in self.events if one["event"] == event]

    def message(self, model: str, *, stream: bool = False, origin: str = "", headers: Headers = JSON) -> Outbound:
        """POST /v1/messages."""
        body = json.dumps({"model": f"claude-sim-{model}", "max_tokens": 16, "stream": stream}).encode()
        return Outbound("POST", origin or self.sim.tls_url, "/v1/messages", headers, body)

    def get(self, target: str, headers: Headers = JSON, method: str = "GET", body: bytes = b"") -> Outbound:
        """Any request without much of a body."""
        return Outbound(method, self.sim.tls_url, target, headers, body)

    async def until(self, wanted: Callable[[dict[str, Any]], bool], limit_s: float = 10.0) -> dict[str, Any]:
        """The simulator's counters, once they are as wanted (or when time is up)."""
        deadline = time.monotonic() + limit_s
        while True:
            stats = self.sim.stats()
            if wanted(stats) or time.monotonic() > deadline:
                return stats
            await asyncio.sleep(0.01)

    async def when(self, condition: Callable[[], object], limit_s: float = 10.0) -> None:
        """Wait for something on our side."""
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)


async def read_all(inbound: Inbound) -> bytes:
    """The whole body."""
    try:
        return b"".join([piece async for piece in inbound])
    finally:
        await inbound.aclose()


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
_abandoned: list[asyncio.AbstractEventLoop] = []


@pytest.fixture
def run() -> Run:
    """Run one coroutine function on the loop that production uses, within ``LIMIT_S``."""

    def runner(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LIMIT_S):
                await work()

        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(limited())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        except BaseException:
            _abandoned.append(
                loop
            )  # closing it would wait for the connections a failed test leaves open, for ever
            raise
        loop.close()

    return runner


@pytest.fixture
def read() -> Callable[[Inbound], Awaitable[bytes]]:
    """Reader of whole bodies."""
    return read_all


@pytest.fixture(scope="session")
def peers() -> Iterator[Callable[[Options], Running]]:
    """Simulators by their options, started once each."""
    started: dict[Options, Running] = {}
    with contextlib.ExitStack() as stack:

        def get(options: Options) -> Running:
            if options not in started:
                started[options] = stack.enter_context(running(options))
            return started[options]

        yield get


@pytest.fixture(params=["h2", "reqwest", "httpcore"])
def name(request: pytest.FixtureRequest) -> Name:
    """The transport under test."""
    found: Name = request.param
    return found


@pytest.fixture
def lab(name: Name, peers: Callable[[Options], Running]) -> Lab:
    """A transport and an ordinary simulator."""
    return Lab(name, peers(Options(max_concurrent_streams=100)))


@pytest.fixture
def lab_with(name: Name, peers: Callable[[Options], Running]) -> Callable[..., Lab]:
    """A transport and a simulator with other options."""

    def make(**options: Any) -> Lab:
        return Lab(name, peers(Options(**options)))

    return make
