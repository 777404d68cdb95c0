"""Much at once on one worker, a cold start, and what a second worker adds.

    for each round:   idle_streams    a fresh gateway, so that memory of an earlier round does not hide this one's
                      slow_requests   another
    for each start:   cold_start      asked from the moment the process begins
    for each round:   one_worker and two_workers, interleaved, beside direct and the WSGI floor (the latency bench)

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.bench import latency, machine, servers
from app.bench.client import Client
from app.bench.concurrent_figures import (
    ROWS,
    Plan,
    idle_faults,
    idle_figures,
    load_figures,
    others,
    ratios,
    slow_faults,
    slow_figures,
)
from app.bench.figures import Figures
from app.bench.latency import SETTINGS, Target
from app.bench.latency_figures import Sample
from app.bench.load import HEADERS, PATH, body, on_a_loop, spread
from app.bench.report import Report, Variant
from app.bench.stream_rounds import Others, allow_files, calm, cpu_s, paced, pss_bytes
from app.bench.streaming import CALLER
from app.bench.streaming_figures import unmeasured
from app.bench.verdict import judge
from app.simulator.running import Running

_MIB = 1024 * 1024
_SETTLE_S = 60.0
_AFTER_S = 0.1
_ASK_S, _ASK_AGAIN_S = 30.0, 0.002
_ASKING_S = 1.0
_FEW = 5
_MODEL = "claude-sim-json-0ms"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """One load of short answers, as it was measured.

    Attributes:
        samples: Every request.
        duration_s: From the first one's begin to the last one's end.
        cpu_s: Of the process tree meanwhile; None if it could not be read.
        pss_bytes: Of the process tree after it; None if it could not be read.
        stats: What the simulator counted meanwhile.
        calm: Whether the servers were idle before.
        others_pct: Of the machine's CPU, what others took meanwhile; None: not known.
    """

    samples: Sequence[Sample]
    duration_s: float
    cpu_s: float | None
    pss_bytes: int | None
    stats: dict[str, Any]
    calm: bool
    others_pct: float | None = None


async def answered(
    target: Target,
    simulator: Running,
    connections: int,
    arrive: Callable[[Callable[[int], Awaitable[Sample]]], Awaitable[list[Sample]]],
    data: Callable[[int], bytes],
    timeout_s: float = _SETTLE_S,
) -> Answered:
    """Sends what ``arrive`` sends, on connections that are open before; ``data`` makes the body of each."""
    headers = {**HEADERS, **target.headers}
    async with Client(target.url, timeout_s=timeout_s) as client:
        with servers.named(target.words, target.url):
            await client.open(connections)

        async def send(index: int) -> Sample:
            answer = await client.request("POST", PATH, headers, data(index))
            return Sample(answer.status, answer.first_s - answer.sent_s, answer.latency_s)

        pids = target.pids() if target.pids else []
        still = await calm([simulator.pid, *pids])
        gc.collect()
        simulator.reset()
        elsewhere, before_s, began_s = Others([simulator.pid, *pids]), cpu_s(pids), time.monotonic()
        samples = await arrive(send)
        duration_s, others_pct = time.monotonic() - began_s, elsewhere.pct()
        await asyncio.sleep(_AFTER_S)
        after_s, stats = cpu_s(pids), simulator.stats()
        took_s = None if before_s is None or after_s is None or target.pids is None else after_s - before_s
        return Answered(samples, duration_s, took_s, pss_bytes(pids), stats, still, others_pct)


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        folder: For logs.
        say: Told about each step.
    """

    def __init__(self, plan: Plan, simulator: Running, folder: Path, say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._folder = folder
        self._say = say
        self.idle = Variant("idle_streams", "idle streams")
        self.slow = Variant("slow_requests", "slow requests")
        self.cold = Variant("cold_start", "cold start")
        self.one = Variant("one_worker", "one worker")
        self.two = Variant("two_workers", "two workers")
        self.faults: list[str] = []

    @property
    def variants(self) -> list[Variant]:
        """In the order of the columns."""
        return [self.idle, self.slow, self.cold, self.one, self.two]

    def measure(self) -> None:
        """Everything."""
        plan = self._plan
        for number in range(1, plan.rounds + 1):
            self._say(f"round {number}/{plan.rounds}: {plan.streams:,} idle streams")
            with self._gateway(plan.idle.room) as target:
                one = on_a_loop(paced(target, self._simulator, plan.idle, f"idle, round {number}"))
            most = int(self._simulator.stats()["max_open_streams"])
            self._add(self.idle, idle_figures(one, most), idle_faults(one, plan, most))
            self._say(f"round {number}/{plan.rounds}: {plan.slow_requests:,} slow requests")
            with self._gateway(plan.slow_room) as target:
                on_a_loop(self._slow(target, number))
        for number in range(1, plan.starts + 1):
            self._say(f"cold start {number}/{plan.starts}")
            self._add(self.cold, cold_start(self._simulator, self._folder, plan.idle_s), [])
        self._workers()

    @contextlib.contextmanager
    def _gateway(self, room: dict[str, object], workers: int = 1) -> Iterator[Target]:
        """A fresh one, until the block is left."""
        settings = {**SETTINGS, "WEB_CONCURRENCY": workers, **room}
        name = f"gateway-{workers}"
        with servers.gateway(self._simulator, self._folder, settings, name) as one:
            yield Target("gateway", "gateway", one.url, one.pids, headers=CALLER)

    async def _slow(self, target: Target, number: int) -> None:
        """One round of slow requests."""
        plan, model = self._plan, f"claude-sim-json-{self._plan.answer_ms}ms"
        one = await answered(
            target,
            self._simulator,
            plan.slow_requests,
            lambda send: spread(plan.slow_requests, plan.spread_s, send),
            lambda index: body(model, f"slow, round {number}, request {index}"),
            _SETTLE_S + plan.answer_ms / 1000,
        )
        lacks = [] if one.calm else ["the servers were still busy when it began"]
        most = int(one.stats["max_open_streams"])
        lacks += slow_faults(one.samples, plan, sum(one.stats["requests"].values()), most)
        found = slow_figures(one.samples, one.duration_s, one.cpu_s, most) | others(one.others_pct)
        self._add(self.slow, found, lacks)

    def _workers(self) -> None:
        """The same load to one worker and to two."""
        plan, upstream = self._plan, self._simulator
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(servers.floor(self._folder))
            one = stack.enter_context(self._gateway({}, 1))
            two = stack.enter_context(self._gateway({}, 2))
            targets = [
                Target("direct", "direct", upstream.tls_url, ca_path=upstream.ca_path),
                Target("floor", "WSGI floor", base.url, base.pids, upstream="none"),
                Target(self.one.name, self.one.words, one.url, one.pids, headers=CALLER),
                Target(self.two.name, self.two.words, two.url, two.pids, headers=CALLER),
            ]
            bench = latency.Bench(plan.short, upstream, targets, self._say)
            on_a_loop(bench.measure())
        self.faults += bench.faults
        rounds = zip(bench.variants[self.one.name].rounds, bench.variants[self.two.name].rounds, strict=True)
        for alone, both in rounds:
            self._add(self.one, load_figures(alone), [])
            self._add(self.two, load_figures(both) | ratios(alone, both), [])

    def _add(self, variant: Variant, found: Figures, lacks: list[str]) -> None:
        variant.rounds.append(found)
        lacks = lacks or unmeasured(found)
        self.faults += [f"round {len(variant.rounds)}, {variant.name}: {text}" for text in lacks]


def cold_start(simulator: Running, folder: Path, idle_s: float) -> Figures:
    """Starts a gateway with one worker, asks until it answers, and looks at its memory once it is idle.

    Raises:
        BenchError: It did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environ = servers.gateway_environment(simulator, {**SETTINGS, "PORT": port})
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    began_s = time.monotonic()
    process = servers.Gateway("gateway", command, environ, folder / "cold.log")
    try:
        process.wait_for(lambda: _asked(port))
        first_s = time.monotonic() - began_s
        took_s = cpu_s(process.pids())
        for _ in range(_FEW):
            if not _answers(port):
                raise servers.BenchError("the gateway answered once and then no more")
        time.sleep(idle_s)
        size = process.rss_bytes()
    finally:
        process.stop()
    return {"first_answer_s": round(first_s, 4), "start_cpu_s": took_s, "rss_mib": round(size / _MIB, 2)}


def _asked(port: int) -> bool:
    """Asks in a tight loop for a second; whether there was an answer."""
    until_s = time.monotonic() + _ASKING_S
    while time.monotonic() < until_s:
        if _answers(port):
            return True
        time.sleep(_ASK_AGAIN_S)
    return False


def _answers(port: int) -> bool:
    """Whether a messages request is answered with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)
    try:
        connection.request("POST", PATH, body(_MODEL, "cold start"), {**HEADERS, **CALLER, "connection": "close"})
        answer = connection.getresponse()
        return answer.status == 200 and bool(answer.read())
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def run(plan: Plan, say: Say) -> Report:
    """All of it.

    Raises:
        BenchError: A server did not come up, or so many files may not be open.
    """
    allow_files(max(plan.streams, plan.slow_requests))
    cores = int(machine.facts()["cores"])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        upstream = stack.enter_context(servers.simulator())
        bench = Bench(plan, upstream, folder, say)
        bench.measure()
    settings = {**asdict(plan), "idle_streams_room": plan.idle.room, "slow_requests_room": plan.slow_room}
    judged = judge(plan.aims(cores), {variant.name: variant.rounds for variant in bench.variants})
    notes = plan.notes(cores, bench.slow.rounds)
    return Report("concurrent", plan.title(), settings, ROWS, bench.variants, judged, bench.faults, notes)


def steps(plan: Plan) -> int:
    """How often ``run`` says something."""
    return 2 * plan.rounds + plan.starts + 4 * (plan.rounds + 1)
