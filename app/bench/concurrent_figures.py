"""What much at once amounts to: memory of streams that carry nothing, requests that wait, a start, two workers.

    idle_streams    open on one worker with one event in each, and silence otherwise; PSS over the idle worker's
    slow_requests   in flight at once on one worker, whose upstream takes its time
    cold_start      from the start of the process to the first answer with status 200
    one_worker,     the same load of short requests
    two_workers

With four cores or more two workers are to carry 1.8 times the requests of one. With fewer, the client and the
upstream take what the second worker would need; what can be shown there is that a request costs no more CPU.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.bench import latency_figures, streaming_figures
from app.bench.figures import Figures, median_of, milliseconds, percentile
from app.bench.latency_figures import Sample
from app.bench.report import Row
from app.bench.streaming_figures import Round
from app.bench.verdict import Aim

ROWS = (
    Row("streams", "streams open at once"),
    Row("pss_mib_over_idle", "memory over the idle worker's (PSS)", "MiB", 1),
    Row("kib_per_stream", "the same, per stream", "KiB", 1),
    Row("first_answer_s", "process start to first answer", "s", 2),
    Row("start_cpu_s", "CPU that the start took", "s", 2),
    Row("rss_mib", "idle worker's RSS", "MiB", 1),
    Row("requests", "requests"),
    Row("most_upstream", "most at once upstream"),
    Row("duration_s", "until all were answered", "s", 2),
    Row("full_p50_ms", "whole answer, p50", "ms"),
    Row("full_p99_ms", "whole answer, p99", "ms"),
    Row("rps", "requests per second", "/s"),
    Row("cpu_ms_per_request", "CPU per request, process tree", "ms", 3),
    Row("rps_ratio", "requests per second over one worker's", "x", 2),
    Row("cpu_ratio", "CPU per request over one worker's", "x", 2),
    Row("error_pct", "errors", "%", 2),
    Row("others_cpu_pct", "for the record: of the machine, taken by others", "%"),
)
OTHERS = "Others took {:.0f} % of this machine meanwhile: times are partly theirs. Measure again when it is quiet."
_OTHERS_PCT = 10.0
ENOUGH_CORES = 4
_IDLE_MIB = 64.0
_PER_STREAMS = 1000
_DEFAULT_ROOM = 1000
_SPARE = 50
_CPU_RATIO = 1.1
_EARLY = 0.95  # a loop's clock stands still while it works through a turn: its timers strike a little early
_AT_ONCE_PCT = 95.0  # of the slow requests: a straggler is no lie, half of them would be
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        streams: Idle ones.
        hold_ms: Silence of each before its event, and after it.
        slow_requests: At once.
        answer_ms: How long the upstream takes for each of those.
        spread_s: Within which they arrive, and the idle streams begin.
        starts: Of a gateway, cold.
        idle_s: After which the memory of a started one is looked at.
        requests: Short ones, to one worker and to two, in each round.
        concurrency: How many of them at once.
        rounds: Of everything but the starts.
    """

    streams: int = 1000
    hold_ms: int = 3000
    slow_requests: int = 2000
    answer_ms: int = 2000
    spread_s: float = 1.0
    starts: int = 5
    idle_s: float = 2.0
    requests: int = 4000
    concurrency: int = 32
    rounds: int = 3

    @property
    def idle(self) -> streaming_figures.Plan:
        """The idle streams, as the streaming bench would carry them."""
        return streaming_figures.Plan(
            self.streams, events=1, gap_ms=self.hold_ms, rounds=self.rounds, stagger_s=self.spread_s
        )

    @property
    def short(self) -> latency_figures.Plan:
        """The short requests, as the latency bench would send them."""
        return latency_figures.Plan(self.requests, self.concurrency, self.rounds)

    @property
    def slow_room(self) -> dict[str, object]:
        """Settings that so many slow requests need beyond the defaults; empty if those do."""
        if self.slow_requests <= _DEFAULT_ROOM - _SPARE:
            return {}
        wanted = self.slow_requests + _SPARE
        return {"WORKER_CONNECTIONS": wanted, "ANTHROPIC_CONCURRENCY": wanted}

    def title(self) -> str:
        """One line."""
        return (
            f"concurrent: {self.streams:,} idle streams; {self.slow_requests:,} requests at once that take "
            f"{self.answer_ms:,} ms upstream; {self.starts} cold starts; one worker and two with "
            f"{self.concurrency} of {self.requests:,} short requests at once; median of {self.rounds} round(s)"
        )

    def aims(self, cores: int) -> tuple[Aim, ...]:
        """What the figures are held against on a machine with so many cores."""
        idle_mib = _IDLE_MIB * max(1.0, self.streams / _PER_STREAMS)
        both = Aim("two_workers", "rps_ratio", ">=", 1.8)
        if cores < ENOUGH_CORES:
            both = Aim("two_workers", "cpu_ratio", "<=", _CPU_RATIO)
        return (
            Aim("idle_streams", "pss_mib_over_idle", "<=", idle_mib),
            Aim("idle_streams", "error_pct", "<=", 0, "worst"),
            Aim("slow_requests", "error_pct", "<=", 0, "worst"),
            Aim("cold_start", "first_answer_s", "<=", 1.5),
            Aim("cold_start", "rss_mib", "<=", 75),
            both,
        )

    def notes(self, cores: int, slow: Sequence[Figures]) -> list[str]:
        """What the reader of the table has to know, after these rounds of slow requests."""
        found = []
        taken = median_of(slow).get("others_cpu_pct")
        if cores < ENOUGH_CORES:
            found.append(
                f"{cores} cores carry client, upstream and workers: two workers cannot be 1.8 times as quick. "
                "CPU per request unchanged is the aim instead."
            )
        return found if taken is None or taken <= _OTHERS_PCT else [*found, OTHERS.format(taken)]


def others(taken_pct: float | None) -> Figures:
    """What others took of the machine, if that is known."""
    return {} if taken_pct is None else {"others_cpu_pct": round(taken_pct, 1)}


def idle_figures(one: Round, most_open: int) -> Figures:
    """Of one round of idle streams.

    Args:
        one: What became of them.
        most_open: As many as the simulator had open at once.
    """
    over_mib = None if one.pss_bytes is None else (one.pss_bytes[1] - one.pss_bytes[0]) / _MIB
    count = len(one.samples)
    return {
        "streams": most_open,
        "pss_mib_over_idle": None if over_mib is None else round(over_mib, 3),
        "kib_per_stream": None if over_mib is None or not count else round(over_mib * 1024 / count, 2),
        "error_pct": round(100 * (count - len(one.good)) / count, 4) if count else None,
        **others(one.others_pct),
    }


def idle_faults(one: Round, plan: Plan, most_open: int) -> list[str]:
    """What is missing in such a round."""
    found = streaming_figures.faults(one, plan.streams)
    if most_open < plan.streams:
        found.append(f"{most_open} of {plan.streams} streams were open at once")
    return found


def slow_figures(samples: Sequence[Sample], duration_s: float, cpu_s: float | None, most_upstream: int) -> Figures:
    """Of one round of slow requests; times are those of successes.

    Args:
        samples: Every request.
        duration_s: From the first one's begin to the last one's end.
        cpu_s: Of the process tree meanwhile; None if it could not be read.
        most_upstream: As many as the simulator had open at once.
    """
    good_s = [one.full_s for one in samples if one.status == 200]
    count = len(samples)
    whole = len(good_s) == count
    return {
        "requests": count,
        "most_upstream": most_upstream,
        "duration_s": round(duration_s, 3),
        "full_p50_ms": milliseconds(percentile(good_s, 0.50)),
        "full_p99_ms": milliseconds(percentile(good_s, 0.99)),
        "cpu_ms_per_request": round(1000 * cpu_s / count, 5) if cpu_s and count and whole else None,
        "error_pct": round(100 * (count - len(good_s)) / count, 4) if count else None,
    }


def slow_faults(samples: Sequence[Sample], plan: Plan, met: int, most_upstream: int) -> list[str]:
    """What is missing in such a round.

    Args:
        samples: Every request.
        plan: What should have been done.
        met: As many as arrived at the simulator.
        most_upstream: As many as it had open at once.
    """
    found = []
    good = sum(one.status == 200 for one in samples)
    if len(samples) != plan.slow_requests:
        found.append(f"{len(samples)} samples of {plan.slow_requests} requests")
    if good < len(samples) or not samples:
        statuses = latency_figures.counts(samples)
        texts = ", ".join(f"{number} with {status}" for status, number in statuses.items() if status != "200")
        found.append(f"{len(samples) - good} of {len(samples)} requests failed: {texts or 'there were none'}")
    if met < good:
        found.append(f"{good} successes, but the simulator met {met} requests")
    least_s = plan.answer_ms * _EARLY / 1000
    quick = sum(one.status == 200 and one.full_s < least_s for one in samples)
    if quick:
        found.append(f"{quick} answers came before the upstream could have given them")
    if 100 * most_upstream < _AT_ONCE_PCT * plan.slow_requests:
        found.append(f"{most_upstream} of {plan.slow_requests} requests were upstream at once")
    return found


def ratios(one: Figures, two: Figures) -> Figures:
    """Two workers' figures over one worker's of the same round."""
    found: Figures = {}
    for name, figure in (("rps_ratio", "rps"), ("cpu_ratio", "cpu_ms_per_request")):
        own, base = two.get(figure), one.get(figure)
        found[name] = round(own / base, 4) if own and base else None
    return found


def load_figures(found: Figures) -> Figures:
    """Of what the latency bench found, that which is compared between one worker and two."""
    names = ("requests", "rps", "cpu_ms_per_request", "full_p50_ms", "full_p99_ms", "error_pct")
    return {name: found.get(name) for name in names}
