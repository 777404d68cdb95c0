"""One load of streams on one target: how it went, what the processes took for it, what the upstream met.

Connections are open, and all servers idle, before anything is timed. Every stream asks for something else.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from app.bench import procs, servers
from app.bench.client import Client
from app.bench.figures import Figures
from app.bench.latency import Target
from app.bench.load import HEADERS, PATH, body, closed, spread
from app.bench.stream_client import Streamed, Streams, stream_body
from app.bench.streaming_figures import Plan, Round, floor_figures
from app.simulator.running import Running

_STAT = Path("/proc/stat")
_SPARE_FILES = 200
_IDLE_S, _IDLE_CPU_S, _IDLE_LIMIT_S = 0.25, 0.011, 5.0
_AFTER_S = 0.1
_WARM_STREAMS, _WARM_MODEL = 8, "claude-sim-stream-3x1ms"
_LOOKS, _LOOK_S = 4, 0.5
Load = Callable[[], Awaitable[list[Streamed]]]


def allow_files(connections: int) -> None:
    """Lets this process and its children have so many connections.

    Raises:
        BenchError: They may not.
    """
    if not procs.allow_files(connections + _SPARE_FILES):
        raise servers.BenchError(f"{connections} connections need a higher limit of open files (ulimit -n)")


async def calm(pids: Sequence[int]) -> bool:
    """Waits until none of ``pids`` does anything; False if one goes on and on, or is gone."""
    limit_s = time.monotonic() + _IDLE_LIMIT_S
    while time.monotonic() < limit_s:
        before_s = cpu_s(pids)
        await asyncio.sleep(_IDLE_S)
        after_s = cpu_s(pids)
        if before_s is None or after_s is None:
            return False
        if after_s - before_s <= _IDLE_CPU_S:
            return True
    return False


def cpu_s(pids: Sequence[int]) -> float | None:
    """CPU seconds, or None if a process is gone."""
    try:
        return procs.cpu_s(pids)
    except OSError:
        return None


def pss_bytes(pids: Sequence[int]) -> int | None:
    """Memory, or None if it cannot be read."""
    try:
        return procs.pss_bytes(pids) if pids else None
    except OSError:
        return None


class Others:
    """What anything but this process and ``pids`` takes of the machine, from its making on."""

    def __init__(self, pids: Sequence[int], stat: Path = _STAT) -> None:
        self._pids = pids
        self._stat = stat
        self._began_s = time.monotonic()
        self._before = self._reading()

    def pct(self) -> float | None:
        """In percent of all cores; None if it is not known."""
        after, took_s = self._reading(), time.monotonic() - self._began_s
        if self._before is None or after is None or took_s <= 0:
            return None
        return max(0.0, 100 * (after[0] - self._before[0]) / (took_s * after[1]))

    def _reading(self) -> tuple[float, int] | None:
        """CPU seconds that others have taken so far, and how many cores there are."""
        own_s = cpu_s(self._pids)
        try:
            lines = self._stat.read_text(encoding="ascii").splitlines()
            ticks = [int(word) for word in lines[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        cores = sum(re.match(r"cpu\d", line) is not None for line in lines)
        if own_s is None or not cores:
            return None
        busy_s = (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks
        return busy_s - own_s - time.process_time(), cores


@contextlib.asynccontextmanager
async def watched(pids: Sequence[int], every_s: float) -> AsyncIterator[list[int | None]]:
    """The memory of ``pids``, looked at again and again while the block runs."""
    found: list[int | None] = []

    async def look() -> None:
        while True:
            await asyncio.sleep(every_s)
            found.append(await asyncio.to_thread(pss_bytes, pids))

    task = asyncio.create_task(look())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


async def timed(target: Target, simulator: Running, events: int, load: Load) -> Round:
    """What ``load`` was, and what the processes of ``target`` took for it; nothing of it was sent before this."""
    pids = target.pids() if target.pids else []
    still = await calm([simulator.pid, *pids])
    gc.collect()
    simulator.reset()
    others = Others([simulator.pid, *pids])
    cpu_before_s, client_s, began_s = cpu_s(pids), time.process_time(), time.monotonic()
    samples = await load()
    ended_s, client_s = time.monotonic(), time.process_time() - client_s
    others_pct = others.pct() if target.pids is not None or target.upstream == "ours" else None
    await asyncio.sleep(_AFTER_S)  # what is still to be logged belongs to the streams
    cpu_after_s = cpu_s(pids)
    same = target.pids is not None and target.pids() == pids and cpu_before_s is not None
    met: int | None = simulator.stats()["events_sent"]
    if target.upstream == "any" and not met:
        met = None
    return Round(
        samples,
        events,
        ended_s - began_s,
        client_s,
        cpu_s=cpu_after_s - (cpu_before_s or 0) if same and cpu_after_s is not None else None,
        met=met,
        calm=still,
        others_pct=others_pct,
    )


async def paced(target: Target, simulator: Running, plan: Plan, text: str) -> Round:
    """As many streams as planned, begun within a moment, with what they took of memory if that can be known."""
    pids = target.pids() if target.pids else []
    await warm(target, text)
    await calm([simulator.pid, *pids])
    before = pss_bytes(pids)
    async with Streams(target.url, target.ca_path, plan.longest_s) as client:
        with servers.named(target.words, target.url):
            await client.open(plan.streams)

        async def send(index: int) -> Streamed:
            return await client.stream(stream_body(plan.model, f"{text}, stream {index}"), target.headers)

        expected_s = plan.events * plan.gap_ms / 1000
        every_s = min(_LOOK_S, max(expected_s / _LOOKS, 0.02))
        async with watched(pids, every_s) as sizes:
            found = await timed(target, simulator, plan.events, lambda: spread(plan.streams, plan.stagger_s, send))
    seen = [size for size in sizes if size is not None]
    if before is None or not seen or len(seen) < len(sizes):
        return found
    return replace(found, pss_bytes=(before, max(seen)))


async def burst(target: Target, simulator: Running, plan: Plan, text: str) -> Round:
    """Streams without gaps; each caller begins its next one when one ends."""
    samples: list[Streamed] = []
    async with Streams(target.url, target.ca_path, plan.longest_s) as client:
        with servers.named(target.words, target.url):
            await client.open(plan.burst_streams)

        async def caller(number: int, until_s: float) -> None:
            turn = 0
            while time.monotonic() < until_s or turn == 0:
                data = stream_body(plan.burst_model, f"{text}, caller {number}, stream {turn}")
                samples.append(await client.stream(data, target.headers))
                turn += 1

        async def load() -> list[Streamed]:
            until_s = time.monotonic() + plan.burst_s
            async with asyncio.TaskGroup() as group:
                for number in range(plan.burst_streams):
                    group.create_task(caller(number, until_s))
            return samples

        return await timed(target, simulator, plan.burst_events, load)


async def warm(target: Target, text: str) -> None:
    """A few short streams, so that what happens once has happened."""
    async with Streams(target.url, target.ca_path) as client:
        for number in range(_WARM_STREAMS):
            await client.stream(stream_body(_WARM_MODEL, f"{text}, warm-up {number}"), target.headers)


async def floor_cost(floor: servers.Floor, simulator: Running, plan: Plan) -> Figures:
    """CPU of a request to the floor."""
    async with Client(floor.url) as client:
        with servers.named("WSGI floor", floor.url):
            await client.open(plan.floor_concurrency)

        async def send(index: int) -> int:
            answer = await client.request("POST", PATH, HEADERS, body("floor", f"floor, request {index}"))
            return answer.status

        await closed(plan.floor_concurrency, plan.floor_concurrency, send)
        pids = floor.pids()
        still = await calm([simulator.pid, *pids])
        before_s = cpu_s(pids)
        statuses = await closed(plan.floor_requests, plan.floor_concurrency, send)
        after_s = cpu_s(pids)
    usable = still and before_s is not None and after_s is not None and floor.pids() == pids
    took_s = (after_s or 0) - (before_s or 0) if usable else None
    return floor_figures(plan.floor_requests, statuses.count(200), took_s)
