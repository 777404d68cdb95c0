"""Latency and CPU of short answers: straight to the upstream, the WSGI floor and the gateway, in turns.

    for each round, there and back again:
        direct     the same client to the simulator, HTTP/1.1 over TLS
        floor      gunicorn + gevent + Flask with a constant answer
        gateway    this checkout's, HTTP/2 over TLS to the simulator
        against    gateways that somebody runs already

All servers stay up over the rounds and are warm before the first. Before each turn, connections are opened and all
servers left alone until they are idle; figures come from what is sent, met and used up after that.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from app.bench import procs, servers
from app.bench.against import Against
from app.bench.client import Client
from app.bench.figures import Figures
from app.bench.latency_figures import (
    ROWS,
    Met,
    Plan,
    Round,
    Sample,
    Usage,
    compared,
    counts,
    faults,
    figures,
    order,
    replaced,
)
from app.bench.load import HEADERS, PATH, body, closed, on_a_loop
from app.bench.report import Report, Variant
from app.bench.verdict import judge
from app.simulator.running import Running

_CALLER_KEY = "bench-caller"
SETTINGS: Final = {"ANTHROPIC_API_KEYS": "bench-upstream", "GATEWAY_API_KEYS": _CALLER_KEY, "LOG_LEVEL": "info"}
"""The gateway as by default, with keys of its own and of its callers, as one that is deployed has them."""
_SETTLE_S = 30.0
_IDLE_S, _IDLE_CPU_S, _IDLE_LIMIT_S = 0.25, 0.011, 5.0
_AFTER_S = 0.1
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What requests are sent to.

    Attributes:
        name: Of its variant.
        words: In the table.
        url: Where it is, with what stands before the path.
        pids: Its process tree; None if that is not known or of no interest.
        ca_path: PEM file of the authority to trust, for https.
        headers: Added to each request.
        upstream: Whom its requests reach: ``ours`` the simulator, ``any``, ``none``.
    """

    name: str
    words: str
    url: str
    pids: Callable[[], list[int]] | None = None
    ca_path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    upstream: str = "ours"


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        targets: ``direct`` and ``floor`` among them.
        say: Told about each step.
    """

    def __init__(self, plan: Plan, simulator: Running, targets: Sequence[Target], say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._targets = {target.name: target for target in targets}
        self._say = say
        self.variants = {target.name: Variant(target.name, target.words) for target in targets}
        self._pids: dict[str, list[int]] = {}
        self.faults: list[str] = []

    async def measure(self) -> None:
        """Warms up, then all rounds."""
        names = list(self._targets)
        for name in names:
            self._say(f"warm-up: {self._targets[name].words}")
            async with self._client(name) as client:
                await self._load(self._targets[name], client, self._plan.warm_up, "warm-up")
        self._pids = {name: one.pids() for name, one in self._targets.items() if one.pids}
        for number in range(1, self._plan.rounds + 1):
            rounds: dict[str, Round] = {}
            for name in order(names, number):
                self._say(f"round {number}/{self._plan.rounds}: {self._targets[name].words}")
                rounds[name] = await self._round(self._targets[name], number)
            self._note(number, rounds)

    def _note(self, number: int, rounds: Mapping[str, Round]) -> None:
        """A round's figures, and what is missing in it."""
        found = {name: figures(one) for name, one in rounds.items()}
        for name, variant in self.variants.items():
            one, target = rounds[name], self._targets[name]
            more: Figures = {}
            if name not in ("direct", "floor"):
                more = compared(found[name], found["direct"], found["floor"], same_upstream=one.met_all)
            variant.rounds.append(found[name] | more)
            variant.details.append({"statuses": counts(one.samples)})
            lacks = faults(one, self._plan, elsewhere=target.upstream == "any")
            if one.usage is not None:
                lacks += replaced(self._pids.get(name, ()), one.usage.before)
            self.faults += [f"round {number}, {name}: {text}" for text in lacks]

    def _client(self, name: str) -> Client:
        target = self._targets[name]
        return Client(target.url, target.ca_path, _SETTLE_S + self._plan.answer_ms / 1000)

    async def _round(self, target: Target, number: int) -> Round:
        """One turn of one target; nothing of it was sent before this."""
        async with self._client(target.name) as client:
            with servers.named(target.words, target.url):
                await client.open(min(self._plan.concurrency, self._plan.requests))
            calm = await self._idle()
            gc.collect()
            self._simulator.reset()
            before = target.pids() if target.pids else []
            cpu_s, client_s, began_s = _cpu_s(before), time.process_time(), time.monotonic()
            samples = await self._load(target, client, self._plan.requests, f"round {number}")
            ended_s, client_s = time.monotonic(), time.process_time() - client_s
            await asyncio.sleep(_AFTER_S)  # what is still to be logged belongs to the requests
            usage = _usage(target, before, cpu_s)
            return Round(samples, ended_s - began_s, client_s, usage, self._met(target), calm)

    async def _load(self, target: Target, client: Client, count: int, text: str) -> list[Sample]:
        """Sends ``count`` requests, no two alike."""
        path, headers = urlsplit(target.url).path + PATH, {**HEADERS, **target.headers}
        model = self._plan.asked

        async def send(index: int) -> Sample:
            data = body(model, f"{target.name}, {text}, request {index}")
            answer = await client.request("POST", path, headers, data)
            return Sample(answer.status, answer.first_s - answer.sent_s, answer.latency_s)

        return await closed(count, self._plan.concurrency, send)

    async def _idle(self) -> bool:
        """Waits until no server does anything; False if one goes on and on."""
        limit_s = time.monotonic() + _IDLE_LIMIT_S
        while True:
            pids = [self._simulator.pid]
            for target in self._targets.values():
                pids += target.pids() if target.pids else []
            before_s = _cpu_s(pids)
            await asyncio.sleep(_IDLE_S)
            after_s = _cpu_s(pids)
            if before_s is not None and after_s is not None and after_s - before_s <= _IDLE_CPU_S:
                return True
            if time.monotonic() > limit_s:
                return False

    def _met(self, target: Target) -> Met | None:
        """What the simulator counted since it was reset."""
        if target.upstream == "none":
            return None
        stats = self._simulator.stats()
        connections = stats["tcp_connections"] - 1  # the one that asks
        return Met(sum(stats["requests"].values()), connections, stats["tls_handshakes"])


def _cpu_s(pids: Sequence[int]) -> float | None:
    """CPU seconds, or None if a process is gone."""
    try:
        return procs.cpu_s(pids)
    except OSError:
        return None


def _usage(target: Target, before: Sequence[int], cpu_s: float | None) -> Usage | None:
    """What the processes of ``target`` took since they were ``before`` and had taken ``cpu_s``."""
    if target.pids is None:
        return None
    now_s, after = _cpu_s(before), target.pids()
    try:
        pss_bytes = procs.pss_bytes(after)
    except OSError:
        pss_bytes = None
    return Usage(before, after, None if cpu_s is None or now_s is None else now_s - cpu_s, pss_bytes)


def run(plan: Plan, say: Say, against: Sequence[Against] = (), simulator: Running | None = None) -> Report:
    """All rounds of all variants.

    Args:
        plan: What to do.
        say: Told about each step.
        against: Gateways that run already, to be measured beside ours.
        simulator: One that runs already, for them to have the same upstream.

    Raises:
        BenchError: A server did not come up or does not answer.
    """
    for one in against:
        one.reach()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        upstream = simulator or stack.enter_context(servers.simulator())
        targets = [*_own(plan, upstream, folder, stack), *_others(against)]
        bench = Bench(plan, upstream, targets, say)
        on_a_loop(bench.measure())
    settings = {**asdict(plan), "against": [one.url for one in against]}
    variants = list(bench.variants.values())
    judged = judge(plan.aims(), {variant.name: variant.rounds for variant in variants})
    return Report("latency", plan.title(), settings, ROWS, variants, judged, bench.faults, plan.notes())


def steps(plan: Plan, against: int = 0) -> int:
    """How often ``run`` says something."""
    return (plan.rounds + 1) * (3 + against)


def _own(plan: Plan, upstream: Running, folder: Path, stack: contextlib.ExitStack) -> Iterator[Target]:
    """The controls and the gateway, which run until ``stack`` is left."""
    given = {
        **SETTINGS,
        "WEB_CONCURRENCY": plan.workers,
        "GUNICORN_CMD_ARGS": f"--worker-class {plan.worker_class}",
    }
    base = stack.enter_context(servers.floor(folder, plan.workers))
    ours = stack.enter_context(servers.gateway(upstream, folder, given))
    yield Target("direct", "direct", upstream.tls_url, ca_path=upstream.ca_path)
    yield Target("floor", "WSGI floor", base.url, base.pids, upstream="none")
    yield Target("gateway", "gateway", ours.url, ours.pids, headers={"x-api-key": _CALLER_KEY})


def _others(against: Sequence[Against]) -> Iterator[Target]:
    """What runs already."""
    for number, one in enumerate(against, 1):
        name = "against" if number == 1 else f"against_{number}"
        yield Target(name, one.words, one.url, _tree(one), headers=one.headers, upstream="any")


def _tree(one: Against) -> Callable[[], list[int]] | None:
    """How to find its processes."""
    pid = one.pid
    return None if pid is None else lambda: procs.tree(pid)
