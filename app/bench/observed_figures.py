"""What observing costs, as figures: which gateways there are, in which order they serve, what is compared.

    nothing          nothing of an exchange is observed: what the others are held against
    nothing again    the control, set as nothing is
    each thing       alone
    everything       all of them

A ratio is a gateway's CPU over that of ``nothing`` in the same turn, so that what a machine does for a minute is
in both.

Pure.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.bench import streaming_figures
from app.bench.figures import Figures
from app.bench.profiles_figures import Cell
from app.bench.report import Row, Variant
from app.bench.table import shown
from app.bench.verdict import Aim

BLIND: Final[Mapping[str, object]] = {
    "LOG_LEVEL": "warning",
    "ENABLE_METRICS_ENDPOINT": "false",
    "ENABLE_USAGE": "false",
    "SERVER_TIMING": "false",
    "ENABLE_PERFORMANCE_MONITOR": "false",
    "RECENT_RECORDS": 0,
}
"""The settings with which nothing of an exchange is observed."""
_SEEING: Final[Mapping[str, Mapping[str, object]]] = {
    "log": {"LOG_LEVEL": "info"},
    "metrics": {"ENABLE_METRICS_ENDPOINT": "true"},
    "usage and cost": {"ENABLE_USAGE": "true"},
    "server-timing": {"SERVER_TIMING": "true"},
    "monitor": {"ENABLE_PERFORMANCE_MONITOR": "true"},
    "recent records": {"RECENT_RECORDS": 1000},
}
BASE, CONTROL = "nothing", "nothing_again"
_RATIOS: Final = {"cpu_ms_per_request": "request_cpu_ratio", "cpu_ms_per_event": "event_cpu_ratio"}
_REQUEST_ROWS = (
    Row("request_cpu_ratio", "CPU per request over nothing's", "x", 3),
    Row("cpu_ms_per_request", "CPU per request", "ms", 3),
)
_EVENT_ROWS = (
    Row("event_cpu_ratio", "CPU per event over nothing's", "x", 3),
    Row("cpu_ms_per_event", "CPU per event", "ms", 4),
)
_MOST = 1.05
_ALWAYS = (
    "nothing again is set as nothing is: what it differs by is what this machine makes of two equal gateways."
)
_ONE_CORE = "Not pinned: this process may use one core only, so the gateways share it with client and upstream."


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        turns: How often each gateway serves its slice.
        fresh: Turns after which new gateways take their place.
        only: Names of what is looked at besides nothing and its control; empty: all there is.
        requests: Short ones, in a slice.
        concurrency: How many of those at once.
        streams: At once, in a slice; 0: none are measured.
        events: In each of them.
        gap_ms: Between events.
        pin: Whether the gateways are to have a core of their own, if there are two.
    """

    turns: int = 60
    fresh: int = 10
    only: tuple[str, ...] = ()
    requests: int = 400
    concurrency: int = 32
    streams: int = 50
    events: int = 100
    gap_ms: int = 10
    pin: bool = True

    @property
    def streaming(self) -> streaming_figures.Plan:
        """The streams, as the streaming bench would carry them."""
        return streaming_figures.Plan(self.streams, self.events, self.gap_ms, self.turns)

    @property
    def cells(self) -> list[Cell]:
        """What is looked at."""
        return [cell for cell in cells() if not self.only or cell.name in (BASE, CONTROL, *self.only)]

    @property
    def shifts(self) -> list[range]:
        """The turns that the same gateways serve."""
        ends = self.turns + 1
        return [range(begin, min(begin + self.fresh, ends)) for begin in range(1, ends, self.fresh)]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the table."""
        return (*_REQUEST_ROWS, *(_EVENT_ROWS if self.streams else ()))

    def aims(self) -> list[Aim]:
        """What may be added at most: by each thing alone, and by everything."""
        judged = [cell.name for cell in self.cells if cell.name not in (BASE, CONTROL)]
        figures = [row.figure for row in self.rows if row.figure in _RATIOS.values()]
        return [Aim(name, figure, "<=", _MOST) for name in judged for figure in figures]

    def title(self) -> str:
        """One line."""
        streams = f"{self.streams:,} streams x {self.events} events x {self.gap_ms} ms; " if self.streams else ""
        return (
            f"observed: what observing an exchange costs; {self.requests:,} short requests, {self.concurrency} at "
            f"once; {streams}median of {self.turns} turn(s), new gateways every {self.fresh}"
        )


@dataclass(frozen=True, slots=True)
class Served:
    """One slice of short requests, as it was measured.

    Attributes:
        statuses: Of every request that counts; 0 is no answer.
        cpu_s: CPU seconds of the gateway's workers for them; None: not known, or a worker died or came meanwhile.
        met: Requests that the simulator met meanwhile.
    """

    statuses: Sequence[int]
    cpu_s: float | None
    met: int


def cells() -> list[Cell]:
    """The gateways: nothing, nothing again, each thing alone, everything."""
    each = [Cell(words.replace(" ", "_"), words, {**BLIND, **given}) for words, given in _SEEING.items()]
    everything = {name: value for given in _SEEING.values() for name, value in given.items()}
    first = [Cell(BASE, "nothing", BLIND), Cell(CONTROL, "nothing again", BLIND)]
    return [*first, *each, Cell("everything", "everything", {**BLIND, **everything})]


def order(names: Sequence[str], turn: int) -> list[str]:
    """In which order the gateways serve in ``turn``: any, but the same one in every run of the bench.

    There and back again would not do: a gateway's neighbours would always be the same two.
    """
    found = list(names)
    random.Random(turn).shuffle(found)  # noqa: S311 - no secret
    return found


def split(allowed: Collection[int]) -> tuple[set[int], set[int]] | None:
    """Of the cores that may be used, the gateways' one and the others'; None if there is only one."""
    if len(allowed) < 2:
        return None
    first, *rest = sorted(allowed)
    return {first}, set(rest)


def request_figures(one: Served) -> Figures:
    """CPU of a request; what failed costs something else, so with a failure there is no such figure."""
    count = len(one.statuses)
    whole = count > 0 and all(status == 200 for status in one.statuses)
    return {"cpu_ms_per_request": round(1000 * one.cpu_s / count, 5) if one.cpu_s and whole else None}


def event_figures(one: streaming_figures.Round) -> Figures:
    """CPU of an event; none if a stream broke."""
    return {"cpu_ms_per_event": streaming_figures.used(one)["cpu_ms_per_event"]}


def request_faults(one: Served, plan: Plan) -> list[str]:
    """What is missing among the requests of a slice."""
    good = sum(status == 200 for status in one.statuses)
    found = []
    if good != plan.requests:
        others = sorted({status for status in one.statuses if status != 200})
        found.append(f"{good} of {plan.requests} requests succeeded (other statuses: {others})")
    if one.met < good:
        found.append(f"{good} successes, but the simulator met {one.met} requests")
    return found


def compared(turn: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures of one turn, by gateway, with each one's ratios to ``nothing``; None where a side is missing."""
    base = turn[BASE]
    return {name: _ratios(found, base) | found for name, found in turn.items()}


def _ratios(found: Figures, base: Figures) -> Figures:
    ratios: Figures = {}
    for name in found:
        mine, theirs = found[name], base.get(name)
        ratios[_RATIOS[name]] = round(mine / theirs, 4) if mine is not None and theirs else None
    return ratios


def quartiles(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Within which the middle half of ``values`` lies; None with fewer than 2, or if one was not measured."""
    measured = [value for value in values if value is not None]
    if len(measured) < 2 or len(measured) < len(values):
        return None
    low, _, high = statistics.quantiles(measured, n=4, method="inclusive")
    return low, high


def notes(plan: Plan, variants: Sequence[Variant], *, pinned: bool) -> list[str]:
    """Below the table: how far the turns differ, and what a reader should know."""
    found = []
    for variant in variants:
        parts = [_middle(row, variant) for row in plan.rows if row.figure in _RATIOS.values()]
        if variant.name != BASE and all(parts):
            found.append(f"Half of the turns of {variant.words}: {'; '.join(parts)}.")
    found.append(_ALWAYS)
    return [*found, _ONE_CORE] if plan.pin and not pinned else found


def _middle(row: Row, variant: Variant) -> str:
    """The quartiles of one figure in words; empty if there are none."""
    ends = quartiles([one.get(row.figure) for one in variant.rounds])
    if ends is None:
        return ""
    return f"{row.words} {shown(ends[0], digits=row.digits)} to {shown(ends[1], row.unit, row.digits)}"
