"""What one round of the latency bench amounts to: figures, what is compared with what, and what is missing.

    added_*       through minus direct, of the same round; only if the request really went to the same upstream
    floor_ratio   CPU per request over the floor's, of the same round

Medians are made of these afterwards: what the machine did in between then touches both sides of a difference.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.bench.figures import Figures, milliseconds, percentile
from app.bench.report import Row
from app.bench.verdict import Aim

ROWS = (
    Row("requests", "requests answered"),
    Row("rps", "requests per second", "/s"),
    Row("cpu_ms_per_request", "CPU per request, process tree", "ms", 3),
    Row("floor_ratio", "CPU per request over the floor's", "x", 2),
    Row("ttfb_p50_ms", "first byte, p50", "ms", 1),
    Row("ttfb_p95_ms", "first byte, p95", "ms", 1),
    Row("ttfb_p99_ms", "first byte, p99", "ms", 1),
    Row("full_p50_ms", "whole answer, p50", "ms", 1),
    Row("full_p95_ms", "whole answer, p95", "ms", 1),
    Row("full_p99_ms", "whole answer, p99", "ms", 1),
    Row("added_p50_ms", "added to direct, p50", "ms", 1),
    Row("added_p95_ms", "added to direct, p95", "ms", 1),
    Row("added_p99_ms", "added to direct, p99", "ms", 1),
    Row("handshakes", "TLS handshakes met upstream"),
    Row("reuse_pct", "requests on a connection that was there", "%", 2),
    Row("error_pct", "errors", "%", 2),
    Row("pss_mib", "memory, process tree (PSS)", "MiB", 1),
    Row("client_cpu_ms_per_request", "for the record: the client's CPU", "ms", 3),
)
_SHARES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        requests: In each round of each variant.
        concurrency: How many at once.
        rounds: How often.
        workers: Of the gateway and of the floor.
        answer_ms: How long the upstream takes to answer.
        worker_class: gunicorn's, for the gateway.
        model: Asked for instead of the one that ``answer_ms`` makes.
    """

    requests: int = 6000
    concurrency: int = 32
    rounds: int = 5
    workers: int = 1
    answer_ms: int = 0
    worker_class: str = "gevent"
    model: str = ""

    @property
    def asked(self) -> str:
        """The model of every request."""
        return self.model or f"claude-sim-json-{self.answer_ms}ms"

    @property
    def warm_up(self) -> int:
        """Requests before the first round; every connection has had some by then."""
        return min(self.requests, max(4 * self.concurrency, 200))

    def aims(self) -> tuple[Aim, ...]:
        """What the figures are held against; the floor is gevent's, so other workers' cost has no bound."""
        whole = Aim("gateway", "error_pct", "<=", 0, "worst")
        return (Aim("gateway", "floor_ratio", "<=", 2.5), whole) if self.worker_class == "gevent" else (whole,)

    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        if self.concurrency == 1 or self.answer_ms:
            return ()
        return (
            f"{self.concurrency} at once without a pause keep a worker busy all the time: most of what is "
            "added is waiting for one's turn. --concurrency 1 shows what a request takes alone.",
        )

    def title(self) -> str:
        """One line."""
        answers = f"model {self.model}" if self.model else f"answers take {self.answer_ms} ms upstream"
        return (
            f"latency: {self.requests:,} requests, {self.concurrency} at once, {answers}; "
            f"{self.workers} {self.worker_class} worker(s); median of {self.rounds} interleaved round(s)"
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it.

    Attributes:
        status: 0 if no whole answer came.
        first_s: From writing it to the first byte of the answer.
        full_s: To the last.
    """

    status: int
    first_s: float
    full_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree took during a round.

    Attributes:
        before: Its pids when the round began.
        after: When it was over.
        cpu_s: CPU seconds in between; None if a process was gone.
        pss_bytes: Memory after the round; None if it could not be read.
    """

    before: Sequence[int]
    after: Sequence[int]
    cpu_s: float | None
    pss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Met:
    """What the simulator counted during a round.

    Attributes:
        requests: That arrived.
        connections: New ones.
        handshakes: Of TLS.
    """

    requests: int
    connections: int
    handshakes: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one variant, as it was measured.

    Attributes:
        samples: All of them.
        duration_s: From the first request to the last answer.
        client_s: CPU seconds of the client meanwhile.
        usage: None: whose process it is, is not known (or, for direct, not of interest).
        met: None: it is not the simulator that should have met them (the floor asks nobody).
        calm: Whether all servers were idle before.
    """

    samples: Sequence[Sample]
    duration_s: float
    client_s: float
    usage: Usage | None
    met: Met | None
    calm: bool = True

    @property
    def met_all(self) -> bool:
        """Whether the simulator has seen every request that succeeded."""
        return self.met is not None and self.met.requests >= max(1, len(self.good))

    @property
    def answered(self) -> int:
        """Requests with a whole answer."""
        return sum(one.status > 0 for one in self.samples)

    @property
    def good(self) -> list[Sample]:
        """Requests with the answer that was asked for."""
        return [one for one in self.samples if one.status == 200]

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of the process tree, if that is a figure at all."""
        usage = self.usage
        if usage is None or list(usage.before) != list(usage.after):
            return None
        return usage.cpu_s or None


def figures(one: Round) -> Figures:
    """The figures of a round that need no other.

    Latencies are those of successes, for failures are quick. What a request costs, and how many there are in a
    second, cannot be told apart like that: with a failure there is no such figure.
    """
    good, answered, count = one.good, one.answered, len(one.samples)
    whole = len(good) if len(good) == count else 0
    found: Figures = {
        "requests": answered,
        "rps": round(whole / one.duration_s, 3) if whole and one.duration_s > 0 else None,
        "client_cpu_ms_per_request": round(1000 * one.client_s / whole, 4) if whole else None,
        "error_pct": round(100 * (count - len(good)) / count, 4) if count else None,
    }
    if one.usage is not None:
        pss_bytes = one.usage.pss_bytes
        found["cpu_ms_per_request"] = _per_request_ms(one.cpu_s, whole)
        found["pss_mib"] = round(pss_bytes / 2**20, 2) if pss_bytes else None
    for name, share in _SHARES:
        found[f"ttfb_{name}_ms"] = milliseconds(percentile([sample.first_s for sample in good], share))
        found[f"full_{name}_ms"] = milliseconds(percentile([sample.full_s for sample in good], share))
    if one.met is not None and one.met.requests:
        found["handshakes"] = one.met.handshakes
        found["reuse_pct"] = round(100 * (1 - min(1.0, one.met.connections / one.met.requests)), 3)
    return found


def _per_request_ms(cpu_s: float | None, requests: int) -> float | None:
    return round(1000 * cpu_s / requests, 5) if cpu_s and requests else None


def compared(own: Figures, direct: Figures, floor: Figures, *, same_upstream: bool) -> Figures:
    """The figures of a variant that need those of the controls, all of the same round.

    Args:
        own: What ``figures`` made of the variant.
        direct: Of the requests that went straight to the upstream.
        floor: Of those to the floor.
        same_upstream: The variant's requests went to that upstream too; otherwise there is nothing to subtract.
    """
    found: Figures = {"floor_ratio": None}
    cpu_ms, base_ms = own.get("cpu_ms_per_request"), floor.get("cpu_ms_per_request")
    if cpu_ms and base_ms:
        found["floor_ratio"] = round(cpu_ms / base_ms, 4)
    for name, _ in _SHARES:
        through_ms, straight_ms = own.get(f"full_{name}_ms"), direct.get(f"full_{name}_ms")
        measured = same_upstream and through_ms is not None and straight_ms is not None
        found[f"added_{name}_ms"] = round((through_ms or 0) - (straight_ms or 0), 3) if measured else None
    return found


def faults(one: Round, plan: Plan, *, elsewhere: bool = False) -> list[str]:
    """What is missing in a round, or spoils its figures.

    Args:
        one: The round.
        plan: What should have been done.
        elsewhere: The requests may have gone to an upstream that is not ours.
    """
    found = []
    good = len(one.good)
    if len(one.samples) != plan.requests:
        found.append(f"{len(one.samples)} samples of {plan.requests} requests")
    if good < len(one.samples) or not good:
        found.append(f"{good} of {plan.requests} requests succeeded ({_statuses(one.samples)}), which spoils all")
    if any(sample.status == 200 and not 0 < sample.first_s <= sample.full_s for sample in one.samples):
        found.append("an answer without a first byte, or whole before it began")
    if one.met is not None and one.met.requests < good and not (elsewhere and one.met.requests == 0):
        found.append(f"{good} successes, but the simulator met {one.met.requests} requests")
    if not one.calm:
        found.append("the servers were still busy when it began")
    return found + (_usage_faults(one.usage) if one.usage is not None else [])


def _usage_faults(usage: Usage) -> list[str]:
    """What is wrong with the accounts of the process tree."""
    found = []
    if list(usage.before) != list(usage.after):
        found.append(f"the processes were {list(usage.before)} and are {list(usage.after)}: one died, or came")
    elif not usage.cpu_s:
        found.append("the processes took no CPU time, or it could not be read")
    if not usage.pss_bytes:
        found.append("the processes' memory could not be read")
    return found


def replaced(first: Sequence[int], now: Sequence[int]) -> list[str]:
    """What is wrong if processes were ``first`` before the first round, and are ``now`` when a turn begins."""
    if list(first) == list(now):
        return []
    return [f"the processes were {list(first)} at first and are {list(now)}: one was replaced between turns"]


def _statuses(samples: Sequence[Sample]) -> str:
    return ", ".join(f"{number} with {status}" for status, number in counts(samples).items())


def counts(samples: Sequence[Sample]) -> dict[str, int]:
    """How many samples there are of each status."""
    found: dict[str, int] = {}
    for status in sorted(sample.status for sample in samples):
        found[str(status)] = found.get(str(status), 0) + 1
    return found


def order(names: Sequence[str], number: int) -> list[str]:
    """In which order the variants take their turns in round ``number``: there and back again."""
    return list(names) if number % 2 else list(reversed(names))
