"""Many event streams at once: straight from the upstream, and through the gateway; events back to back after that.

    for each round, there and back again:
        floor      requests to gunicorn + gevent + Flask with a constant answer: what a request costs at least
        direct     the same client to the simulator, HTTP/1.1 over TLS
        gateway    a fresh gunicorn, so that memory of an earlier round does not hide what this one takes;
                   paced streams first, then the burst
        against    gateways that somebody runs already

Connections are open, and all servers idle, before anything is timed. Every stream asks for something else.

Runs on: bench loop.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from app.bench import procs, servers
from app.bench.against import Against
from app.bench.figures import Figures
from app.bench.latency import SETTINGS, Target
from app.bench.latency_figures import order, replaced
from app.bench.load import on_a_loop
from app.bench.report import Report, Variant
from app.bench.stream_rounds import allow_files, burst, floor_cost, paced
from app.bench.streaming_figures import (
    AIMS,
    ROWS,
    Plan,
    Round,
    added,
    faults,
    figures,
    floor_ratio,
    memory,
    notes,
    unmeasured,
    used,
)
from app.bench.verdict import judge
from app.simulator.running import Running

CALLER = {"x-api-key": str(SETTINGS["GATEWAY_API_KEYS"])}
Say = Callable[[str], None]


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        folder: For logs.
        others: Gateways that run already.
        say: Told about each step.
    """

    def __init__(self, plan: Plan, simulator: Running, folder: Path, others: Sequence[Target], say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._folder = folder
        self._others = {target.name: target for target in others}
        self._say = say
        self._floor = Variant("floor", "WSGI floor")
        self._direct = Variant("direct", "direct")
        self._paced = Variant("gateway", "gateway")
        self._burst = Variant("burst", "gateway, no gaps")
        self._against = {target.name: Variant(target.name, target.words) for target in others}
        self._pids: dict[str, list[int]] = {}
        self.faults: list[str] = []

    @property
    def variants(self) -> list[Variant]:
        """In the order of the columns."""
        return [self._direct, self._floor, self._paced, self._burst, *self._against.values()]

    @property
    def notes(self) -> list[str]:
        """Below the table."""
        return notes(self._paced.rounds)

    def measure(self, floor: servers.Floor) -> None:
        """All rounds."""
        names = ["floor", "direct", "gateway", *self._others]
        for number in range(1, self._plan.rounds + 1):
            rounds: dict[str, Round] = {}
            for name in order(names, number):
                self._say(f"round {number}/{self._plan.rounds}: {name}")
                if name == "floor":
                    self._watch(number, name, floor.pids)
                    self._floor.rounds.append(on_a_loop(floor_cost(floor, self._simulator, self._plan)))
                elif name == "gateway":
                    rounds |= self._through(number)
                else:
                    target = self._others.get(name) or self._straight()
                    self._watch(number, name, target.pids)
                    rounds[name] = on_a_loop(self._measured(target, number))
            self._note(number, rounds)

    def _watch(self, number: int, name: str, pids: Callable[[], list[int]] | None) -> None:
        """Whether the processes that stay up over the rounds are still those of the first one."""
        if pids is not None:
            now = pids()
            texts = replaced(self._pids.setdefault(name, now), now)
            self.faults += [f"round {number}, {name}: {text}" for text in texts]

    def _straight(self) -> Target:
        return Target("direct", "direct", self._simulator.tls_url, ca_path=self._simulator.ca_path)

    async def _measured(self, target: Target, number: int) -> Round:
        return await paced(target, self._simulator, self._plan, f"{target.name}, round {number}")

    def _through(self, number: int) -> dict[str, Round]:
        """Both loads on a fresh gateway."""
        plan, simulator = self._plan, self._simulator
        with servers.gateway(simulator, self._folder, gateway_settings(plan)) as gateway:
            target = Target("gateway", "gateway", gateway.url, gateway.pids, headers=CALLER)
            found = {"gateway": on_a_loop(self._measured(target, number))}
            self._say(f"round {number}/{plan.rounds}: gateway, no gaps")
            found["burst"] = on_a_loop(burst(target, simulator, plan, f"burst, round {number}"))
        return found

    def _note(self, number: int, rounds: dict[str, Round]) -> None:
        """A round's figures, and what is missing in it."""
        plan, floor = self._plan, self._floor.rounds[-1]
        direct = figures(rounds["direct"])
        self._add(number, self._direct, direct, faults(rounds["direct"], plan.streams))
        one = rounds["gateway"]
        through = figures(one) | used(one)
        through |= floor_ratio(through, floor) | added(through, direct, same_upstream=True) | memory(one)
        self._add(number, self._paced, through, faults(one, plan.streams))
        one = rounds["burst"]
        flat = figures(one) | used(one)
        self._add(number, self._burst, flat | floor_ratio(flat, floor), faults(one))
        for name, variant in self._against.items():
            one, known = rounds[name], self._others[name].pids is not None
            other = figures(one) | (used(one) if known else {})
            other |= floor_ratio(other, floor) if known else {}
            other |= added(other, direct, same_upstream=True) if one.met else {}
            self._add(number, variant, other, faults(one, plan.streams))
        self.faults += [f"round {number}, floor: {text}" for text in unmeasured(floor)]

    def _add(self, number: int, variant: Variant, found: Figures, lacks: list[str]) -> None:
        variant.rounds.append(found)
        lacks = lacks or unmeasured(found)
        self.faults += [f"round {number}, {variant.name}: {text}" for text in lacks]


def gateway_settings(plan: Plan) -> dict[str, object]:
    """What the gateway is started with."""
    return {
        **SETTINGS,
        "WEB_CONCURRENCY": plan.workers,
        "GUNICORN_CMD_ARGS": f"--worker-class {plan.worker_class}",
        **plan.room,
    }


def run(plan: Plan, say: Say, against: Sequence[Against] = (), simulator: Running | None = None) -> Report:
    """All rounds of all variants.

    Args:
        plan: What to do.
        say: Told about each step.
        against: Gateways that run already, to be measured beside ours.
        simulator: One that runs already, for them to have the same upstream.

    Raises:
        BenchError: A server did not come up or does not answer, or so many files may not be open.
    """
    allow_files(plan.streams)
    for one in against:
        one.reach()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        upstream = simulator or stack.enter_context(servers.simulator())
        floor = stack.enter_context(servers.floor(folder, plan.workers))
        bench = Bench(plan, upstream, folder, list(_others(against)), say)
        bench.measure(floor)
    settings = {**asdict(plan), "gateway": _shown(gateway_settings(plan)), "against": [one.url for one in against]}
    judged = judge(AIMS, {variant.name: variant.rounds for variant in bench.variants})
    return Report("streaming", plan.title(), settings, ROWS, bench.variants, judged, bench.faults, bench.notes)


def steps(plan: Plan, against: int = 0) -> int:
    """How often ``run`` says something."""
    return plan.rounds * (4 + against)


def _others(against: Sequence[Against]) -> Iterator[Target]:
    """What runs already."""
    for number, one in enumerate(against, 1):
        name = "against" if number == 1 else f"against_{number}"
        yield Target(name, one.words, one.url, _tree(one), headers=one.headers, upstream="any")


def _tree(one: Against) -> Callable[[], list[int]] | None:
    """How to find its processes."""
    pid = one.pid
    return None if pid is None else lambda: procs.tree(pid)


def _shown(settings: dict[str, object]) -> dict[str, object]:
    """Settings without keys."""
    return {name: value for name, value in settings.items() if "KEY" not in name}
