"""``penstock bench all``: latency, streaming, concurrent and storm, one after the other, in one file and one page.

A part that did not come up, or that this installation does not have, is a fault; the others are measured all the
same.

Runs on: start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.bench.progress import Say
from app.bench.report import Report
from app.bench.servers import BenchError

FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One bench of the suite.

    Attributes:
        name: In the results file.
        run: Measures; is given what to call at the beginning of each step.
    """

    name: str
    run: Callable[[Say], Report]


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
