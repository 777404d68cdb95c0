"""observe/histogram: many values at once are as one by one (B41).

Runs on: worker.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.observe.histogram import Histogram


def _kept(histogram: Histogram) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, round(sample.value, 6))
        for metric in histogram.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]


def _made() -> Histogram:
    return Histogram("h", "-", ["l"], buckets=(0.5, 1, 10), registry=None)


@given(st.lists(st.floats(0.0, 12.0) | st.sampled_from([0.5, 1.0, 10.0]), max_size=30))
def test_b41_many_values_at_once_are_observed_as_one_by_one(values: list[float]) -> None:
    """Ours reaches into prometheus_client: its own way is the measure."""
    one, many, milli = _made(), _made(), _made()
    child = one.labels("x")
    for observed in values:
        child.observe(observed)
    many.labels("x").observe_all(values)
    milli.labels("x").observe_all([value * 1000.0 for value in values], 1000.0)
    assert _kept(one) == _kept(many) == _kept(milli)
    assert len(_kept(one)) == 6


def test_b41_what_is_sorted_already_goes_into_its_buckets() -> None:
    one, sorted_already = _made(), _made()
    for observed in (0.1, 0.2, 0.7, 11.0, 12.0, 13.0):
        one.labels("x").observe(observed)
    sorted_already.labels("x").add((2, 1, 0, 1, 1, 1), 37.0)  # beyond the last bound: larger than all
    assert _kept(one) == _kept(sorted_already)
