"""What one round of streams amounts to: figures, what is compared with what, and what is missing.

    delay         of an event: from just before the simulator wrote it until the client had read it
    added_*       through minus direct, of the same round; only if the streams really came from the same upstream
    floor_ratio   CPU per event over what a request costs the WSGI floor, of the same round

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.bench.figures import Figures, median_of, milliseconds, percentile
from app.bench.report import Row
from app.bench.stream_client import Streamed
from app.bench.verdict import Aim

AIMS = (
    Aim("gateway", "cpu_ms_per_event", "<=", 0.06, either="cpu"),
    Aim("gateway", "floor_ratio", "<=", 0.27, either="cpu"),
    Aim("gateway", "added_ttfb_p50_ms", "<=", 5),
    Aim("gateway", "added_ttfb_p99_ms", "<=", 40),
    Aim("gateway", "added_delay_p99_ms", "<=", 15),
    Aim("gateway", "pss_kib_per_stream", "<=", 64),
    Aim("gateway", "error_pct", "<=", 0, "worst"),
    Aim("burst", "events_per_core_s", ">=", 25_000),
    Aim("burst", "error_pct", "<=", 0, "worst"),
)
ROWS = (
    Row("streams", "streams"),
    Row("events", "events"),
    Row("events_per_s", "events per second", "/s"),
    Row("cpu_ms_per_request", "CPU per request, process tree", "ms", 3),
    Row("cpu_ms_per_event", "CPU per event, process tree", "ms", 4),
    Row("floor_ratio", "CPU per event over the floor's request", "x", 3),
    Row("events_per_core_s", "events per second of the processes' CPU", "/s"),
    Row("ttfb_p50_ms", "first byte of the body, p50", "ms", 1),
    Row("ttfb_p95_ms", "first byte of the body, p95", "ms", 1),
    Row("ttfb_p99_ms", "first byte of the body, p99", "ms", 1),
    Row("added_ttfb_p50_ms", "added to the first byte by the gateway, p50", "ms", 1),
    Row("added_ttfb_p99_ms", "added to the first byte by the gateway, p99", "ms", 1),
    Row("delay_p50_ms", "delay of an event, p50", "ms", 2),
    Row("delay_p95_ms", "delay of an event, p95", "ms", 2),
    Row("delay_p99_ms", "delay of an event, p99", "ms", 2),
    Row("added_delay_p99_ms", "added to the delay by the gateway, p99", "ms", 2),
    Row("full_p50_ms", "whole stream, p50", "ms"),
    Row("full_p95_ms", "whole stream, p95", "ms"),
    Row("full_p99_ms", "whole stream, p99", "ms"),
    Row("pss_kib_per_stream", "memory per stream (PSS)", "KiB", 1),
    Row("error_pct", "errors", "%", 2),
    Row("client_cpu_ms_per_event", "for the record: the client's CPU per event", "ms", 4),
    Row("others_cpu_pct", "for the record: of the machine, taken by others", "%"),
)
NOTE = "CPU per event is to reach one of its two bounds: in milliseconds, or over the floor's request."
OTHERS = (
    "Others took {:.0f} % of this machine meanwhile: delays are partly theirs, and CPU per event is "
    "flattered, since events that wait are sent on together. Measure again when it is quiet."
)
_OTHERS_PCT = 10.0
_DEFAULT_ROOM, _MOST_THREADS = 1000, 1024
_SPARE = 50
_SHARES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        streams: At once.
        events: In each.
        gap_ms: Between them.
        rounds: How often.
        workers: Of the gateway and of the floor.
        worker_class: gunicorn's, for the gateway.
        stagger_s: Within which the streams begin.
        burst_streams: At once, when events come back to back.
        burst_events: In each of those.
        burst_s: No burst stream begins later than this.
        floor_requests: Sent to the floor in each round.
        floor_concurrency: How many of them at once.
    """

    streams: int = 200
    events: int = 100
    gap_ms: int = 20
    rounds: int = 5
    workers: int = 1
    worker_class: str = "gevent"
    stagger_s: float = 0.5
    burst_streams: int = 32
    burst_events: int = 50
    burst_s: float = 3.0
    floor_requests: int = 3000
    floor_concurrency: int = 32

    @property
    def model(self) -> str:
        """Asked for by a paced stream."""
        return f"claude-sim-stream-{self.events}x{self.gap_ms}ms"

    @property
    def burst_model(self) -> str:
        """Asked for by a stream without gaps."""
        return f"claude-sim-stream-{self.burst_events}x0ms"

    @property
    def room(self) -> dict[str, object]:
        """Settings that so many streams need beyond the defaults; empty if those do."""
        found: dict[str, object] = {}
        if self.streams > _DEFAULT_ROOM - _SPARE:
            found["WORKER_CONNECTIONS"] = self.streams + _SPARE
            found["ANTHROPIC_CONCURRENCY"] = self.streams + _SPARE
        if self.worker_class == "gthread":
            found["THREADS"] = min(_MOST_THREADS, self.streams + _SPARE)
        return found

    @property
    def longest_s(self) -> float:
        """How long a stream may take before it counts as lost."""
        return 30 + 2 * self.events * self.gap_ms / 1000

    def title(self) -> str:
        """One line."""
        return (
            f"streaming: {self.streams:,} streams x {self.events} events x {self.gap_ms} ms, then "
            f"{self.burst_streams} at once x {self.burst_events} events without a gap; "
            f"{self.workers} {self.worker_class} worker(s); median of {self.rounds} interleaved round(s)"
        )


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one variant, as it was measured.

    Attributes:
        samples: Every stream.
        events: That each should have had.
        duration_s: From the first request to the last event.
        client_s: CPU seconds of the client meanwhile.
        cpu_s: Of the process tree; None: not known, or a process died or came meanwhile.
        pss_bytes: Of the process tree, before the connections were opened and the most while streams were open;
            None: not of interest, or it could not be read.
        met: Events that the simulator sent meanwhile; None: it is not known to be their upstream.
        calm: Whether the servers were idle before.
        others_pct: Of the machine's CPU, what was taken meanwhile by anything but client, target and simulator;
            None: not known.
    """

    samples: Sequence[Streamed]
    events: int
    duration_s: float
    client_s: float = 0.0
    cpu_s: float | None = None
    pss_bytes: tuple[int, int] | None = None
    met: int | None = None
    calm: bool = True
    others_pct: float | None = None

    @property
    def good(self) -> list[Streamed]:
        """Streams with all their events and their end."""
        return [one for one in self.samples if wrong(one, self.events) == ""]

    @property
    def seen(self) -> int:
        """Events that were read, of whichever stream."""
        return sum(len(one.delays_ns) for one in self.samples)


def wrong(one: Streamed, events: int) -> str:
    """What a stream lacks; empty if nothing."""
    if one.status != 200:
        return one.fault or f"status {one.status}"
    if len(one.delays_ns) != events:
        return f"{len(one.delays_ns)} of {events} events"
    return "" if one.stopped else "no message_stop at its end"


def figures(one: Round) -> Figures:
    """The figures of a round that need no other.

    Times are those of whole streams, for failures are quick. What an event costs, and how many there are in a
    second, cannot be told apart like that: with a broken stream there is no such figure.
    """
    good, seen, count = one.good, one.seen, len(one.samples)
    whole = seen if len(good) == count else 0
    found: Figures = {
        "streams": count,
        "events": seen,
        "events_per_s": round(whole / one.duration_s, 1) if whole and one.duration_s > 0 else None,
        "client_cpu_ms_per_event": round(1000 * one.client_s / whole, 5) if whole else None,
        "error_pct": round(100 * (count - len(good)) / count, 4) if count else None,
    }
    if one.others_pct is not None:
        found["others_cpu_pct"] = round(one.others_pct, 1)
    delays_s = [delay / 1e9 for sample in good for delay in sample.delays_ns]
    first_s = [sample.body_s - sample.sent_s for sample in good]
    full_s = [sample.latency_s for sample in good]
    for name, share in _SHARES:
        found[f"ttfb_{name}_ms"] = milliseconds(percentile(first_s, share))
        found[f"delay_{name}_ms"] = milliseconds(percentile(delays_s, share))
        found[f"full_{name}_ms"] = milliseconds(percentile(full_s, share))
    return found


def used(one: Round) -> Figures:
    """What the round took of the processes that carried it; nothing if a stream broke."""
    known = one.cpu_s if one.cpu_s and one.seen and len(one.good) == len(one.samples) else None
    return {
        "cpu_ms_per_event": round(1000 * known / one.seen, 6) if known else None,
        "events_per_core_s": round(one.seen / known, 1) if known else None,
    }


def memory(one: Round) -> Figures:
    """What a stream takes while it is open."""
    if one.pss_bytes is None or not one.samples:
        return {"pss_kib_per_stream": None}
    before, peak = one.pss_bytes
    return {"pss_kib_per_stream": round((peak - before) / 1024 / len(one.samples), 2)}


def floor_figures(requests: int, good: int, cpu_s: float | None) -> Figures:
    """What a request costs the WSGI floor; nothing if not all were answered."""
    usable = cpu_s and requests and good == requests
    return {"cpu_ms_per_request": round(1000 * (cpu_s or 0) / requests, 5) if usable else None}


def floor_ratio(own: Figures, floor: Figures) -> Figures:
    """CPU per event over the floor's CPU per request, both of the same round."""
    event_ms, base_ms = own.get("cpu_ms_per_event"), floor.get("cpu_ms_per_request")
    return {"floor_ratio": round(event_ms / base_ms, 5) if event_ms and base_ms else None}


def added(own: Figures, direct: Figures, *, same_upstream: bool) -> Figures:
    """Through minus direct, both of the same round; nothing if the streams came from elsewhere."""
    found: Figures = {}
    for name in ("ttfb_p50_ms", "ttfb_p99_ms", "delay_p99_ms"):
        through_ms, straight_ms = own.get(name), direct.get(name)
        measured = same_upstream and through_ms is not None and straight_ms is not None
        found[f"added_{name}"] = round((through_ms or 0) - (straight_ms or 0), 3) if measured else None
    return found


def faults(one: Round, streams: int | None = None) -> list[str]:
    """What is missing in a round, or spoils its figures.

    Args:
        one: The round.
        streams: How many there should have been; None: as many as there was time for.
    """
    found = []
    if streams is not None and len(one.samples) != streams:
        found.append(f"{len(one.samples)} samples of {streams} streams")
    found += _failed(one)
    if any(sample.body_s <= sample.sent_s for sample in one.good):
        found.append("a whole stream without a first byte")
    if any(delay < 0 for sample in one.samples for delay in sample.delays_ns):
        found.append("events were read before they were sent: their clock is not this machine's")
    if one.met is not None and one.met != one.seen and not _failed(one):
        found.append(f"{one.seen:,} events were read, but the simulator sent {one.met:,}")
    if not one.calm:
        found.append("the servers were still busy when it began")
    return found


def _failed(one: Round) -> list[str]:
    """A sentence on the streams that are not whole, if there are any."""
    lacks = [text for text in (wrong(sample, one.events) for sample in one.samples) if text]
    if not lacks and one.samples:
        return []
    texts = sorted(set(lacks), key=lacks.count, reverse=True)
    return [f"{len(lacks)} of {len(one.samples)} streams failed: {'; '.join(texts[:3]) or 'there were none'}"]


def unmeasured(found: Figures) -> list[str]:
    """Figures that should be there and are not."""
    return [f"{name} could not be measured" for name, value in found.items() if value is None]


def notes(rounds: Sequence[Figures]) -> list[str]:
    """What the reader of the table has to know of these rounds of the gateway."""
    taken = median_of(rounds).get("others_cpu_pct")
    return [NOTE] if taken is None or taken <= _OTHERS_PCT else [NOTE, OTHERS.format(taken)]
