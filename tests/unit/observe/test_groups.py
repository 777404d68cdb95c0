"""observe/groups: Records that agree in all labels are counted together, each once, none of their failures missed.

Runs on: worker.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.exchange import Attempt, Record
from app.observe.failures import failure_of
from app.observe.groups import Gathered, Sort, Sorted, failures, sorts

GOOD = Record("r", "messages", "POST", "/", 200, "", attempts=(Attempt("200", 1.0),))
OUTCOMES = st.sampled_from(["200", "201", "404", "429", "500", "529", "overloaded_error", "connect_failed"])


def records() -> st.SearchStrategy[list[Record]]:
    made = st.builds(
        lambda route, status, slug, outcomes, event, key, left: GOOD._replace(
            route=route,
            status=status,
            slug=slug,
            attempts=tuple(Attempt(outcome, 1.0) for outcome in outcomes),
            stream_error=event,
            credential=key,
            client_left=left,
        ),
        st.sampled_from(["messages", "models"]),
        st.sampled_from([200, 404, 499, 529]),
        st.sampled_from(["", "queue_full", "client_gone", "invalid_request", "internal"]),
        st.lists(OUTCOMES, max_size=2),
        st.sampled_from(["", "overloaded_error", "api_error"]),
        st.sampled_from(["", "key-1"]),
        st.booleans(),
    )
    return st.lists(made, max_size=20)


@given(records())
def test_b44_sort_by_sort_as_many_fail_as_one_by_one(given_: list[Record]) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for sort, group in sorts(given_).items():
        for kind, count in failures(sort, group).items():
            found[sort.route, kind] += count
    one_by_one = Counter((record.route, failure_of(record)) for record in given_)
    assert found == {key: count for key, count in one_by_one.items() if key[1]}


@given(records())
def test_every_record_is_in_its_sort_and_in_order(given_: list[Record]) -> None:
    numbered = [record._replace(request_id=str(number)) for number, record in enumerate(given_)]
    found = sorts(numbered)
    for sort, group in found.items():
        for record in group:
            assert sort == Sort(*[getattr(record, name) for name in Sort._fields])
        ids = [int(record.request_id) for record in group]
        assert ids == sorted(ids)
    assert sum(map(len, found.values())) == len(given_)


def test_an_overload_within_a_200_is_a_failure() -> None:
    """Passed on compressed, it is seen in the last try only."""
    overloaded = GOOD._replace(attempts=(Attempt("200", 1.0), Attempt("overloaded_error", 1.0)))
    ((sort, group),) = sorts([GOOD, overloaded]).items()
    assert dict(failures(sort, group)) == {"upstream_529": 1}


def test_all_who_count_are_shown_the_same_once() -> None:
    seen: list[Sorted] = []
    gathered = Gathered((seen.append, seen.append))
    gathered.flush()
    gathered.observe([GOOD, GOOD])
    gathered.observe([GOOD._replace(route="models")])
    gathered.flush()
    gathered.flush()
    one, other = seen
    assert one is other
    assert [(sort.route, len(group)) for sort, group in one.items()] == [("messages", 2), ("models", 1)]


def test_nothing_is_counted_twice() -> None:
    counted: list[int] = []

    def count(found: Sorted) -> None:
        counted.append(sum(map(len, found.values())))

    gathered = Gathered((count,))
    for _ in range(400):
        gathered.observe([GOOD])
    threads = [threading.Thread(target=gathered.flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 400


def test_a_child_counts_nothing_that_is_its_parents() -> None:
    counted: list[Sorted] = []
    gathered = Gathered((counted.append,))
    gathered.observe([GOOD])
    pid = os.fork()
    if pid == 0:
        gathered.flush()
        os._exit(1 if counted else 0)
    assert os.waitpid(pid, 0)[1] == 0
    gathered.flush()
    assert len(counted) == 1


def test_a_sort_has_all_that_is_a_label() -> None:
    changed: dict[str, Any] = {
        "route": "models",
        "model": "m",
        "status": 201,
        "slug": "s",
        "provider": "p",
        "stream_error": "e",
        "client_left": True,
        "fallback": True,
    }
    assert changed.keys() == set(Sort._fields)
    assert len(sorts([GOOD, *(GOOD._replace(**{name: value}) for name, value in changed.items())])) == 9
