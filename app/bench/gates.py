"""What two measurements say about one bound: kept for certain, broken for certain, or neither.

Before and after are each some rounds that have nothing to do with one another, so each side is resampled on its
own and the ratio of the medians taken: the middle 95 % of those ratios is the interval. Both sides must not draw
the same places, or a file compared with itself would look certain. Three rounds give about their whole range.

    interval   wholly within the bound   on both sides of it   wholly beyond it
    verdict    GOOD                      UNDECIDED             BAD

A rate of errors has a bound of its own, not one relative to before, and is the mean of the rounds: a median would
hide the one round in which everything failed. Its interval never ends below 3 / n for n requests, for no error in
n requests says no more than that (Hanley and Lippman-Hand, If nothing goes wrong, is everything all right?, 1983).
A bound of 0 is not on the rate but on what was seen: GOOD without an error, BAD with one.

``claimed`` is the rule of ``penstock assert-latency``: who claims something has to show it. With a limit of 1 or
more the claim is that a build is worse, for one that changes nothing is never certain not to be; but rounds that
scatter so far that much worse would not have been seen do not pass it either. Below 1 the claim is a gain.

    limit (after / before)   GOOD   UNDECIDED                                        BAD
    1 or more                PASS   PASS if broken by more than a margin is          FAIL
                                    ruled out for certain, or else UNDECIDED
    below 1                  PASS   FAIL                                             FAIL

How often a build is certain to be worse than itself, in 1,500 pairs of measurements whose rounds scatter by 5 %:
5 % of those with 3 rounds, less than 2 % of those with 5 to 20.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 (two samples) and 13.

Pure.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Final, Literal

from app.bench.bootstrap import Interval
from app.bench.results import Results, ResultsError

_RESAMPLES = 2000
_BEFORE, _AFTER = 1, 2
# Ratios are the quotients of rounded figures; what is equal but for the last bit is equal.
_SLACK = 1e-9
_RULE_OF_THREE = 3
MOST_ROUNDS: Final = 100
ERRORS: Final = "error_pct"
# The figures that stand for throughput and for the number of requests, where a bench has others than most.
_THROUGHPUT: Final = {"streaming": "events_per_s"}
_REQUESTS: Final = {"streaming": "streams"}


class Verdict(Enum):
    """Of one bound."""

    GOOD = "good"
    UNDECIDED = "undecided"
    BAD = "bad"


class Claim(Enum):
    """Of all bounds of ``assert-latency``."""

    MET = "PASS"
    UNDECIDED = "UNDECIDED"
    MISSED = "FAIL"


@dataclass(frozen=True, slots=True)
class Bound:
    """What is asked of one figure.

    Attributes:
        figure: Its name in the results file.
        relation: Which side of ``limit`` is good; the limit itself is.
        limit: Of the ratio after / before, or of the rate of errors (0..1) if the figure is ``error_pct``.
    """

    figure: str
    relation: Literal["<=", ">="]
    limit: float

    def kept_by(self, value: float) -> bool:
        """Whether ``value`` is on the good side."""
        slack = _SLACK * max(1.0, abs(self.limit))
        return value <= self.limit + slack if self.relation == "<=" else value >= self.limit - slack

    def verdict(self, ends: Interval) -> Verdict:
        """Of an interval."""
        kept = [self.kept_by(end) for end in ends]
        if all(kept):
            return Verdict.GOOD
        return Verdict.UNDECIDED if any(kept) else Verdict.BAD

    def text(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.relation == '<=' else 'at least'} {self.limit:.6g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One bound and what was found.

    Attributes:
        bound: What was asked.
        before: The median over the rounds, as the file has it; the mean if it is a rate of errors.
        after: Likewise.
        value: What the bound is on: the ratio after / before, or the rate of errors after (0..1).
        interval: Of ``value``, 95 %.
        verdict: Of the interval.
        settle: What would decide it; empty if it is decided.
    """

    bound: Bound
    before: float
    after: float
    value: float
    interval: Interval
    verdict: Verdict
    settle: str = ""

    @property
    def leans_good(self) -> bool:
        """Whether the value itself, certain or not, is on the good side."""
        return self.bound.kept_by(self.value)

    def within(self, margin_pct: float) -> bool:
        """Whether the limit is for certain not broken by more than ``margin_pct`` percent of it."""
        share = margin_pct / 100 if self.bound.relation == "<=" else -margin_pct / 100
        looser = replace(self.bound, limit=self.bound.limit * (1 + share))
        return looser.verdict(self.interval) is Verdict.GOOD

    def line(self) -> str:
        """For people."""
        low, high = self.interval
        share = "of all requests" if self.bound.figure == ERRORS else "of before"
        text = (
            f"{self.bound.figure}: {self.verdict.value}, {self.before:,.6g} -> {self.after:,.6g}, that is "
            f"{self.value:.4g} {share} ({low:.4g} to {high:.4g}), asked is {self.bound.text()}"
        )
        return f"{text}; {self.settle}" if self.settle else text

    def row(self) -> dict[str, object]:
        """For machines."""
        return {
            "figure": self.bound.figure,
            "measure": "rate" if self.bound.figure == ERRORS else "ratio",
            "before": self.before,
            "after": self.after,
            "value": self.value,
            "interval": list(self.interval),
            "relation": self.bound.relation,
            "limit": self.bound.limit,
            "verdict": self.verdict.value,
            "settle": self.settle,
        }


def improved(figure: str, percent: float) -> Bound:
    """That a figure is lower by ``percent``; by a negative one: not higher by more than that."""
    return Bound(figure, "<=", 1 - percent / 100)


def not_dropped(bench: str, percent: float) -> Bound:
    """That the throughput of ``bench`` is not lower by more than ``percent``."""
    return Bound(_THROUGHPUT.get(bench, "rps"), ">=", 1 - percent / 100)


def claimed(findings: Sequence[Finding], margin_pct: float) -> Claim:
    """What becomes of bounds on ratios, each an upper one; see the table above.

    Args:
        findings: One for each bound.
        margin_pct: By how much a limit may be broken without anybody being certain of it.
    """
    kinds = {_claim(one, margin_pct) for one in findings}
    return next((kind for kind in (Claim.MISSED, Claim.UNDECIDED) if kind in kinds), Claim.MET)


def _claim(finding: Finding, margin_pct: float) -> Claim:
    if finding.verdict is Verdict.GOOD:
        return Claim.MET
    if finding.verdict is Verdict.BAD or not finding.bound.kept_by(1.0):
        return Claim.MISSED
    return Claim.MET if finding.within(margin_pct) else Claim.UNDECIDED


def judge(before: Results, after: Results, variant: str, bounds: Sequence[Bound]) -> list[Finding]:
    """All bounds, in their order.

    Raises:
        ResultsError: Something was not measured; the message has a line for each bound that lacks it.
    """
    found, lacks = [], []
    for bound in bounds:
        try:
            found.append(_finding(before, after, variant, bound))
        except ResultsError as error:
            lacks.append(str(error))
    if lacks:
        raise ResultsError("\n".join(dict.fromkeys(lacks)))
    return found


def more_errors(before: Results, after: Results, variant: str) -> list[Finding]:
    """A bound that is broken for certain if there are errors after, and more than before; else nothing.

    Raises:
        ResultsError: One side has no such figure in a round, though there is one elsewhere.
    """
    if not any(ERRORS in one for side in (before, after) for one in side.rounds(variant)):
        return []  # this bench does not count any
    was = statistics.fmean(before.series(variant, ERRORS)) / 100
    found = _finding(before, after, variant, Bound(ERRORS, "<=", was))
    return [] if found.leans_good else [replace(found, verdict=Verdict.BAD, settle="")]


def _finding(before: Results, after: Results, variant: str, bound: Bound) -> Finding:
    old, new = before.series(variant, bound.figure), after.series(variant, bound.figure)
    if bound.figure == ERRORS:
        requests = sum(after.series(variant, _REQUESTS.get(after.bench, "requests")))
        return _rate(bound, old, new, requests)
    return _ratio(bound, old, new)


def _ratio(bound: Bound, old: Sequence[float], new: Sequence[float]) -> Finding:
    was, now = statistics.median(old), statistics.median(new)
    ends = ratio_interval(old, new)
    verdict = bound.verdict(ends)
    settle = ""
    if verdict is Verdict.UNDECIDED:
        settle = _more_rounds(bound, now / was, ends, min(len(old), len(new)))
    return Finding(bound, was, now, now / was, ends, verdict, settle)


def _rate(bound: Bound, old: Sequence[float], new: Sequence[float], requests: float) -> Finding:
    seen = statistics.fmean(new) / 100
    ends = rate_interval(new, requests)
    verdict = bound.verdict((seen, seen) if bound.limit == 0 else ends)
    settle = ""
    if verdict is Verdict.UNDECIDED:
        settle = _more_rounds(bound, seen, ends, len(new))
        if seen == 0:
            needed = math.ceil(_RULE_OF_THREE / max(bound.limit, _SLACK))
            settle = f"{requests:,.0f} requests without an error are too few, {needed:,} would settle it"
    return Finding(bound, statistics.fmean(old), statistics.fmean(new), seen, ends, verdict, settle)


def _more_rounds(bound: Bound, value: float, ends: Interval, rounds: int) -> str:
    """How many rounds would get the interval off the limit: it narrows with the square root of their number."""
    reach = abs((ends[1] if value < bound.limit else ends[0]) - value)
    away = abs(bound.limit - value)
    needed = rounds * (reach / away) ** 2 if away > _SLACK else math.inf
    if needed > MOST_ROUNDS:
        return f"too near to the limit for {MOST_ROUNDS} rounds to settle it: allow more, or ask for less"
    return f"about {max(rounds + 1, math.ceil(needed - _SLACK))} rounds a side would settle it"


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Within which the ratio of the medians after / before lies; the order of the rounds does not matter."""
    pairs = zip(_medians(after, _AFTER), _medians(before, _BEFORE), strict=True)
    return _middle([new / old for new, old in pairs])


def rate_interval(percents: Sequence[float], requests: float) -> Interval:
    """Within which the rate of errors (0..1) lies, from the percentage of each round and all their requests."""
    rounds = sorted(percents)
    means = [statistics.fmean(rounds[place] for place in one) / 100 for one in _draws(len(rounds), _AFTER)]
    low, high = _middle(means)
    return low, min(1.0, max(high, _RULE_OF_THREE / requests))


def _medians(values: Sequence[float], seed: int) -> list[float]:
    """The median of each resample: of places drawn among sorted values, the one in the middle."""
    ordered, count = sorted(values), len(values)
    lower, upper = (count - 1) // 2, count // 2
    return [(ordered[one[lower]] + ordered[one[upper]]) / 2 for one in _draws(count, seed)]


def _middle(values: list[float]) -> Interval:
    """The ends of the middle 95 %."""
    values.sort()
    cut = int(0.025 * len(values))
    return values[cut], values[-1 - cut]


@lru_cache(maxsize=64)
def _draws(count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Places of the resamples of ``count`` values, each sorted; the same in every run."""
    draw = random.Random(seed)  # noqa: S311 - resampling
    return tuple(tuple(sorted(draw.choices(range(count), k=count))) for _ in range(_RESAMPLES))
