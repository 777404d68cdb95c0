"""A bound is kept for certain, broken for certain or neither, and a better build is never judged worse."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bench.gates import (
    Bound,
    Claim,
    Finding,
    Verdict,
    claimed,
    improved,
    judge,
    not_dropped,
    rate_interval,
    ratio_interval,
)
from app.bench.results import Results, ResultsError

RANK = [Verdict.BAD, Verdict.UNDECIDED, Verdict.GOOD]
CLAIMS = [Claim.MISSED, Claim.UNDECIDED, Claim.MET]
figures = st.lists(st.floats(0.1, 1000), min_size=3, max_size=9)
relations = st.sampled_from(["<=", ">="])
limits = st.floats(0.2, 5)


def results(bench: str = "latency", **series: Sequence[Any]) -> Results:
    """Rounds of one variant, from a list for each figure."""
    count = len(next(iter(series.values())))
    rounds = [{name: values[index] for name, values in series.items()} for index in range(count)]
    return Results(f"{bench}.json", bench, {}, {}, {"gateway": rounds})


def one(bound: Bound, before: Results, after: Results) -> Finding:
    (found,) = judge(before, after, "gateway", [bound])
    return found


def ratio(bound: Bound, before: Sequence[float], after: Sequence[float]) -> Finding:
    return one(bound, results(x=before), results(x=after))


def errors(limit: float, percents: Sequence[float], requests: int = 5000) -> Finding:
    after = results(error_pct=percents, requests=[requests / len(percents)] * len(percents))
    return one(Bound("error_pct", "<=", limit), results(error_pct=[0.0] * 3), after)


@pytest.mark.parametrize(
    ("relation", "limit", "after", "verdict"),
    [
        ("<=", 1.0, [9, 8, 9], Verdict.GOOD),
        ("<=", 1.0, [10, 10, 10], Verdict.GOOD),  # equal and without scatter: the limit itself is good
        ("<=", 1.0, [9, 11, 10], Verdict.UNDECIDED),
        ("<=", 1.0, [12, 11, 13], Verdict.BAD),
        ("<=", 1.05, [10.5, 10.5, 10.5], Verdict.GOOD),
        ("<=", 0.9, [9.5, 9.4, 9.6], Verdict.BAD),
        ("<=", 0.9, [8.5, 8.4, 8.6], Verdict.GOOD),
        (">=", 0.95, [9.5, 9.5, 9.5], Verdict.GOOD),
        (">=", 0.95, [9.4, 9.4, 9.4], Verdict.BAD),
        (">=", 0.95, [9.4, 9.6, 9.5], Verdict.UNDECIDED),
    ],
)
def test_a_bound_on_a_ratio(
    relation: Literal["<=", ">="], limit: float, after: list[float], verdict: Verdict
) -> None:
    found = ratio(Bound("x", relation, limit), [10.0, 10.0, 10.0], after)
    assert found.verdict is verdict
    assert found.value == pytest.approx(statistics.median(after) / 10)
    assert found.before == pytest.approx(10.0)
    assert found.after == pytest.approx(statistics.median(after))
    assert bool(found.settle) is (verdict is Verdict.UNDECIDED)


def test_a_file_compared_with_itself_is_not_certain() -> None:
    low, high = ratio_interval([10, 11, 12, 13, 14], [10, 11, 12, 13, 14])
    assert low < 0.95
    assert high > 1.05
    assert ratio(improved("x", 0), [10, 11, 12, 13, 14], [10, 11, 12, 13, 14]).verdict is Verdict.UNDECIDED


def test_three_rounds_give_their_whole_range() -> None:
    assert ratio_interval([10, 20, 15], [30, 60, 40]) == pytest.approx((30 / 20, 60 / 10))


def test_an_even_number_of_rounds_has_the_median_between_two() -> None:
    found = ratio(improved("x", 0), [10.0] * 4, [8.0, 9.0, 11.0, 12.0])
    assert found.after == pytest.approx(10.0)
    assert found.interval == pytest.approx((0.8, 1.2))


def test_more_rounds_settle_what_few_do_not() -> None:
    few, many = [9.0, 10.4, 9.5], [9.0, 10.4, 9.5, 9.3, 9.6] * 6
    assert ratio(improved("x", 0), [10.0, 10.1, 9.9], few).verdict is Verdict.UNDECIDED
    assert ratio(improved("x", 0), [10.0, 10.1, 9.9] * 10, many).verdict is Verdict.GOOD


@given(figures, figures, st.floats(0.01, 100), relations, limits)
@settings(max_examples=60, deadline=None)
def test_scaling_both_sides_changes_nothing(
    before: list[float], after: list[float], factor: float, relation: Literal["<=", ">="], limit: float
) -> None:
    bound = Bound("x", relation, limit)
    found = ratio(bound, before, after)
    scaled = ratio(bound, [factor * value for value in before], [factor * value for value in after])
    assert scaled.interval == pytest.approx(found.interval)
    near = any(abs(end - limit) < 1e-6 for end in found.interval)
    assert scaled.verdict is found.verdict or near


@given(figures, st.lists(st.tuples(st.floats(0.1, 1000), st.floats(0.1, 1)), min_size=3, max_size=9), limits)
@settings(max_examples=60, deadline=None)
def test_a_better_build_is_never_judged_worse(
    before: list[float], after: list[tuple[float, float]], limit: float
) -> None:
    was = [value for value, _ in after]
    lower, higher = [value * share for value, share in after], [value / share for value, share in after]
    for bound, better in ((Bound("x", "<=", limit), lower), (Bound("x", ">=", limit), higher)):
        verdicts = [RANK.index(ratio(bound, before, one).verdict) for one in (was, better)]
        assert verdicts[0] <= verdicts[1]


@given(figures, figures, relations, limits)
@settings(max_examples=60, deadline=None)
def test_the_order_of_rounds_does_not_matter_and_the_interval_holds_the_value(
    before: list[float], after: list[float], relation: Literal["<=", ">="], limit: float
) -> None:
    bound = Bound("x", relation, limit)
    found = ratio(bound, before, after)
    turned = ratio(bound, before[::-1], sorted(after))
    assert (turned.interval, turned.verdict) == (found.interval, found.verdict)
    low, high = found.interval
    assert low * (1 - 1e-9) <= found.value <= high * (1 + 1e-9)
    assert low >= min(after) / max(before) * (1 - 1e-9)
    assert high <= max(after) / min(before) * (1 + 1e-9)


@given(figures, figures, limits, st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_asking_for_less_is_never_judged_worse(
    before: list[float], after: list[float], limit: float, more: float
) -> None:
    verdicts = [RANK.index(ratio(Bound("x", "<=", one), before, after).verdict) for one in (limit, limit + more)]
    assert verdicts[0] <= verdicts[1]


@pytest.mark.parametrize(
    ("limit", "percents", "verdict"),
    [
        (0.01, [0, 0, 0], Verdict.GOOD),
        (0.01, [0.5, 0.4, 0.6], Verdict.GOOD),
        (0.01, [1.0, 1.0, 1.0], Verdict.GOOD),
        (0.01, [0.5, 0.4, 2.6], Verdict.UNDECIDED),
        (0.01, [0, 0, 50], Verdict.UNDECIDED),  # a median would have missed it
        (0.01, [2, 3, 4], Verdict.BAD),
        (0.0, [0, 0, 0], Verdict.GOOD),
        (0.0, [0, 0.02, 0], Verdict.BAD),
    ],
)
def test_a_bound_on_errors_is_a_share_and_of_after_alone(
    limit: float, percents: list[float], verdict: Verdict
) -> None:
    found = errors(limit, percents)
    assert found.verdict is verdict
    assert found.value == pytest.approx(statistics.fmean(percents) / 100)
    assert found.row()["measure"] == "rate"


def test_no_error_in_few_requests_shows_little() -> None:
    found = errors(0.001, [0, 0, 0], requests=1500)
    assert found.verdict is Verdict.UNDECIDED
    assert found.leans_good
    assert found.interval == pytest.approx((0.0, 0.002))
    assert found.settle == "1,500 requests without an error are too few, 3,000 would settle it"
    assert errors(0.001, [0, 0, 0], requests=3000).verdict is Verdict.GOOD
    assert "3,000,000,000 would" in errors(5e-324, [0, 0, 0]).settle
    assert rate_interval([0, 0, 0], 1)[1] == pytest.approx(1.0)


def test_one_bad_round_of_five_widens_the_interval() -> None:
    low, high = rate_interval([0, 0, 0, 50, 0], 5000)
    assert low == pytest.approx(0)
    assert 0.2 <= high < 0.5  # the mean of resamples; their median would jump from none to all


def test_errors_before_do_not_excuse_those_after() -> None:
    rounds = results(error_pct=[5.0] * 3, requests=[1000] * 3)
    assert one(Bound("error_pct", "<=", 0.01), rounds, rounds).verdict is Verdict.BAD


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=3, max_size=9), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_fewer_errors_are_never_judged_worse(rounds: list[tuple[float, float]], limit: float) -> None:
    was, fewer = [percent for percent, _ in rounds], [percent * share for percent, share in rounds]
    verdicts = [RANK.index(errors(limit, percents).verdict) for percents in (was, fewer)]
    assert verdicts[0] <= verdicts[1]


def test_what_would_settle_it() -> None:
    near = ratio(improved("x", 0), [10.0, 10.0, 10.0], [8.0, 9.0, 11.0])
    assert near.settle == "about 12 rounds a side would settle it"  # from 0.9, 1.1 reaches twice as far as 1
    nearer = ratio(improved("x", 0), [10.0, 10.0, 10.0], [8.0, 9.99, 11.0])
    assert "for 100 rounds" in nearer.settle
    assert "for 100 rounds" in ratio(improved("x", 0), [10.0, 10.0, 10.0], [8.0, 10.0, 11.0]).settle
    worse = ratio(improved("x", 0), [10.0, 10.0, 10.0], [9.9, 12.0, 12.0])
    assert worse.settle == "about 4 rounds a side would settle it"  # at least one more than there are


def test_percentages_as_bounds() -> None:
    assert improved("x", 0).limit == pytest.approx(1)
    assert improved("x", 10).limit == pytest.approx(0.9)
    assert improved("x", -5).limit == pytest.approx(1.05)
    assert (not_dropped("latency", 5).figure, not_dropped("latency", 5).relation) == ("rps", ">=")
    assert not_dropped("latency", 5).limit == pytest.approx(0.95)


def test_streams_have_figures_of_their_own() -> None:
    assert not_dropped("streaming", 5).figure == "events_per_s"
    rounds = results("streaming", error_pct=[0.0] * 3, streams=[1000] * 3)
    (found,) = judge(rounds, rounds, "gateway", [Bound("error_pct", "<=", 0.01)])
    assert found.verdict is Verdict.GOOD


def test_all_that_is_missing_is_named() -> None:
    before = results(x=[1.0, 1.0, 1.0], y=[1.0, 1.0, 1.0])
    after = results(x=[1.0, None, 1.0], error_pct=[0.0] * 3)
    with pytest.raises(ResultsError) as caught:
        judge(before, after, "gateway", [Bound(name, "<=", 1) for name in ("x", "y", "error_pct")])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, figure in zip(lines, ("x of round 2", "y of round 1", "error_pct of round 1"), strict=True):
        assert f"gateway.{figure}" in line


def test_errors_without_the_number_of_requests_say_nothing() -> None:
    rounds = results(error_pct=[0.0] * 3)
    with pytest.raises(ResultsError, match=r"gateway\.requests of round 1 of 3 is missing"):
        judge(rounds, rounds, "gateway", [Bound("error_pct", "<=", 0.01)])


@pytest.mark.parametrize(
    ("limit", "after", "verdict", "claim", "strictly"),
    [
        (1.0, [9, 11, 10], Verdict.UNDECIDED, Claim.MET, Claim.UNDECIDED),
        (1.05, [9, 11, 10], Verdict.UNDECIDED, Claim.MET, Claim.UNDECIDED),
        (1.0, [9, 12.5, 10], Verdict.UNDECIDED, Claim.MET, Claim.UNDECIDED),
        (1.0, [9, 12.6, 10], Verdict.UNDECIDED, Claim.UNDECIDED, Claim.UNDECIDED),
        (1.05, [9, 12.6, 10], Verdict.UNDECIDED, Claim.MET, Claim.UNDECIDED),
        (0.9, [8, 9.5, 8.5], Verdict.UNDECIDED, Claim.MISSED, Claim.MISSED),
        (1.0, [9, 9, 9], Verdict.GOOD, Claim.MET, Claim.MET),
        (0.9, [9, 9, 9], Verdict.GOOD, Claim.MET, Claim.MET),
        (1.0, [11, 12, 12], Verdict.BAD, Claim.MISSED, Claim.MISSED),
        (1.05, [11, 12, 12], Verdict.BAD, Claim.MISSED, Claim.MISSED),
    ],
)
def test_worse_has_to_be_shown_and_so_has_a_gain(
    limit: float, after: list[float], verdict: Verdict, claim: Claim, strictly: Claim
) -> None:
    found = ratio(Bound("x", "<=", limit), [10.0, 10.0, 10.0], after)
    assert found.verdict is verdict
    assert claimed([found], 25) is claim
    assert claimed([found], 0) is strictly


def test_the_worst_claim_counts() -> None:
    good, wide, bad = (
        ratio(improved("x", 0), [10.0, 10.0, 10.0], after) for after in ([9.0] * 3, [9, 20, 10], [11.0] * 3)
    )
    assert claimed([good, good], 25) is Claim.MET
    assert claimed([good, wide], 25) is claimed([wide, good], 25) is Claim.UNDECIDED
    assert claimed([wide, bad, good], 25) is Claim.MISSED


@given(figures, st.lists(st.tuples(st.floats(0.1, 1000), st.floats(0.1, 1)), min_size=3, max_size=9), limits)
@settings(max_examples=60, deadline=None)
def test_a_better_build_has_no_worse_claim(
    before: list[float], after: list[tuple[float, float]], limit: float
) -> None:
    sides = [value for value, _ in after], [value * share for value, share in after]
    ranks = [CLAIMS.index(claimed([ratio(Bound("x", "<=", limit), before, side)], 25)) for side in sides]
    assert ranks[0] <= ranks[1]


@pytest.mark.parametrize(
    ("relation", "after", "margin_pct", "within"),
    [
        ("<=", [9, 11, 10], 10, True),
        ("<=", [9, 11, 10], 9, False),
        (">=", [9, 11, 10], 10, True),
        (">=", [9, 11, 10], 9, False),
    ],
)
def test_a_margin_loosens_a_bound_on_its_own_side(
    relation: Literal["<=", ">="], after: list[float], margin_pct: float, within: bool
) -> None:
    assert ratio(Bound("x", relation, 1.0), [10.0, 10.0, 10.0], after).within(margin_pct) is within


def test_a_finding_in_words_and_as_data() -> None:
    found = ratio(improved("x", 10), [10.0, 10.0, 10.0], [8.0, 8.5, 9.5])
    assert found.line() == (
        "x: undecided, 10 -> 8.5, that is 0.85 of before (0.8 to 0.95), asked is at most 0.9; "
        "about 12 rounds a side would settle it"
    )
    row = found.row()
    assert row == {
        "figure": "x",
        "measure": "ratio",
        "before": pytest.approx(10.0),
        "after": pytest.approx(8.5),
        "value": pytest.approx(0.85),
        "interval": [pytest.approx(0.8), pytest.approx(0.95)],
        "relation": "<=",
        "limit": pytest.approx(0.9),
        "verdict": "undecided",
        "settle": found.settle,
    }
    good = errors(0.01, [0, 0, 0])
    assert good.line() == (
        "error_pct: good, 0 -> 0, that is 0 of all requests (0 to 0.0006), asked is at most 0.01"
    )
