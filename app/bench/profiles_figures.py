"""What is turned in a sweep, what is measured at each position, and the table an operator reads.

    connections   upstream connections that the same streams share
    chunk         largest piece of an answer handed on at once, for large downloads
    workers       worker processes, for short requests
    switch        how long a thread may keep the interpreter, for streams and for short requests

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, Literal

from app.bench import streaming_figures
from app.bench.concurrent_figures import others
from app.bench.figures import Figures, median_of, milliseconds, percentile
from app.bench.latency_figures import Sample
from app.bench.report import Report, Row
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Round
from app.bench.table import NOTHING, shown

FORMAT: Final = 2
WHAT: Final = ("connections", "chunk", "workers", "switch")
SWITCH: Final = "SWITCH_INTERVAL_MS"
Load = Literal["streams", "requests", "downloads"]
_KIB, _MIB = 1024, 1024 * 1024
_STREAM_ROWS = (
    Row("connections", "upstream connections"),
    Row("cpu_ms_per_event", "CPU per event", "ms", 4),
    Row("ttfb_p50_ms", "first byte, p50", "ms", 1),
    Row("ttfb_p99_ms", "first byte, p99", "ms", 1),
    Row("delay_p50_ms", "event delay, p50", "ms", 2),
    Row("delay_p99_ms", "event delay, p99", "ms", 2),
    Row("pss_kib_per_stream", "memory per stream", "KiB", 1),
)
_REQUEST_ROWS = (
    Row("rps", "requests per second", "/s"),
    Row("cpu_ms_per_request", "CPU per request", "ms", 3),
    Row("full_p50_ms", "whole answer, p50", "ms", 1),
    Row("full_p99_ms", "whole answer, p99", "ms", 1),
    Row("pss_mib", "memory (PSS)", "MiB", 1),
)
_DOWNLOAD_ROWS = (
    Row("mib_per_s", "throughput", "MiB/s"),
    Row("cpu_ms_per_mib", "CPU per MiB", "ms", 3),
    Row("download_p50_ms", "whole download, p50", "ms"),
    Row("download_p99_ms", "whole download, p99", "ms"),
    Row("peak_mib", "memory over idle", "MiB", 1),
)
_OTHERS = Row("others_cpu_pct", "of the machine, taken by others meanwhile", "%")
ROWS: Final[Mapping[Load, tuple[Row, ...]]] = {
    "streams": _STREAM_ROWS,
    "requests": _REQUEST_ROWS,
    "downloads": _DOWNLOAD_ROWS,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done at each position.

    Attributes:
        rounds: How often each position is measured; they take turns.
        streams: At once.
        events: In each stream.
        gap_ms: Between them.
        requests: Short ones.
        concurrency: How many of those at once.
        downloads: Large answers.
        downloads_at_once: How many of those at once.
        download_kib: Size of each.
    """

    rounds: int = 3
    streams: int = 200
    events: int = 100
    gap_ms: int = 20
    requests: int = 4000
    concurrency: int = 32
    downloads: int = 8
    downloads_at_once: int = 4
    download_kib: int = 32 * 1024

    @property
    def streaming(self) -> streaming_figures.Plan:
        """The streams, as the streaming bench would carry them."""
        return streaming_figures.Plan(self.streams, self.events, self.gap_ms, self.rounds)

    def words(self, load: Load) -> str:
        """What one load is."""
        size = f"{self.download_kib:,} KiB"
        return {
            "streams": f"{self.streams:,} streams x {self.events} events x {self.gap_ms} ms",
            "requests": f"{self.requests:,} short requests, {self.concurrency} at once",
            "downloads": f"{self.downloads} downloads of {size}, {self.downloads_at_once} at once",
        }[load]


@dataclass(frozen=True, slots=True)
class Cell:
    """One position.

    Attributes:
        name: In the results file.
        words: In the table.
        settings: Of the gateway, beyond those of the bench.
    """

    name: str
    words: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One thing that is turned.

    Attributes:
        name: One of ``WHAT``.
        words: What is turned.
        loads: What each position carries.
        cells: The positions.
    """

    name: str
    words: str
    loads: tuple[Load, ...]
    cells: Sequence[Cell]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the table."""
        return (*(row for load in self.loads for row in ROWS[load]), _OTHERS)

    def title(self, plan: Plan) -> str:
        """One line."""
        loads = "; ".join(plan.words(load) for load in self.loads)
        return f"{self.name}: {self.words}; {loads}; median of {plan.rounds} interleaved round(s)"


def sweeps(plan: Plan, known: Collection[str]) -> dict[str, Sweep]:
    """All that can be made.

    Args:
        plan: How much each position carries.
        known: Variables that the gateway reads; what it does not read is not swept.
    """
    shared = [
        _cell(
            f"{number} x {ceil(plan.streams / number)} streams",
            ANTHROPIC_MAX_CONNECTIONS=number,
            ANTHROPIC_STREAMS_PER_CONNECTION=ceil(plan.streams / number),
        )
        for number in sorted({1, 2, 8, plan.streams})
        if number <= plan.streams
    ]
    found = [
        Sweep("connections", "ANTHROPIC_MAX_CONNECTIONS x ANTHROPIC_STREAMS_PER_CONNECTION", ("streams",), shared),
        Sweep(
            "chunk",
            "ANTHROPIC_CHUNK_SIZE",
            ("downloads",),
            [_cell(f"{size:,} bytes", ANTHROPIC_CHUNK_SIZE=size) for size in (4096, 8192, 65536)],
        ),
        Sweep(
            "workers",
            "WEB_CONCURRENCY",
            ("requests",),
            [_cell(f"{number} worker(s)", WEB_CONCURRENCY=number) for number in (1, 2)],
        ),
        Sweep(
            "switch",
            SWITCH,
            ("streams", "requests"),
            [_cell(f"{value:g} ms", **{SWITCH: value}) for value in (0.5, 1, 5, 20)],
        ),
    ]
    return {one.name: one for one in found if all(name in known for cell in one.cells for name in cell.settings)}


def _cell(words: str, **settings: object) -> Cell:
    name = "_".join(f"{name.lower()}_{value}" for name, value in settings.items())
    return Cell(name, words, settings)


def stream_figures(one: Round, connections: int) -> Figures:
    """Of streams; ``connections`` is how many the simulator had from the gateway."""
    found = {"connections": connections} | streaming_figures.figures(one)
    found |= streaming_figures.used(one) | streaming_figures.memory(one)
    return {row.figure: found.get(row.figure) for row in _STREAM_ROWS} | others(one.others_pct)


def request_figures(
    samples: Sequence[Sample],
    duration_s: float,
    cpu_s: float | None,
    pss_bytes: int | None,
    others_pct: float | None = None,
) -> Figures:
    """Of short requests; times are those of successes."""
    good_s = [one.full_s for one in samples if one.status == 200]
    count = len(good_s)
    return {
        "rps": round(count / duration_s, 2) if count and duration_s > 0 else None,
        "cpu_ms_per_request": round(1000 * cpu_s / count, 5) if cpu_s and count else None,
        "full_p50_ms": milliseconds(percentile(good_s, 0.50)),
        "full_p99_ms": milliseconds(percentile(good_s, 0.99)),
        "pss_mib": round(pss_bytes / _MIB, 2) if pss_bytes else None,
        **others(others_pct),
    }


def request_faults(samples: Sequence[Sample], plan: Plan) -> list[str]:
    """What is missing among the short requests."""
    bad = plan.requests - sum(one.status == 200 for one in samples)
    return [f"{bad} of {plan.requests} requests failed"] if bad else []


def download_figures(one: Round) -> Figures:
    """Of large answers."""
    good = [sample for sample in one.samples if sample.status == 200]
    mib = sum(sample.size_bytes for sample in good) / _MIB
    full_s = [sample.latency_s for sample in good]
    before, peak = one.pss_bytes or (0, 0)
    return {
        "mib_per_s": round(mib / one.duration_s, 2) if mib and one.duration_s > 0 else None,
        "cpu_ms_per_mib": round(1000 * one.cpu_s / mib, 5) if one.cpu_s and mib else None,
        "download_p50_ms": milliseconds(percentile(full_s, 0.50)),
        "download_p99_ms": milliseconds(percentile(full_s, 0.99)),
        "peak_mib": round((peak - before) / _MIB, 2) if one.pss_bytes else None,
        **others(one.others_pct),
    }


def download_faults(samples: Sequence[Streamed], plan: Plan) -> list[str]:
    """What is missing among the downloads: all have to be there to the last byte."""
    whole = sum(one.status == 200 and one.size_bytes == plan.download_kib * _KIB for one in samples)
    bad = plan.downloads - whole
    return [f"{bad} of {plan.downloads} downloads failed or were not whole"] if bad else []


@dataclass(slots=True)
class Profiles:
    """What the sweeps found.

    Attributes:
        title: One line.
        reports: By sweep.
        markdown: Whether people want it as Markdown.
        notes: Below everything.
    """

    title: str
    reports: dict[str, Report] = field(default_factory=dict)
    markdown: bool = False
    notes: Sequence[str] = ()

    @property
    def sections(self) -> Sequence[Report]:
        """For the page."""
        return list(self.reports.values())

    @property
    def faults(self) -> list[str]:
        """What is missing, with the sweep's name in front."""
        return [f"{name}: {text}" for name, report in self.reports.items() for text in report.faults]

    @property
    def reached(self) -> bool:
        """There is nothing to reach: it tells what settings do."""
        return True

    def text(self) -> str:
        """A table for each sweep."""
        parts = [as_markdown(one) if self.markdown else one.text() for one in self.reports.values()]
        return "\n\n".join([*parts, *self.notes])

    def json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What ``--output`` writes."""
        return {
            "bench": "profiles",
            "format": FORMAT,
            "title": self.title,
            "machine": dict(machine),
            "parts": {name: report.json(machine) for name, report in self.reports.items()},
            "faults": self.faults,
        }


def as_markdown(report: Report) -> str:
    """A sweep's table with a line for each position: what an operator would set, and what comes of it."""
    medians = [median_of(variant.rounds) for variant in report.variants]
    rows = [row for row in report.rows if any(median.get(row.figure) is not None for median in medians)]
    lines = [["", *(row.words for row in rows)], ["---", *("---:" for _ in rows)]]
    for variant, median in zip(report.variants, medians, strict=True):
        cells = [shown(median.get(row.figure), row.unit, row.digits) for row in rows]
        lines.append([variant.words, *(NOTHING if cell == "" else cell for cell in cells)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{report.title}\n\n{table}"
