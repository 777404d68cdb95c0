"""observe/cells: counts are right, quantiles within 1 %, names few, and what is written is read again (B44).

Pure.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exchange import Attempt, Record
from app.observe.cells import (
    ACCURACY,
    ENDPOINTS,
    LEVELS,
    SLOTS,
    Cell,
    Gathering,
    Rings,
    Series,
    Tracked,
    bins,
    decode,
    encode,
)
from app.observe.groups import sorts

PLAIN = Record("r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("200", 1.0),), gateway_ms=2.0)
times = st.lists(st.floats(0.001, 1e7), min_size=1, max_size=200)


def exact(values: Sequence[float], quantile: float) -> tuple[float, float]:
    """The values around that rank."""
    ordered, rank = sorted(values), quantile * (len(values) - 1)
    return ordered[int(rank)], ordered[min(int(rank) + 1, len(ordered) - 1)]


def content(cell: Cell) -> object:
    return [
        {name: (one.requests, one.failures, dict(one.bins)) for name, one in part.items()}
        for part in (cell.exchanges, cell.tracked)
    ]


@given(times, st.floats(0, 1))
def test_b44_quantiles_are_within_one_percent(values: list[float], quantile: float) -> None:
    (found,) = Series(len(values), {}, bins(values)).quantiles(quantile)
    low, high = exact(values, quantile)
    assert found is not None
    assert low * (1 - ACCURACY) * 0.999999 <= found <= high * (1 + ACCURACY) * 1.000001


@given(times, times)
def test_b44_adding_series_is_the_same_as_adding_values(first: list[float], second: list[float]) -> None:
    one, two = Series(len(first), {"a": 1}, bins(first)), Series(len(second), {"a": 2, "b": 1}, bins(second))
    one.add(two)
    assert (one.requests, one.failures, one.failed) == (len(first) + len(second), {"a": 3, "b": 1}, 4)
    assert one.bins == bins([*first, *second])


def test_b44_nothing_known_has_no_quantile() -> None:
    assert Series(3).quantiles(0.5, 0.99) == [None, None]


@pytest.mark.parametrize(("ms", "about"), [(0.0, 0.001), (-1.0, 0.001), (1e300, 1e8)])
def test_b44_what_is_out_of_range_counts_as_its_bound(ms: float, about: float) -> None:
    (found,) = Series(1, {}, bins([ms])).quantiles(0.5)
    assert found == pytest.approx(about, rel=0.01)


def test_b44_a_batch_is_counted_by_endpoint_and_type() -> None:
    records = [
        PLAIN,
        PLAIN._replace(gateway_ms=4.0),
        PLAIN._replace(attempts=(Attempt("500", 1.0), Attempt("529", 1.0)), status=529),
        PLAIN._replace(attempts=(), gateway_ms=None, status=503, slug="queue_full"),
        PLAIN._replace(gateway_ms=None, stream_error="overloaded_error"),
        PLAIN._replace(gateway_ms=None, stream_error="api_error", client_left=True),
        PLAIN._replace(route="models", attempts=(Attempt("401", 1.0),), status=401),
        PLAIN._replace(route="models", attempts=(Attempt("401", 1.0),), status=401, credential="k"),
        PLAIN._replace(route="models", client_left=True, slug="stream_broken"),
    ]
    cell = Gathering().cell([sorts(records)], [Tracked("report", 9.0, ""), Tracked("report", 9.0, "ValueError")])
    messages, models, report = cell.exchanges["messages"], cell.exchanges["models"], cell.tracked["report"]
    assert (messages.requests, messages.failures) == (
        6,
        {"upstream_529": 2, "queue_full": 1, "upstream_error_event": 1},
    )
    assert messages.bins == bins([2.0, 4.0, 2.0])
    assert (models.requests, models.failures) == (3, {"upstream_auth": 1})
    assert (report.requests, report.failures, report.bins) == (2, {"ValueError": 1}, bins([9.0, 9.0]))
    assert (set(cell.exchanges), set(cell.tracked)) == ({"messages", "models"}, {"report"})


def test_b44_names_are_few_and_the_counts_all_there() -> None:
    gathering = Gathering()
    cell = gathering.cell([sorts(PLAIN._replace(route=f"r{number}", slug=f"s{number}") for number in range(100))])
    cell.add(gathering.cell([], [Tracked(f"t{number}", 1.0, "") for number in range(100)]))
    for part in (cell.exchanges, cell.tracked):
        assert len(part) == ENDPOINTS + 1
        assert sum(one.requests for one in part.values()) == 100
        assert part["other"].requests == 100 - ENDPOINTS
    assert sum(one.failed for one in cell.exchanges.values()) == 100


def test_b44_every_window_has_a_ring_of_twice_its_length() -> None:
    assert [(one.name, one.window_s) for one in LEVELS] == [("10s", 10), ("1m", 60), ("5m", 300), ("1h", 3600)]
    slots = []
    for level in LEVELS:
        assert level.cells * level.cell_s == 2 * level.window_s
        slots += sorted({level.slot(tick) for tick in range(1000, 1000 + level.cells)})
    assert slots == list(range(SLOTS))


def test_b44_a_batch_goes_into_the_newest_cell_of_every_ring() -> None:
    rings = Rings()
    one = Gathering().cell([sorts([PLAIN])])
    rings.add(one, 1000.0)
    first = rings.take_changed()
    assert len(first) == len(LEVELS)
    assert rings.take_changed() == []
    rings.add(one, 1001.0)
    assert len(rings.take_changed()) == len(LEVELS)
    assert [rings.cells[level.slot(level.tick(1001.0))][1].exchanges["messages"].requests for level in LEVELS] == [
        1,
        2,
        2,
        2,
    ]
    rings.add(one, 1020.0)  # the ring of seconds is round: the cell of 1000 gives way
    tick, cell = rings.cells[LEVELS[0].slot(1020)]
    assert (tick, cell.exchanges["messages"].requests) == (1020, 1)
    assert one.exchanges["messages"].requests == 1


@given(st.dictionaries(st.text("abcé", max_size=5), st.tuples(st.integers(0, 10**9), times), max_size=5))
def test_b44_what_is_written_is_read_again(series: dict[str, tuple[int, list[float]]]) -> None:
    cell = Cell()
    for name, (requests, values) in series.items():
        cell.exchanges[name] = cell.tracked[name + "!"] = Series(requests, {"e": requests}, bins(values))
    found = decode(encode(77, cell, 1 << 20))
    assert found is not None
    assert (found[0], content(found[1])) == (77, content(cell))


@pytest.mark.parametrize("limit", [1500, 600, 200])
def test_b44_a_cell_that_does_not_fit_gets_coarser_and_keeps_its_counts(limit: int) -> None:
    cell = Cell()
    for name in range(10):
        all_ms = [0.01 * 1.03**step for step in range(0, 600)]
        cell.exchanges[f"endpoint-{name}"] = Series(600, {f"type-{name}": 6}, bins(all_ms))
    made = encode(5, cell, limit)
    assert len(made) <= limit
    found = decode(made)
    assert found is not None
    whole = Series()
    for series in found[1].exchanges.values():
        whole.add(series)
    assert (found[0], whole.requests, whole.failed, sum(whole.bins.values())) == (5, 6000, 60, 6000)
    if limit == 1500:
        assert whole.quantiles(0.5)[0] == pytest.approx(0.01 * 1.03**300, rel=0.5)


def test_b44_where_the_names_alone_do_not_fit_they_become_one() -> None:
    cell = Cell()
    for number in range(25):
        name = hashlib.sha512(bytes([number])).hexdigest()[:100]
        cell.exchanges[name] = Series(10, {name[::-1]: 2}, bins([float(number + 1)] * 10))
        cell.tracked[name] = Series(3, {}, {})
    found = decode(encode(5, cell, 2040))
    assert found is not None
    exchanges, tracked = found[1].exchanges, found[1].tracked
    assert (set(exchanges), set(tracked)) == ({"other"}, {"other"})
    assert (exchanges["other"].requests, exchanges["other"].failures) == (250, {"other": 50})
    assert (tracked["other"].requests, tracked["other"].failures) == (75, {})
    assert exchanges["other"].quantiles(0.5)[0] == pytest.approx(13, rel=0.01)


def test_b44_a_cell_of_another_version_is_left_alone() -> None:
    assert decode(zlib.compress(orjson.dumps([2, "who", "knows"]))) is None
