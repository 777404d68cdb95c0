"""Whether a build goes to more traffic: PROMOTE, HOLD or ROLLBACK, by what is certain and how much is at stake.

                     any bound broken for certain
    (before, after) ------------------------------> ROLLBACK
          |
          |  all bounds kept, each for certain or undecided where the stage allows it
          +-----------------------------------------> PROMOTE
          |  anything else
          +-----------------------------------------> HOLD: measure more, decide again

What may stay undecided, provided that the measured value itself keeps the bound, and that to break it by more than
a margin is ruled out for certain (rounds that scatter wildly show nothing, whatever their median is):

    stage        latency   throughput   errors
      5 %        yes       yes          no
     20 %        yes       no           no
     50, 100 %   no        no           no

At 5 % little is lost by being wrong, and more is learnt there than by another bench. From half of the traffic on
there is no way back that nobody notices, so everything has to be certain. Errors are never waved through. Data
that is missing is no HOLD: nothing is decided then (``ResultsError``).

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from app.bench.gates import ERRORS, Bound, Finding, Verdict, improved, not_dropped

# For --help; a test holds it against the module's docstring.
RULE: Final = """\
stage        latency   throughput   errors
  5 %        yes       yes          no
 20 %        yes       no           no
 50, 100 %   no        no           no"""

LATENCY: Final = ("full_p95_ms", "ttfb_p95_ms")
_KINDS: Final = {
    5: frozenset({"latency", "throughput"}),
    20: frozenset({"latency"}),
    50: frozenset(),
    100: frozenset(),
}
STAGES: Final = tuple(_KINDS)


class Decision(Enum):
    """What is to be done with the build."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    ROLLBACK = "ROLLBACK"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of the build.

    Attributes:
        latency_p95_improve_pct: By how much p95 has to be lower; negative: by how much it may be higher.
        throughput_drop_pct: By how much throughput may be lower.
        error_rate_max: Share of requests (0..1) that may fail; 0: none that was measured.
    """

    latency_p95_improve_pct: float
    throughput_drop_pct: float
    error_rate_max: float

    def bounds(self, bench: str) -> list[Bound]:
        """On the figures of a bench."""
        return [
            *(improved(figure, self.latency_p95_improve_pct) for figure in LATENCY),
            not_dropped(bench, self.throughput_drop_pct),
            Bound(ERRORS, "<=", self.error_rate_max),
        ]


def decide(findings: Sequence[Finding], stage: int, margin_pct: float) -> Decision:
    """What the table above says; without findings there is nothing to promote on.

    Args:
        findings: One for each bound.
        stage: Percentage of the traffic that the build is to get: one of ``STAGES``.
        margin_pct: By how much a limit may be broken without anybody being certain of it, where that is allowed.
    """
    if any(one.verdict is Verdict.BAD for one in findings):
        return Decision.ROLLBACK
    if findings and all(_passes(one, stage, margin_pct) for one in findings):
        return Decision.PROMOTE
    return Decision.HOLD


def _passes(finding: Finding, stage: int, margin_pct: float) -> bool:
    if finding.verdict is not Verdict.UNDECIDED:
        return finding.verdict is Verdict.GOOD
    allowed = _kind(finding.bound.figure) in _KINDS[stage]
    return allowed and finding.leans_good and finding.within(margin_pct)


def _kind(figure: str) -> str:
    if figure == ERRORS:
        return "errors"
    return "latency" if figure in LATENCY else "throughput"
