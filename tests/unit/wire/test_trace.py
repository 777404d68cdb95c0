"""Tests of app/wire/trace.py, by the examples of W3C Trace Context and by properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire import trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"

ids = st.integers(1, 2**128 - 1)


def numbered(*values: int) -> Callable[[int], int]:
    """Random bits that were known before."""
    left: Iterator[int] = iter(values)
    return lambda size: next(left)


def test_a_traceparent_is_read() -> None:
    assert trace.parse(GOOD) == trace.Parent(TRACE, SPAN, trace.SAMPLED)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"0A-{TRACE}-{SPAN}-01",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD},{GOOD}",
        f"{GOOD}-",
        f"{GOOD}-00",
        f"{GOOD}0",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0X",
        f"00-{TRACE}-{SPAN}",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE[:-1]}é-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
        f"cc-{TRACE}-{SPAN}-0",
    ],
)
def test_what_is_not_one_is_refused(value: str) -> None:
    assert trace.parse(value) is None


@pytest.mark.parametrize("more", ["", "-", "-what-the-future-will-be-like"])
def test_later_versions_are_read_as_far_as_they_are_known(more: str) -> None:
    assert trace.parse(f"cc-{TRACE}-{SPAN}-03{more}") == trace.Parent(TRACE, SPAN, trace.SAMPLED)


@pytest.mark.parametrize(("flags", "known"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0)])
def test_flags_that_mean_nothing_yet_are_left_out(flags: str, known: int) -> None:
    assert trace.parse(f"00-{TRACE}-{SPAN}-{flags}") == trace.Parent(TRACE, SPAN, known)


@given(ids, st.integers(1, 2**64 - 1), st.integers(0, 3))
def test_what_is_written_is_read_again(trace_id: int, span_id: int, flags: int) -> None:
    parent = trace.Parent(f"{trace_id:032x}", f"{span_id:016x}", flags)
    assert trace.parse(str(parent)) == parent


@given(
    st.one_of(
        st.text(max_size=80), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{30,34}-[0-9a-f]{15,17}-..", fullmatch=True)
    )
)
def test_nothing_else_is_ever_taken_for_one(value: str) -> None:
    found = trace.parse(value)
    if found is not None:
        assert value[3:35] == found.trace_id
        assert value[36:52] == found.span_id
        assert int(found.trace_id, 16)
        assert int(found.span_id, 16)
        assert value[:2] != "ff"
        assert len(value) == 55 or (value[:2] != "00" and value[55] == "-")


def test_a_child_keeps_trace_and_flags_and_has_an_id_of_its_own() -> None:
    found = trace.begin((("Host", "x"), ("TraceParent", GOOD)), numbered(0xAB))
    assert found == trace.Trace(f"00-{TRACE}-00000000000000ab-01", GOOD)


@given(st.integers(0, 3), st.integers(1, 2**64 - 1))
def test_a_child_is_a_valid_parent(flags: int, own_id: int) -> None:
    given_value = f"00-{TRACE}-{SPAN}-{flags:02x}"
    own = trace.parse(trace.begin([("traceparent", given_value)], numbered(own_id)).own)
    assert own is not None
    assert (own.trace_id, own.flags) == (TRACE, flags)


@pytest.mark.parametrize(
    "headers", [(), (("traceparent", "nonsense"),), (("traceparent", GOOD), ("Traceparent", GOOD))]
)
def test_without_one_valid_parent_a_trace_begins(headers: tuple[tuple[str, str], ...]) -> None:
    assert trace.begin(headers, numbered(1, 2)) == trace.Trace(f"00-{2:032x}-{1:016x}-02", "")


def test_no_id_is_ever_all_zero() -> None:
    assert trace.begin((), numbered(0, 0, 1, 0, 2)) == trace.Trace(f"00-{2:032x}-{1:016x}-02", "")


def test_our_own_goes_on_in_place_of_the_callers() -> None:
    pairs = [("a", "1"), ("traceparent", GOOD), ("tracestate", "x=1"), ("b", "2")]
    own = trace.begin(pairs, numbered(7))
    passed = trace.handed_on(pairs, own)
    assert passed == [("a", "1"), ("traceparent", own.own), ("tracestate", "x=1"), ("b", "2")]


@pytest.mark.parametrize("pairs", [[("a", "1")], [("traceparent", "nonsense")], [("traceparent", GOOD)] * 2])
def test_nothing_is_injected_or_mended(pairs: list[tuple[str, str]]) -> None:
    assert trace.handed_on(pairs, trace.begin(pairs, numbered(1, 2))) == pairs
