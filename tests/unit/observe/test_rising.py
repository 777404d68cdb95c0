"""observe/rising: what only rises is counted once, whoever looks and when (B41).

Runs on: worker.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import Counter

from app.observe.rising import Rising


class Source:
    """Whose figure it is."""


def _value(counter: Counter) -> float:
    return sum(
        sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")
    )


def test_b41_what_was_added_is_counted() -> None:
    counter = Counter("c", "-", ["l"], registry=None)
    rising, pool = Rising(counter), Source()
    for figure in (2, 2, 5):
        rising.take(pool, figure, "p")
    rising.take(pool, 3, "q")
    assert (_value(counter), counter.labels("p")._value.get()) == (8, 5)


def test_b41_a_figure_that_dips_adds_nothing_until_it_is_higher_than_ever() -> None:
    counter = Counter("c", "-", registry=None)
    rising, pool = Rising(counter), Source()
    for figure in (5, 4, 5, 6):
        rising.take(pool, figure)
    assert _value(counter) == 6


def test_b41_a_new_source_starts_at_nothing() -> None:
    """Also where its figure is higher than the old one's by the time it is looked at."""
    counter = Counter("c", "-", registry=None)
    rising, old, new = Rising(counter), Source(), Source()
    rising.take(old, 5)
    rising.take(new, 7)
    rising.take(old, 5)
    assert _value(counter) == 12
    del old
    gc.collect()
    assert len(rising._highest) == 1


def test_b41_what_is_not_known_is_shown_as_nothing_yet() -> None:
    counter = Counter("c", "-", ["l"], registry=None)
    Rising(counter).take(Source(), None, "p")
    assert _value(counter) == 0


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_b41_two_who_look_at_once_count_once() -> None:
    counter = Counter("c", "-", registry=None)
    rising, pool = Rising(counter), Source()
    start = threading.Barrier(4)

    def look() -> None:
        start.wait()
        for figure in range(1, 2001):
            rising.take(pool, figure)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _value(counter) == 2000
