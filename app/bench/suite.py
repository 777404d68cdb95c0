"""``penstock bench all``: latency, streaming, concurrent and storm, one after the other, in one file and one page.

A part that did not come up, or that this installation does not have, is a fault; the others are measured all the
same.

Runs on: start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.bench.against import Against
from app.bench.progress import Say
from app.bench.report import Report
from app.bench.servers import BenchError
from app.simulator.running import Running

FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One bench of the suite.

    Attributes:
        name: In the results file.
        run: Measures; is given what to call at the beginning of each step.
        steps: How many there will be.
    """

    name: str
    run: Callable[[Say], Report]
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the whole suite is told.

    Attributes:
        quick: Small sizes and few rounds: a look, not a figure to quote.
        rounds: Instead of each part's own number; None keeps that.
        against: Gateways that run already.
        simulator: One that runs already.
    """

    quick: bool = False
    rounds: int | None = None
    against: Sequence[Against] = ()
    simulator: Running | None = None

    def sizes(self, quick: Mapping[str, Any]) -> dict[str, Any]:
        """What a part's plan has instead of its defaults."""
        found = dict(quick) if self.quick else {}
        return found | ({} if self.rounds is None else {"rounds": self.rounds})


@dataclass(slots=True)
class Suite:
    """What the parts found.

    Attributes:
        title: One line.
        reports: By name, in the order in which they were made.
        broken: What is to be said of parts without a report.
    """

    title: str
    reports: dict[str, Report] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is missing, with the part's name in front."""
        lacks = [f"{name}: {text}" for name, report in self.reports.items() for text in report.faults]
        return [*self.broken, *lacks]

    @property
    def reached(self) -> bool:
        """Whether every aim of every part is met, and no part is missing."""
        return not self.broken and all(report.reached for report in self.reports.values())

    @property
    def sections(self) -> Sequence[Report]:
        """For the page."""
        return list(self.reports.values())

    def text(self) -> str:
        """Every part's tables."""
        return "\n\n".join(report.text() for report in self.reports.values())

    def json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What ``--output`` writes."""
        return {
            "bench": "all",
            "format": FORMAT,
            "title": self.title,
            "machine": dict(machine),
            "parts": {name: report.json(machine) for name, report in self.reports.items()},
            "faults": self.faults,
        }


def measure(title: str, parts: Sequence[Part], say: Say) -> Suite:
    """Runs all ``parts``."""
    found = Suite(title)
    for part in parts:
        try:
            found.reports[part.name] = part.run(lambda text, name=part.name: say(f"{name}: {text}"))  # type: ignore[misc]
        except ImportError as fault:
            found.broken.append(f"{part.name}: not part of this installation ({fault})")
        except (BenchError, OSError) as fault:
            found.broken.append(f"{part.name}: {fault}")
    return found


def parts(wish: Wish) -> list[Part]:
    """All of them; one that this installation does not have fails when it is run."""
    found = []
    for name, build in _BUILDERS.items():
        try:
            found.append(build(wish))
        except ImportError as fault:
            found.append(Part(name, _lacking(fault)))
    return found


def _lacking(fault: ImportError) -> Callable[[Say], Report]:
    def run(say: Say) -> Report:
        raise fault

    return run


def _latency(wish: Wish) -> Part:
    from app.bench.latency import run, steps
    from app.bench.latency_figures import Plan

    plan = Plan(**wish.sizes({"requests": 1000, "rounds": 3}))
    return Part(
        "latency", lambda say: run(plan, say, wish.against, wish.simulator), steps(plan, len(wish.against))
    )


def _streaming(wish: Wish) -> Part:
    from app.bench.streaming import run, steps
    from app.bench.streaming_figures import Plan

    small = {"streams": 50, "events": 50, "rounds": 3, "burst_s": 1.0, "floor_requests": 1000}
    plan = Plan(**wish.sizes(small))
    return Part(
        "streaming", lambda say: run(plan, say, wish.against, wish.simulator), steps(plan, len(wish.against))
    )


def _concurrent(wish: Wish) -> Part:
    from app.bench.concurrent import run, steps
    from app.bench.concurrent_figures import Plan

    small = {"streams": 200, "hold_ms": 1000, "slow_requests": 200, "answer_ms": 1000, "spread_s": 0.25}
    plan = Plan(**wish.sizes({**small, "starts": 3, "requests": 1000, "rounds": 1}))
    return Part("concurrent", lambda say: run(plan, say), steps(plan))


def _storm(wish: Wish) -> Part:
    from app.bench.storm import run
    from app.bench.storm_figures import Script

    script = Script(200, 40, 200, 1, 0.5) if wish.quick else Script(1000, 100, 800, 2, 3.0)
    rounds = wish.rounds or 3
    return Part("storm", lambda say: run(script, rounds, say), 3 * rounds)


_BUILDERS: Final = {"latency": _latency, "streaming": _streaming, "concurrent": _concurrent, "storm": _storm}
