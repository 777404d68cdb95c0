"""A build goes on when nothing speaks against it, and back when something does for certain."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bench import rollout
from app.bench.gates import ERRORS, Bound, Finding, Verdict, judge
from app.bench.results import Results
from app.bench.rollout import LATENCY, RULE, STAGES, Decision, Limits, decide

GOOD, UNDECIDED, BAD = Verdict.GOOD, Verdict.UNDECIDED, Verdict.BAD
ORDER = [Decision.ROLLBACK, Decision.HOLD, Decision.PROMOTE]
RANK = [BAD, UNDECIDED, GOOD]
FIGURES = (*LATENCY, "rps", ERRORS)
MARGIN_PCT = 25.0


def finding(figure: str, verdict: Verdict, *, leans_good: bool = True) -> Finding:
    """Of an upper bound of 1; certain verdicts lean where they are."""
    leans = leans_good if verdict is UNDECIDED else verdict is GOOD
    return Finding(Bound(figure, "<=", 1.0), 1.0, 1.0, 0.9 if leans else 1.1, (0.8, 1.2), verdict)


def decided(stage: int, **verdicts: Verdict) -> Decision:
    return decide([finding(one, verdicts.get(one, GOOD)) for one in FIGURES], stage, MARGIN_PCT)


@pytest.mark.parametrize("stage", STAGES)
def test_all_kept_goes_on_and_one_broken_goes_back(stage: int) -> None:
    assert decided(stage) is Decision.PROMOTE
    for figure in FIGURES:
        assert decided(stage, **{figure: BAD}) is Decision.ROLLBACK
        assert decided(stage, **dict.fromkeys(FIGURES, UNDECIDED) | {figure: BAD}) is Decision.ROLLBACK


@pytest.mark.parametrize(
    ("stage", "figure", "decision"),
    [
        (5, "full_p95_ms", Decision.PROMOTE),
        (5, "ttfb_p95_ms", Decision.PROMOTE),
        (5, "rps", Decision.PROMOTE),
        (5, "events_per_s", Decision.PROMOTE),
        (5, ERRORS, Decision.HOLD),
        (20, "full_p95_ms", Decision.PROMOTE),
        (20, "ttfb_p95_ms", Decision.PROMOTE),
        (20, "rps", Decision.HOLD),
        (20, ERRORS, Decision.HOLD),
        *((stage, figure, Decision.HOLD) for stage in (50, 100) for figure in FIGURES),
    ],
)
def test_what_may_stay_undecided(stage: int, figure: str, decision: Decision) -> None:
    assert decide([finding("x", GOOD), finding(figure, UNDECIDED)], stage, MARGIN_PCT) is decision
    assert (
        decide([finding("x", GOOD), finding(figure, UNDECIDED, leans_good=False)], stage, MARGIN_PCT)
        is Decision.HOLD
    )


@pytest.mark.parametrize(("margin_pct", "decision"), [(20, Decision.PROMOTE), (19, Decision.HOLD)])
def test_what_scatters_beyond_the_margin_is_held_at_every_stage(margin_pct: float, decision: Decision) -> None:
    assert decide([finding("rps", UNDECIDED)], 5, margin_pct) is decision


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_found_promotes_nothing(stage: int) -> None:
    assert decide([], stage, MARGIN_PCT) is Decision.HOLD


@given(
    st.sampled_from(STAGES),
    st.lists(st.tuples(st.sampled_from(FIGURES), st.permutations(RANK), st.booleans()), min_size=1, max_size=5),
)
def test_better_findings_never_decide_worse(stage: int, drawn: list[tuple[str, list[Verdict], bool]]) -> None:
    pairs = []
    for figure, verdicts, leans in drawn:
        two = sorted(verdicts[:2], key=RANK.index)
        pairs.append([finding(figure, verdict, leans_good=leans) for verdict in two])
    worse, better = (decide(side, stage, MARGIN_PCT) for side in zip(*pairs, strict=True))
    assert ORDER.index(worse) <= ORDER.index(better)


shares = st.lists(st.tuples(st.floats(0.7, 1.4), st.floats(0.7, 1)), min_size=3, max_size=5)


@given(st.sampled_from(STAGES), shares, st.sampled_from([-20.0, -5.0, 0.0, 10.0]), st.floats(0, 0.05))
@settings(max_examples=60, deadline=None)
def test_a_better_build_is_never_decided_on_worse(
    stage: int, drawn: list[tuple[float, float]], improve_pct: float, error_rate_max: float
) -> None:
    bounds = Limits(improve_pct, 5, error_rate_max).bounds("latency")
    before = _results([1.0, 0.98, 1.03])
    after = [_results([one for one, _ in drawn]), _results([one * gain for one, gain in drawn])]
    worse, better = (decide(judge(before, one, "gateway", bounds), stage, MARGIN_PCT) for one in after)
    assert ORDER.index(worse) <= ORDER.index(better)


def _results(factors: list[float]) -> Results:
    """Rounds that are slower, fewer and worse by the factors."""
    rounds = [
        {
            "full_p95_ms": 40 * one,
            "ttfb_p95_ms": 30 * one,
            "rps": 500 / one,
            "error_pct": max(0.0, one - 1),
            "requests": 1000,
        }
        for one in factors
    ]
    return Results("a.json", "latency", {}, {}, {"gateway": rounds})


def test_a_later_stage_is_never_laxer() -> None:
    for verdicts in itertools.product(RANK, repeat=len(FIGURES)):
        given_ = dict(zip(FIGURES, verdicts, strict=True))
        ranks = [ORDER.index(decided(stage, **given_)) for stage in sorted(STAGES)]
        assert ranks == sorted(ranks, reverse=True)


def test_limits_are_bounds_on_four_figures() -> None:
    bounds = {one.figure: one for one in Limits(-5, 10, 0.01).bounds("latency")}
    limits = {name: one.limit for name, one in bounds.items()}
    assert limits == pytest.approx({"full_p95_ms": 1.05, "ttfb_p95_ms": 1.05, "rps": 0.9, "error_pct": 0.01})
    assert [name for name, one in bounds.items() if one.relation == ">="] == ["rps"]
    assert "events_per_s" in {one.figure for one in Limits(0, 0, 0).bounds("streaming")}


def test_the_table_that_is_shown_is_the_one_that_is_explained_and_true() -> None:
    shown = [line.split() for line in RULE.splitlines()]
    explained = [line.split() for line in (rollout.__doc__ or "").splitlines()]
    assert all(line in explained for line in shown)
    for line in RULE.splitlines()[1:]:
        stages, rest = line.split(" %")
        words = rest.split()
        for stage in (int(text) for text in stages.split(",")):
            for figure, word in zip(("full_p95_ms", "rps", ERRORS), words, strict=True):
                promoted = decided(stage, **{figure: UNDECIDED}) is Decision.PROMOTE
                assert word == ("yes" if promoted else "no")
