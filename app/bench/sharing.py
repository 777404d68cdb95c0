"""News between workers: one meets a 429, how long until the other leaves that key alone too?

    workers   two workers of one gunicorn
    nodes     two gunicorns with one Redis
    apart     two gunicorns with nothing between them: the control, in which nobody may learn anything

Both sides are under an even load, on connections whose worker is known, every request a conversation of its own so
that all keys are used. Each trial takes another key; first it is seen that each side by itself uses all of them.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.bench import procs, servers
from app.bench.client import Client, Connection
from app.bench.load import HEADERS, PATH, body, on_a_loop
from app.bench.report import Report, Row, Variant
from app.bench.sharing_figures import Record, faults, figures, told_at, unused
from app.bench.verdict import Aim, judge
from app.simulator.running import Running

_CALLER = "sharing-caller"
_CONNECTIONS = 4  # per side
_MOST_CONNECTIONS = 128  # opened in search of each worker
_BEFORE = 20  # ordinary answers of a key before its 429
_SEEN_WITHIN_S = 10.0
_POLL_S = 0.2
_TAIL_S = 0.3
_MODEL = "claude-sim-json-20ms"  # paces the load: busy cores would delay the news
AIMS = tuple(
    aim
    for variant in ("workers", "nodes")
    for aim in (Aim(variant, "until_ms", "<=", 1000, "worst"), Aim(variant, "others", "<=", 0, "worst"))
)
_ROWS = (
    Row("until_ms", "from the 429 to the last use of the key", "ms"),
    Row("left_alone", "left alone in the end (1 yes, 0 no)"),
    Row("attempts_after", "attempts on the key after the 429"),
    Row("gap_ms", "distance of attempts before it (resolution)", "ms"),
    Row("others", "answers other than 200 seen by the client"),
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        trials: Keys that get a 429, one after the other.
        retry_after_s: What each 429 asks for.
        watch_s: How long attempts are looked at after it.
    """

    trials: int
    retry_after_s: int
    watch_s: float

    @property
    def keys(self) -> list[str]:
        """The upstream keys: one for each trial, and two that stay."""
        return [f"sharing-{number}" for number in range(self.trials + 2)]


class Side:
    """One of two workers as a client reaches it, and the load on it.

    Args:
        client: Whose connections they are.
        connections: All held by that worker.
        name: For the conversations.

    Attributes:
        others: Answers other than 200.
        broken: Connections that broke.
    """

    def __init__(self, client: Client, connections: Sequence[Connection], name: str) -> None:
        self._client = client
        self._connections = connections
        self._name = name
        self._numbers = itertools.count()
        self.others = 0
        self.broken = 0

    async def load(self, over: asyncio.Event) -> None:
        """One request after the other on each connection until ``over`` is set."""
        async with asyncio.TaskGroup() as group:
            for connection in self._connections:
                group.create_task(self._ask(connection, over))

    async def _ask(self, connection: Connection, over: asyncio.Event) -> None:
        headers = {**HEADERS, "x-api-key": _CALLER}
        while not over.is_set():
            data = body(_MODEL, f"sharing, {self._name}, request {next(self._numbers)}")
            answer = await self._client.exchange(connection, "POST", PATH, headers, data)
            self.others += answer.status != 200
            if not connection.usable:
                self.broken += 1
                return


class Bench:
    """One run: its columns fill as it goes on.

    Args:
        plan: What to do.
        simulator: The upstream.
        folder: For the servers' output.
        say: Told about progress.
    """

    def __init__(self, plan: Plan, simulator: Running, folder: Path, say: Say) -> None:
        self._plan = plan
        self._simulator = simulator
        self._folder = folder
        self._say = say
        self._settings = {"ANTHROPIC_API_KEYS": ",".join(plan.keys), "GATEWAY_API_KEYS": _CALLER}
        self.variants = [
            Variant("workers", "two workers"),
            Variant("nodes", "two nodes, one Redis"),
            Variant("apart", "two nodes, nothing shared"),
        ]
        self.faults: list[str] = []

    def two_workers(self, variant: Variant) -> None:
        """Two workers of one gunicorn."""
        settings = {**self._settings, "WEB_CONCURRENCY": 2}
        with servers.gateway(self._simulator, self._folder, settings, variant.name) as gateway:

            async def measure() -> None:
                async with Client(gateway.url) as client:
                    await self._trials(variant, await _sides_of(client, gateway))

            on_a_loop(measure())

    def two_nodes(self, variant: Variant, **shared: object) -> None:
        """Two gunicorns with a worker each, and what they share."""
        settings = {**self._settings, **shared}
        with contextlib.ExitStack() as stack:
            gateways = [
                stack.enter_context(
                    servers.gateway(self._simulator, self._folder, settings, f"{variant.name}-{name}")
                )
                for name in "ab"
            ]

            async def measure() -> None:
                async with Client(gateways[0].url) as one, Client(gateways[1].url) as other:
                    sides = [
                        Side(client, [await client.connect() for _ in range(_CONNECTIONS)], name)
                        for client, name in ((one, "a"), (other, "b"))
                    ]
                    await self._trials(variant, sides)

            on_a_loop(measure())

    async def _trials(self, variant: Variant, sides: Sequence[Side]) -> None:
        """Sees that each side uses all keys, then takes them away one by one."""
        keys = self._plan.keys
        for side in sides:
            self._simulator.set_keys({})
            async with _loaded([side]):
                record = await self._seen(lambda record: not unused(record, keys))
            lacks = unused(record, keys)
            if lacks:
                self.faults.append(f"{variant.name}: a side by itself never used {lacks}")
                return
        for number, key in enumerate(keys[: self._plan.trials], start=1):
            self._say(f"{variant.words}: trial {number}/{self._plan.trials}")
            await self._trial(variant, sides, key)

    async def _trial(self, variant: Variant, sides: Sequence[Side], key: str) -> None:
        """One key's 429."""
        watch_s = self._plan.watch_s
        others, broken = sum(side.others for side in sides), sum(side.broken for side in sides)
        rule = {"status": 429, "retry_after": str(self._plan.retry_after_s), "after": _BEFORE, "times": 1}
        self._simulator.set_keys({key: [rule]})
        async with _loaded(sides):
            record = await self._seen(lambda record: told_at(record, key) is not None)
            if told_at(record, key) is not None:
                await asyncio.sleep(watch_s + _TAIL_S)
        record = self._simulator.keys()
        lacks = faults(record, key, watch_s)
        if sum(side.broken for side in sides) > broken:
            lacks.append(f"{key}: a connection to the gateway broke")
        self.faults += [f"{variant.name}, {text}" for text in lacks]
        if not lacks:
            seen = sum(side.others for side in sides) - others
            variant.rounds.append(figures(record, key, watch_s, seen))
            variant.details.append({"key": key})

    async def _seen(self, enough: Callable[[Record], bool]) -> Record:
        """The simulator's record once it is ``enough``, or as it is after a while."""
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while True:
            await asyncio.sleep(_POLL_S)
            record = await asyncio.to_thread(self._simulator.keys)
            if enough(record) or time.monotonic() > deadline:
                return record


@contextlib.asynccontextmanager
async def _loaded(sides: Sequence[Side]) -> AsyncIterator[None]:
    """Load on all ``sides`` until the block is left."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for side in sides:
            group.create_task(side.load(over))
        try:
            yield
        finally:
            over.set()


async def _sides_of(client: Client, gateway: servers.Gateway) -> list[Side]:
    """Both workers of a gunicorn, each with connections that it has accepted.

    Raises:
        BenchError: They are not two, or one accepts nothing.
    """
    held: dict[int, list[Connection]] = {pid: [] for pid in gateway.workers()}
    for _ in range(_MOST_CONNECTIONS):
        connection = await client.connect()
        await client.exchange(connection, "GET", "/health", {})
        pid = procs.holder(held, gateway.port, connection.port)
        if pid is not None and len(held[pid]) < _CONNECTIONS:
            held[pid].append(connection)
        else:
            connection.close()
        if len(held) == 2 and all(len(mine) == _CONNECTIONS for mine in held.values()):
            return [Side(client, mine, str(pid)) for pid, mine in held.items()]
    raise servers.BenchError(f"not two workers that accept connections: {[len(mine) for mine in held.values()]}")


def run(plan: Plan, say: Say) -> Report:
    """All variants; without redis-server the one that needs it is missing, which is a fault.

    Raises:
        BenchError: A server did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, servers.simulator() as simulator:
        bench = Bench(plan, simulator, Path(folder), say)
        workers, nodes, apart = bench.variants
        bench.two_workers(workers)
        binary = servers.redis_binary()
        if binary is None:
            bench.faults.append("nodes: redis-server is not installed, so two nodes were not measured")
        else:
            with servers.redis(binary, Path(folder)) as redis:
                bench.two_nodes(nodes, REDIS_URL=f"redis://127.0.0.1:{redis.port}/0")
        bench.two_nodes(apart)
    if any(one["left_alone"] for one in apart.rounds):
        bench.faults.append("apart: a key was left alone though nothing told, so the others prove nothing either")
    title = (
        f"sharing: a key answers one 429 (retry-after {plan.retry_after_s} s) and 200 otherwise; when does nobody "
        f"use it any more; {plan.trials} trials, medians"
    )
    judged = judge(AIMS, {variant.name: variant.rounds for variant in bench.variants})
    return Report("sharing", title, asdict(plan), _ROWS, bench.variants, judged, bench.faults)
