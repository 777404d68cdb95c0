"""What observing costs: gateways that observe this or that, all up at once, each serving a slice in every turn.

    every few turns new gateways: where its objects lie makes two equal processes differ by several percent
    for each turn, in an order of its own, each gateway, with one worker:
        connections, requests to warm up, a rest       not counted
        short requests, and the rest after them        CPU of its worker, per request
        the same with event streams                    CPU of its worker, per event

The rest belongs to what was served: log lines, counting and usage are put off to a tick every quarter second.

With two cores or more all gateways have one, and this process and the simulator have the others: a core that
is shared with whoever asks and answers makes two equal gateways differ by more than what is looked for.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from app.bench import procs, servers
from app.bench.client import Client
from app.bench.figures import Figures
from app.bench.latency import SETTINGS
from app.bench.latency_figures import replaced
from app.bench.load import HEADERS, PATH, body, closed, on_a_loop, spread
from app.bench.observed_figures import (
    Plan,
    Served,
    compared,
    event_figures,
    notes,
    order,
    request_faults,
    request_figures,
    split,
)
from app.bench.report import Report, Variant
from app.bench.stream_client import Streamed, Streams, stream_body
from app.bench.stream_rounds import allow_files, cpu_s
from app.bench.streaming import CALLER
from app.bench.streaming_figures import Round, unmeasured
from app.bench.streaming_figures import faults as stream_faults
from app.bench.verdict import judge
from app.simulator.running import Running

REST_S = 0.35
_PROC = Path("/proc")
_MODEL = "claude-sonnet-5"  # one that has a price, so that there is a cost to be found
_SCENARIO, _WARM_SCENARIO = "x-sim-scenario", "stream-3x1ms"
_LONGEST_S = 60.0
T = TypeVar("T")
Say = Callable[[str], None]
Cores = tuple[set[int], set[int]]


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        say: Told about each step.
    """

    def __init__(self, plan: Plan, simulator: Running, say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._gateways: Mapping[str, servers.Gateway] = {}
        self._say = say
        self._workers: dict[str, list[int]] = {}
        self.variants = {cell.name: Variant(cell.name, cell.words) for cell in plan.cells}
        self.faults: list[str] = []

    async def measure(self, gateways: Mapping[str, servers.Gateway], turns: range) -> None:
        """A turn that is not counted, then those that are.

        Args:
            gateways: By the name of their cell; all of them are up.
            turns: Numbers of the turns they serve.
        """
        self._gateways, self._workers = gateways, {}
        for name, variant in self.variants.items():
            self._say(f"warm-up: {variant.words}")
            await self._slices(name, "warm-up")
        for turn in turns:
            found: dict[str, Figures] = {}
            for name in order(list(self.variants), turn):
                words = self.variants[name].words
                self._say(f"turn {turn}/{self._plan.turns}: {words}")
                found[name], lacks = await self._slices(name, f"turn {turn}")
                self.faults += [f"turn {turn}, {words}: {text}" for text in lacks]
            for name, figures in compared(found).items():
                self.variants[name].rounds.append(figures)

    async def _slices(self, name: str, text: str) -> tuple[Figures, list[str]]:
        """What one gateway does in a turn: its figures, and what is missing."""
        plan, gateway = self._plan, self._gateways[name]
        now = gateway.workers()
        lacks = replaced(self._workers.setdefault(name, now), now)
        served = await requests(gateway, self._simulator, plan, f"{name}, {text}")
        found = request_figures(served)
        lacks += request_faults(served, plan)
        if plan.streams:
            carried = await streams(gateway, self._simulator, plan, f"{name}, {text}")
            found |= event_figures(carried)
            lacks += stream_faults(carried, plan.streams)
        return found, lacks or unmeasured(found)


async def requests(gateway: servers.Gateway, simulator: Running, plan: Plan, text: str) -> Served:
    """A slice of short requests, no two alike."""
    headers = {**HEADERS, **CALLER}
    async with Client(gateway.url, timeout_s=_LONGEST_S) as client:
        with servers.named("gateway", gateway.url):
            await client.open(plan.concurrency)

        async def send(index: int) -> int:
            data = body(_MODEL, f"{text}, request {index}")
            return (await client.request("POST", PATH, headers, data)).status

        await closed(plan.concurrency, plan.concurrency, lambda index: send(index - plan.concurrency))
        statuses, took_s, stats = await cost(
            gateway.workers, simulator, lambda: closed(plan.requests, plan.concurrency, send)
        )
    return Served(statuses, took_s, sum(stats["requests"].values()))


async def streams(gateway: servers.Gateway, simulator: Running, plan: Plan, text: str) -> Round:
    """A slice of event streams, begun within a moment."""
    paced = plan.streaming
    async with Streams(gateway.url, timeout_s=paced.longest_s) as client:
        with servers.named("gateway", gateway.url):
            await client.open(plan.streams)

        async def ask(scenario: str, index: int) -> Streamed:
            data = stream_body(_MODEL, f"{text}, {scenario}, stream {index}")
            return await client.stream(data, {**CALLER, _SCENARIO: scenario})

        await closed(plan.streams, plan.streams, lambda index: ask(_WARM_SCENARIO, index))
        scenario = f"stream-{plan.events}x{plan.gap_ms}ms"
        samples, took_s, stats = await cost(
            gateway.workers,
            simulator,
            lambda: spread(plan.streams, paced.stagger_s, lambda index: ask(scenario, index)),
        )
    duration_s = max(one.done_s for one in samples) - min(one.sent_s for one in samples)
    return Round(samples, plan.events, duration_s, cpu_s=took_s, met=stats["events_sent"])


async def cost(
    workers: Callable[[], list[int]], simulator: Running, load: Callable[[], Awaitable[list[T]]]
) -> tuple[list[T], float | None, dict[str, Any]]:
    """What ``load`` found, what ``workers`` took for it, and what the simulator met meanwhile.

    Returns:
        The CPU seconds with those of the rest after it, without those of what was put off before it; None if
        they cannot be read, or a worker died or came.
    """
    await asyncio.sleep(REST_S)
    simulator.reset()
    pids = workers()
    before_s = cpu_s(pids)
    found = await load()
    await asyncio.sleep(REST_S)
    after_s = cpu_s(pids)
    same = before_s is not None and after_s is not None and workers() == pids
    return found, (after_s or 0) - (before_s or 0) if same else None, simulator.stats()


def hold(pids: Iterable[int], cores: Collection[int], proc: Path = _PROC) -> None:
    """Puts every thread of ``pids`` on ``cores``, also one that another has started meanwhile."""
    pids, done = list(pids), set[int]()
    while new := {int(path.name) for pid in pids for path in proc.glob(f"{pid}/task/*")} - done:
        for thread in new:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread, cores)
        done |= new


@contextlib.contextmanager
def apart(gateways: Iterable[servers.Gateway], simulator: Running, cores: Cores | None) -> Iterator[None]:
    """The gateways have the first of ``cores``, this process and the simulator the second; None: as it was."""
    if cores is None:
        yield
        return
    before, own = os.sched_getaffinity(0), [os.getpid()]
    try:
        hold([pid for gateway in gateways for pid in gateway.pids()], cores[0])
        hold([*own, *procs.tree(simulator.pid)], cores[1])
        yield
    finally:
        hold(own, before)


def run(plan: Plan, say: Say) -> Report:
    """All turns of all gateways.

    Raises:
        BenchError: A server did not come up or does not answer, or so many files may not be open.
    """
    allow_files(2 * max(plan.streams, plan.concurrency))
    cores = split(os.sched_getaffinity(0)) if plan.pin else None
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        simulator = stack.enter_context(servers.simulator())
        bench = Bench(plan, simulator, say)
        for turns in plan.shifts:
            with contextlib.ExitStack() as shift:
                gateways = {
                    cell.name: shift.enter_context(
                        servers.gateway(simulator, folder, gateway_settings(cell.settings), cell.name)
                    )
                    for cell in plan.cells
                }
                shift.enter_context(apart(gateways.values(), simulator, cores))
                on_a_loop(bench.measure(gateways, turns))
    pinned, variants = cores is not None, list(bench.variants.values())
    settings = {**asdict(plan), "pinned": pinned, "cells": {cell.name: dict(cell.settings) for cell in plan.cells}}
    judged = judge(plan.aims(), {variant.name: variant.rounds for variant in variants})
    told = notes(plan, variants, pinned=pinned)
    return Report("observed", plan.title(), settings, plan.rows, variants, judged, bench.faults, told)


def gateway_settings(given: Mapping[str, object]) -> dict[str, object]:
    """What a gateway is started with; gunicorn says where it listens, whatever LOG_LEVEL is."""
    return {**SETTINGS, "WEB_CONCURRENCY": 1, "GUNICORN_CMD_ARGS": "--log-level info", **given}


def steps(plan: Plan) -> int:
    """How often ``run`` says something."""
    return (plan.turns + len(plan.shifts)) * len(plan.cells)
