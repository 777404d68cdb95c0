"""What settings do: the same load at each position of one setting, the positions in turns.

Every measurement has a gateway of its own, with one worker unless that is what is turned, and the settings of the
other benches.

Runs on: bench loop.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from app.bench import servers
from app.bench.concurrent import answered
from app.bench.figures import Figures
from app.bench.latency import SETTINGS, Target
from app.bench.latency_figures import order
from app.bench.load import body, closed, on_a_loop
from app.bench.profiles_figures import (
    Cell,
    Load,
    Plan,
    Profiles,
    Sweep,
    download_faults,
    download_figures,
    request_faults,
    request_figures,
    stream_figures,
    sweeps,
)
from app.bench.report import Report, Variant
from app.bench.stream_client import Streamed, Streams
from app.bench.stream_rounds import allow_files, paced, pss_bytes, timed, warm, watched
from app.bench.streaming import CALLER
from app.bench.streaming_figures import faults as stream_faults
from app.bench.streaming_figures import unmeasured
from app.settings import rows
from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running

_SPARE_STREAMS = 56
_LONGEST_S = 120.0
_LOOK_S = 0.1
Say = Callable[[str], None]
Found = tuple[Figures, list[str]]


class Bench:
    """One sweep: its columns fill as it goes on.

    Args:
        plan: What to do.
        sweep: What to turn.
        simulator: The upstream.
        folder: For logs.
        say: Told about each step.
    """

    def __init__(self, plan: Plan, sweep: Sweep, simulator: Running, folder: Path, say: Say) -> None:
        self._plan = plan
        self._sweep = sweep
        self._simulator = simulator
        self._folder = folder
        self._say = say
        self._cells = {cell.name: cell for cell in sweep.cells}
        self.variants = {cell.name: Variant(cell.name, cell.words) for cell in sweep.cells}
        self.faults: list[str] = []

    def measure(self) -> None:
        """All rounds of all positions."""
        for number in range(1, self._plan.rounds + 1):
            for name in order(list(self._cells), number):
                cell = self._cells[name]
                found: Figures = {}
                lacks: list[str] = []
                for load in self._sweep.loads:
                    self._say(f"{self._sweep.name}, round {number}/{self._plan.rounds}: {cell.words}, {load}")
                    figures, texts = self._load(load, cell, f"{name}, round {number}")
                    found |= figures
                    lacks += texts or unmeasured(figures)
                self.variants[name].rounds.append(found)
                self.faults += [f"round {number}, {cell.words}: {text}" for text in lacks]

    def _load(self, load: Load, cell: Cell, text: str) -> Found:
        """One load on a fresh gateway."""
        settings = {**SETTINGS, "WEB_CONCURRENCY": 1, **self._plan.streaming.room, **cell.settings}
        self._simulator.reset()
        with servers.gateway(self._simulator, self._folder, settings) as gateway:
            target = Target("gateway", "gateway", gateway.url, gateway.pids, headers=CALLER)
            if load == "requests":
                return on_a_loop(self._requests(target, text))
            if load == "downloads":
                return on_a_loop(self._downloads(target, text))
            on_a_loop(warm(target, text))  # a gateway may be ready a moment before its first connection is
            opened = self._handshakes()
            one = on_a_loop(paced(target, self._simulator, self._plan.streaming, text))
            opened += self._handshakes()
            return stream_figures(one, opened), stream_faults(one, self._plan.streams)

    def _handshakes(self) -> int:
        """TLS handshakes, which only the gateway makes here, since the simulator was reset."""
        return int(self._simulator.stats()["tls_handshakes"])

    async def _requests(self, target: Target, text: str) -> Found:
        """Short requests."""
        plan = self._plan
        await warm(target, text)
        one = await answered(
            target,
            self._simulator,
            plan.concurrency,
            lambda send: closed(plan.requests, plan.concurrency, send),
            lambda index: body("claude-sim-json-0ms", f"{text}, request {index}"),
        )
        figures = request_figures(one.samples, one.duration_s, one.cpu_s, one.pss_bytes, one.others_pct)
        return figures, _restless(one.calm) + request_faults(one.samples, plan)

    async def _downloads(self, target: Target, text: str) -> Found:
        """Large answers."""
        plan = self._plan
        await warm(target, text)
        pids = target.pids() if target.pids else []
        before = pss_bytes(pids)
        async with Streams(target.url, timeout_s=_LONGEST_S) as client:
            with servers.named(target.words, target.url):
                await client.open(plan.downloads_at_once)

            async def send(index: int) -> Streamed:
                data = body(f"claude-sim-big-{plan.download_kib}k", f"{text}, download {index}")
                return await client.stream(data, {**target.headers, "accept": "*/*"})

            async with watched(pids, _LOOK_S) as sizes:
                one = await timed(
                    target, self._simulator, 0, lambda: closed(plan.downloads, plan.downloads_at_once, send)
                )
        seen = [size for size in sizes if size is not None]
        if before is not None and seen and len(seen) == len(sizes):
            one = replace(one, pss_bytes=(before, max(seen)))
        return download_figures(one), _restless(one.calm) + download_faults(one.samples, plan)


def _restless(calm: bool) -> list[str]:
    return [] if calm else ["the servers were still busy when it began"]


def run(plan: Plan, what: Sequence[str], say: Say, *, markdown: bool = False) -> Profiles:
    """The sweeps of these names.

    Raises:
        BenchError: A server did not come up, or so many files may not be open.
    """
    allow_files(2 * plan.streams)
    known = possible(plan)
    found = Profiles(f"profiles: {', '.join(what)}; what settings do", markdown=markdown)
    lacking = [name for name in what if name not in known]
    if lacking:
        found.notes = [f"not swept, for there is no such setting: {', '.join(lacking)}"]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        for name in what:
            if name in known:
                found.reports[name] = _swept(plan, known[name], Path(folder), say)
    return found


def _swept(plan: Plan, sweep: Sweep, folder: Path, say: Say) -> Report:
    with _simulator(plan) as simulator:
        bench = Bench(plan, sweep, simulator, folder, say)
        bench.measure()
    settings = {**asdict(plan), "cells": {cell.name: dict(cell.settings) for cell in sweep.cells}}
    variants = list(bench.variants.values())
    return Report(f"profiles-{sweep.name}", sweep.title(plan), settings, sweep.rows, variants, [], bench.faults)


@contextlib.contextmanager
def _simulator(plan: Plan) -> Iterator[Running]:
    """An upstream that lets one connection carry all streams, which most do not."""
    with contextlib.ExitStack() as stack:
        try:
            options = Options(max_concurrent_streams=plan.streams + _SPARE_STREAMS)
            found = stack.enter_context(running(options))
        except (RuntimeError, OSError) as fault:
            raise servers.BenchError(f"the simulator did not come up: {fault}") from fault
        yield found


def possible(plan: Plan) -> dict[str, Sweep]:
    """The sweeps whose settings this gateway has."""
    return sweeps(plan, {name for row in rows() for name in row.env})


def steps(plan: Plan, what: Sequence[str]) -> int:
    """How often ``run`` says something."""
    known = possible(plan)
    return sum(plan.rounds * len(known[name].cells) * len(known[name].loads) for name in what if name in known)
