"""Too many at once: 500 on 50 slots and a buffer of 75, dropped or made to wait, memory watched.

    drop    a gunicorn with DROP_EXCESS_REQUESTS=true
              health    as many to /health in one turn of the client's loop: what gunicorn, gevent and Flask take
              burst     the same to the gateway: the last waits for all others' refusals too
              spread    arriving within a moment, many repetitions: who is served, how quickly the rest is refused;
                        memory, now that the worst has been seen
    wait    another one without it: all are served, and each caller's in the order it sent them

An answer takes longer than the arrivals, so that nobody is served twice in one repetition. Connections are open
before anything is timed.

Runs on: bench loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from app.bench import procs, servers
from app.bench.client import Client
from app.bench.figures import Figures
from app.bench.load import HEADERS, PATH, body, on_a_loop, spread
from app.bench.overload_figures import (
    BATCH,
    WEB,
    Outcome,
    by_caller,
    caller_of,
    counted,
    faults,
    grown_mib,
    health,
    mib,
    overtaken,
    statuses,
)
from app.bench.report import Report, Row, Variant
from app.bench.verdict import Aim, judge
from app.simulator.running import Running

_SETTLE_S = 60.0
_BURSTS = 3
_WAITS = 2
_SPARE_FILES = 200
_FLAT_MIB = 8  # the allocator grows in steps of 2; leaked exchanges, 4 KiB each at least, are 30 in 15 repetitions
_ROWS = (
    Row("served", "served"),
    Row("refused", "refused: 503, queue is full, retry-after"),
    Row("neither", "anything else"),
    Row("local_p50_ms", "refusals (/health: answers), p50", "ms", 1),
    Row("local_p99_ms", "refusals (/health: answers), p99", "ms", 1),
    Row("served_p50_ms", "answers, p50", "ms"),
    Row("served_p95_ms", "answers, p95", "ms"),
    Row("web_p50_ms", "answers to the web (1 in 5), p50", "ms"),
    Row("batch_p50_ms", "answers to the batch job, p50", "ms"),
    Row("most_upstream", "most at once upstream"),
    Row("overtaken", "overtaken by the same caller's, sent 50 ms later"),
    Row("overtaken_ms", "overtaken by one sent how much later, at most", "ms", 1),
    Row("rss_mib", "worker's RSS", "MiB", 1),
    Row("grown_mib", "RSS over the first quarter's", "MiB", 2),
)
Say = Callable[[str], None]
Send = Callable[[int], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        requests: Sent in each repetition.
        concurrency: Slots.
        buffer: Running and waiting together.
        repetitions: Of the spread arrivals.
        answer_ms: How long an upstream answer takes.
        spread_s: Within which the requests arrive; three times that in wait mode, where their order is looked at.
    """

    requests: int
    concurrency: int
    buffer: int
    repetitions: int
    answer_ms: int
    spread_s: float

    @property
    def wait_spread_s(self) -> float:
        """Slow enough that a busy worker does not read its sockets in another order than they were written."""
        return 3 * self.spread_s

    def aims(self) -> tuple[Aim, ...]:
        """What the figures are held against."""
        return (
            Aim("drop_spread", "served", ">=", self.buffer, "worst"),
            Aim("drop_spread", "served", "<=", self.buffer, "worst"),
            Aim("drop_spread", "refused", ">=", self.requests - self.buffer, "worst"),
            Aim("drop_spread", "local_p99_ms", "<=", 50),
            Aim("drop_spread", "grown_mib", "<=", _FLAT_MIB, "worst"),
            Aim("drop_spread", "most_upstream", "<=", self.concurrency, "worst"),
            Aim("drop_burst", "served", ">=", self.buffer, "worst"),
            Aim("drop_burst", "neither", "<=", 0, "worst"),
            Aim("wait", "served", ">=", self.requests, "worst"),
            Aim("wait", "overtaken", "<=", 0, "worst"),
            Aim("wait", "most_upstream", "<=", self.concurrency, "worst"),
        )


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        say: Told about progress.
    """

    def __init__(self, plan: Plan, simulator: Running, say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._say = say
        self.spread = Variant("drop_spread", f"drop, within {plan.spread_s:g} s")
        self.burst = Variant("drop_burst", "drop, at one instant")
        self.health = Variant("health", "/health, at one instant")
        self.wait = Variant("wait", f"wait, within {plan.wait_spread_s:g} s")
        self.before_mib = 0.0
        self.faults: list[str] = []

    @property
    def variants(self) -> list[Variant]:
        """In the order of the columns."""
        return [self.spread, self.burst, self.health, self.wait]

    async def drop(self, gateway: servers.Gateway) -> None:
        """All of drop mode."""
        plan = self._plan
        async with Client(gateway.url, timeout_s=_SETTLE_S) as client:
            with servers.named("the gateway", gateway.url):
                await client.open(plan.requests)
            self.before_mib = mib(gateway.rss_bytes())
            for _ in range(_BURSTS):
                found = await spread(plan.requests, 0.0, _health(client))
                self._note(self.health, found, health(found))
            send = _sender(client, f"claude-sim-json-{plan.answer_ms}ms", to=lambda _: BATCH)
            for number in range(1, _BURSTS + 1):
                self._say(f"drop: burst {number}/{_BURSTS}")
                await self._repeat(self.burst, 0.0, send)
            sizes = []
            for number in range(1, plan.repetitions + 1):
                self._say(f"drop: repetition {number}/{plan.repetitions}")
                await self._repeat(self.spread, plan.spread_s, send)
                sizes.append(gateway.rss_bytes())
            for round_, size, grown in zip(self.spread.rounds, sizes, grown_mib(sizes), strict=True):
                round_.update({"rss_mib": mib(size), "grown_mib": grown})

    async def let_wait(self, gateway: servers.Gateway) -> None:
        """All of wait mode."""
        plan = self._plan
        model = f"claude-sim-json-{plan.answer_ms}ms"
        async with Client(gateway.url, timeout_s=_SETTLE_S) as client:
            with servers.named("the gateway", gateway.url):
                await client.open(plan.requests)
            send = _sender(client, model, to=caller_of)
            for number in range(1, _WAITS + 1):
                self._say(f"wait: repetition {number}/{_WAITS}")
                found = await self._repeat(self.wait, plan.wait_spread_s, send)
                order = [int(row["model"].rpartition("-n")[2]) for row in self._simulator.requests()]
                behind, worst_s = overtaken({one.index: one.sent_s for one in found}, order)
                figures = {"overtaken": behind, "overtaken_ms": round(worst_s * 1000, 3)}
                self.wait.rounds[-1].update({**by_caller(found), **figures})

    async def _repeat(self, variant: Variant, over_s: float, send: Send) -> list[Outcome]:
        """One repetition."""
        self._simulator.reset()
        found = await spread(self._plan.requests, over_s, send)
        most = self._simulator.stats()["max_open_streams"]
        self._note(variant, found, {**counted(found), "most_upstream": most})
        return found

    def _note(self, variant: Variant, outcomes: list[Outcome], figures: Figures) -> None:
        """A repetition's figures, and what is missing in it."""
        variant.rounds.append(figures)
        variant.details.append(statuses(outcomes))
        lacks = faults(outcomes, self._plan.requests, self._plan.answer_ms / 1000)
        self.faults += [f"{variant.name}, repetition {len(variant.rounds)}: {text}" for text in lacks]


def _sender(client: Client, model: str, *, to: Callable[[int], str]) -> Send:
    """What sends request ``index``, whose number the simulator finds in its model."""

    async def send(index: int) -> Outcome:
        headers = {**HEADERS, "x-api-key": to(index)}
        data = body(f"{model}-n{index}", f"overload, request {index}")
        answer = await client.request("POST", PATH, headers, data)
        retry_after = answer.headers.get("retry-after", "")
        return Outcome(index, answer.status, answer.sent_s, answer.latency_s, retry_after, answer.body)

    return send


def _health(client: Client) -> Send:
    """What asks for the process's health."""

    async def send(index: int) -> Outcome:
        answer = await client.request("GET", "/health", {})
        return Outcome(index, answer.status, answer.sent_s, answer.latency_s)

    return send


def run(plan: Plan, say: Say) -> Report:
    """Both modes.

    Raises:
        BenchError: A server did not come up, or so many files may not be open.
    """
    if not procs.allow_files(plan.requests + _SPARE_FILES):
        raise servers.BenchError(f"{plan.requests} connections need a higher limit of open files (ulimit -n)")
    settings = {
        "ANTHROPIC_API_KEYS": "overload-upstream",
        "GATEWAY_API_KEYS": f"{BATCH},{WEB}",
        "ANTHROPIC_CONCURRENCY": plan.concurrency,
        "ANTHROPIC_BUFFER_SIZE": plan.buffer,
        "WORKER_CONNECTIONS": plan.requests + _SPARE_FILES,
    }
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, servers.simulator() as simulator:
        bench = Bench(plan, simulator, say)
        dropping = {**settings, "DROP_EXCESS_REQUESTS": "true"}
        with servers.gateway(simulator, Path(folder), dropping, "drop") as gateway:
            on_a_loop(bench.drop(gateway))
        waiting = {**settings, "DROP_EXCESS_REQUESTS": "false"}
        with servers.gateway(simulator, Path(folder), waiting, "wait") as gateway:
            on_a_loop(bench.let_wait(gateway))
    return _report(plan, bench)


def _report(plan: Plan, bench: Bench) -> Report:
    sizes = [one["rss_mib"] or 0.0 for one in bench.spread.rounds]
    title = (
        f"overload: {plan.requests} requests at once, concurrency {plan.concurrency}, buffer {plan.buffer}, "
        f"one worker; medians of {plan.repetitions} spread, {_BURSTS} instant, {_WAITS} waiting repetitions"
    )
    note = (
        f"worker's RSS before {bench.before_mib:g}, after the first {sizes[0]:g}, after the last {sizes[-1]:g} MiB"
    )
    return Report(
        "overload",
        title,
        {**asdict(plan), "rss_before_mib": bench.before_mib},
        _ROWS,
        bench.variants,
        judge(plan.aims(), {variant.name: variant.rounds for variant in bench.variants}),
        bench.faults,
        [note],
    )
