"""Ours next to what people would otherwise run: WSGI floor, nginx, plain proxies, other gateways, in turns.

    for each round, there and back again, all servers up:
        direct, floor, gateway, each peer: facts about bytes and departures, closed load, paced streams

A peer that cannot be set up, does not start or dies has no figures but a fault. That is a fault of the whole run
only for peers that were asked for by name, or if no peer is left: the others are measured all the same.

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
from typing import Any

from app.bench import latency_figures, procs, servers, streaming_figures
from app.bench.client import Client
from app.bench.figures import Figures
from app.bench.latency import SETTINGS, Target
from app.bench.latency_figures import Met, Sample, Usage, compared, order
from app.bench.load import HEADERS, PATH, body, closed, on_a_loop, spread
from app.bench.peers_figures import ROWS, Plan, faults, json_figures, stream_figures
from app.bench.peers_probe import Place, probe
from app.bench.peers_scripts import KEY, PEERS, Found, PeerError, headers, prepare, started
from app.bench.report import Report, Variant
from app.bench.stream_client import Streamed, Streams, stream_body
from app.simulator.running import Running

_CONTROLS = ("direct", "floor")
_TIMEOUT_S = 30.0
_SPARE_FILES = 400
_IDLE_S, _IDLE_SHARE, _IDLE_LIMIT_S = 0.25, 0.1, 5.0
_AFTER_S = 0.1
Say = Callable[[str], None]


@dataclass(slots=True)
class Column:
    """One of those that are compared.

    Attributes:
        target: What is sent to.
        variant: Its figures.
        requests: Of a closed load; 0 before it is calibrated.
        fault: Why it is out of the race.
    """

    target: Target
    variant: Variant
    requests: int = 0
    fault: str = ""

    @property
    def place(self) -> Place:
        """For single questions."""
        return Place(self.target.url, self.target.headers, self.target.ca_path)


@dataclass(slots=True)
class Bench:
    """One run: its columns fill as it goes on.

    Attributes:
        plan: What to do.
        simulator: The upstream.
        columns: ``direct`` and ``floor`` among them.
        say: Told about each step.
        restless: Turns that began while servers were busy.
    """

    plan: Plan
    simulator: Running
    columns: dict[str, Column]
    say: Say
    restless: list[str] = field(default_factory=list)

    async def measure(self) -> None:
        """Calibrates, then all rounds."""
        for column in self.columns.values():
            if column.fault:
                continue
            self.say(f"warm-up: {column.target.words}")
            with self._may_fail(column):
                for text in ("warm-up", "calibration"):
                    one = await self._closed(column, self.plan.calibration, text)
                column.requests = self.plan.requests(len(one.good) / one.duration_s)
        for number in range(1, self.plan.rounds + 1):
            found: dict[str, Figures] = {}
            for name in order(list(self.columns), number):
                column = self.columns[name]
                if column.fault:
                    continue
                self.say(f"round {number}/{self.plan.rounds}: {column.target.words}")
                with self._may_fail(column):
                    found[name] = await self._turn(column, number)
            self._note(found)

    @contextlib.contextmanager
    def _may_fail(self, column: Column) -> Iterator[None]:
        """A peer that is gone is out of the race, with what it had reached; a control, or ours, ends the run."""
        try:
            yield
        except OSError as fault:
            if column.target.name in (*_CONTROLS, "gateway"):
                raise servers.BenchError(f"{column.target.words} went away: {fault!r}") from fault
            column.fault = f"it went away: {fault!r}"
            column.variant.rounds.clear()
            column.variant.details.clear()

    def _note(self, found: dict[str, Figures]) -> None:
        """A round's figures, now that what they are compared with is known."""
        for name, own in found.items():
            if name not in _CONTROLS:
                more = compared(own, found["direct"], found["floor"], same_upstream=True)
                own |= {key: more.get(key) for key in ("floor_ratio", "added_p50_ms", "added_p99_ms")}
            self.columns[name].variant.rounds.append(own)

    async def _turn(self, column: Column, number: int) -> Figures:
        """One turn of one column."""
        found: Figures = {}
        details: dict[str, Any] = {}
        has_upstream = column.target.upstream != "none"
        if has_upstream:
            straight = self.columns["direct"].place
            found, details = await asyncio.to_thread(probe, column.place, straight, self.simulator)
        one = await self._closed(column, column.requests, f"round {number}")
        found |= json_figures(latency_figures.figures(one), answered_upstream=one.met_all or not has_upstream)
        details["statuses"] = latency_figures.counts(one.samples)
        if has_upstream:
            streams, pss_bytes = await self._streams(column, number)
            found |= stream_figures(streaming_figures.figures(streams) | self._used(column, streams))
            if column.target.pids is not None:
                found["pss_mib"] = round(pss_bytes / 2**20, 2) if pss_bytes else None
        column.variant.details.append(details)
        return found

    def _used(self, column: Column, one: streaming_figures.Round) -> Figures:
        """CPU per event, for those whose processes are known."""
        return {} if column.target.pids is None else streaming_figures.used(one)

    async def _closed(self, column: Column, count: int, text: str) -> latency_figures.Round:
        """One closed load of ``count`` requests, no two alike."""
        target = column.target
        sent = {**HEADERS, **target.headers}

        async with Client(target.url, target.ca_path, _TIMEOUT_S) as client:

            async def send(index: int) -> Sample:
                data = body(self.plan.model, f"{target.name}, {text}, request {index}")
                answer = await client.request("POST", PATH, sent, data)
                return Sample(answer.status, answer.first_s - answer.sent_s, answer.latency_s)

            await client.open(min(self.plan.concurrency, count))
            calm = not column.requests or await self._calm(f"{text}, {target.words}")
            self.simulator.reset()
            before, cpu_s = self._account(target)
            client_s, began_s = time.process_time(), time.monotonic()
            samples = await closed(count, self.plan.concurrency, send)
            duration_s, client_s = time.monotonic() - began_s, time.process_time() - client_s
            await asyncio.sleep(_AFTER_S)
            usage = self._usage(target, before, cpu_s)
            return latency_figures.Round(samples, duration_s, client_s, usage, self._met(target), calm)

    async def _streams(self, column: Column, number: int) -> tuple[streaming_figures.Round, int | None]:
        """The paced streams, and the memory after them."""
        target, plan = column.target, self.plan
        async with Streams(target.url, target.ca_path, plan.longest_s) as client:

            async def send(index: int) -> Streamed:
                data = stream_body(plan.stream_model, f"{target.name}, round {number}, stream {index}")
                return await client.stream(data, target.headers)

            await client.open(plan.streams)
            calm = await self._calm(f"round {number}, {target.words}, streams")
            before, cpu_s = self._account(target)
            client_s, began_s = time.process_time(), time.monotonic()
            samples = await spread(plan.streams, plan.stagger_s, send)
            duration_s, client_s = time.monotonic() - began_s, time.process_time() - client_s
            await asyncio.sleep(_AFTER_S)
            usage = self._usage(target, before, cpu_s)
        used_s = usage.cpu_s if usage is not None and list(usage.before) == list(usage.after) else None
        one = streaming_figures.Round(samples, plan.events, duration_s, client_s, used_s, calm=calm)
        return one, usage.pss_bytes if usage is not None else None

    def _met(self, target: Target) -> Met | None:
        """What the simulator counted since it was reset."""
        if target.upstream == "none":
            return None
        stats = self.simulator.stats()
        return Met(sum(stats["requests"].values()), stats["tcp_connections"] - 1, stats["tls_handshakes"])

    def _account(self, target: Target) -> tuple[list[int], float | None]:
        """The processes of ``target`` and the CPU seconds they have taken so far."""
        gc.collect()
        pids = target.pids() if target.pids is not None else []
        return pids, _cpu_s(pids)

    def _usage(self, target: Target, before: Sequence[int], cpu_s: float | None) -> Usage | None:
        """What the processes of ``target`` took since they were ``before`` and had taken ``cpu_s``."""
        if target.pids is None:
            return None
        now_s, after = _cpu_s(before), target.pids()
        try:
            pss_bytes: int | None = procs.pss_bytes(after)
        except OSError:
            pss_bytes = None
        return Usage(before, after, None if cpu_s is None or now_s is None else now_s - cpu_s, pss_bytes)

    async def _calm(self, where: str) -> bool:
        """Waits until the servers together take little of a core; notes it if they do not."""
        limit_s = time.monotonic() + _IDLE_LIMIT_S
        while time.monotonic() < limit_s:
            pids = [self.simulator.pid]
            for column in self.columns.values():
                pids += column.target.pids() if column.target.pids is not None and not column.fault else []
            before_s = _cpu_s(pids)
            await asyncio.sleep(_IDLE_S)
            after_s = _cpu_s(pids)
            if before_s is not None and after_s is not None and after_s - before_s <= _IDLE_SHARE * _IDLE_S:
                return True
        self.restless.append(where)
        return False


def _cpu_s(pids: Sequence[int]) -> float | None:
    """CPU seconds, or None if a process is gone."""
    try:
        return procs.cpu_s(pids)
    except OSError:
        return None


def run(plan: Plan, names: Sequence[str], cache: Path, say: Say, *, asked: bool = False) -> Report:
    """All rounds of the controls, ours and the peers ``names``.

    Args:
        plan: What to do.
        names: Keys of ``PEERS``.
        cache: Folder in which peers are installed, and stay.
        say: Told about each step.
        asked: The peers were asked for by name: one that cannot be measured is a fault.

    Raises:
        BenchError: The simulator, the floor or ours did not come up or went away.
    """
    if not procs.allow_files(2 * plan.streams + _SPARE_FILES):
        raise servers.BenchError(f"{plan.streams} streams need a higher limit of open files (ulimit -n)")
    known = {}
    for name in names:
        say(f"set up: {PEERS[name]}")
        known[name] = prepare(name, cache.resolve())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        upstream = stack.enter_context(servers.simulator())
        columns = {one.name: Column(one, Variant(one.name, one.words)) for one in _own(upstream, folder, stack)}
        for name, one in known.items():
            say(f"start: {PEERS[name]}")
            columns[name] = _peer(name, one, cache.resolve(), upstream, folder, stack)
        bench = Bench(plan, upstream, columns, say)
        on_a_loop(bench.measure())
    return report(plan, bench, known, asked=asked)


def steps(plan: Plan, peers: int) -> int:
    """How often ``run`` says something, if nothing fails."""
    return 2 * peers + (plan.rounds + 1) * (len(_CONTROLS) + 1 + peers)


def _own(upstream: Running, folder: Path, stack: contextlib.ExitStack) -> Iterator[Target]:
    """The controls and the gateway, which run until ``stack`` is left."""
    base = stack.enter_context(servers.floor(folder))
    given = {**SETTINGS, "GATEWAY_API_KEYS": KEY}
    ours = stack.enter_context(servers.gateway(upstream, folder, given))
    yield Target("direct", "direct", upstream.tls_url, ca_path=upstream.ca_path)
    yield Target("floor", "WSGI floor", base.url, base.pids, upstream="none")
    yield Target("gateway", "Penstock", ours.url, ours.pids, headers={"x-api-key": KEY})


def _peer(
    name: str, known: Found, cache: Path, upstream: Running, folder: Path, stack: contextlib.ExitStack
) -> Column:
    """A peer, running until ``stack`` is left, or with its fault."""
    words = PEERS[name]
    fault = known.fault
    target = Target(name, words, "")
    if not fault:
        try:
            server = stack.enter_context(started(name, cache, upstream, folder))
            target = Target(name, words, server.url, server.pids, headers=headers(name, upstream))
        except PeerError as error:
            fault = f"it does not start: {error}"
    return Column(target, Variant(name, words), fault=fault)


def report(plan: Plan, bench: Bench, known: Mapping[str, Found], *, asked: bool) -> Report:
    """The outcome: faults of controls and ours are the run's, those of a peer only if it was asked for.

    Args:
        plan: What was done.
        bench: With what it found.
        known: The peers, as they were prepared.
        asked: They were asked for by name.
    """
    lacks: dict[str, list[str]] = {}
    for name, column in bench.columns.items():
        rounds = enumerate(column.variant.rounds, 1)
        lacks[name] = [column.fault] if column.fault else []
        lacks[name] += [f"round {number}: {text}" for number, one in rounds for text in faults(one, _has(name))]
    of_the_run = [name for name in lacks if asked or name not in known]
    found = [f"{name}: {text}" for name in of_the_run for text in lacks[name]]
    if known and not any(bench.columns[name].variant.rounds for name in known):
        found.append("no peer could be measured")
    peers = {name: {"version": one.version, "faults": lacks[name]} for name, one in known.items()}
    notes = [f"{PEERS[name]}: {one.version}" for name, one in known.items() if one.version]
    notes += [f"fault of {name}: {text}" for name in known for text in lacks[name]]
    notes += [f"the servers were still busy when it began: {text}" for text in bench.restless]
    settings = {**asdict(plan), "peers": peers, "restless": bench.restless}
    variants = [column.variant for column in bench.columns.values()]
    return Report("peers", plan.title(), settings, ROWS, variants, [], found, notes)


def _has(name: str) -> bool:
    """Whether a column streams: the floor answers with a constant."""
    return name != "floor"
