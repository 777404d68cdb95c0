"""observe/log_line: what a line holds, how severe an exchange is, when it was.

Pure.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.exchange import Attempt, Record
from app.observe.failures import failure_of
from app.observe.log_line import ERROR, INFO, WARNING, Clock, fields, level_of, line, lines, told

RECORD = Record("r", "messages", "POST", "/v1/messages", 200, "")
SLUGS = {
    one.slug: one.status
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, errors.GatewayError)
}


@pytest.mark.parametrize(
    ("status", "slug", "level"),
    [
        (200, "", INFO),
        (400, "", INFO),
        (404, "unknown_route", INFO),
        (408, "body_timeout", INFO),
        (499, "client_gone", INFO),
        (200, "client_gone", INFO),
        (429, "", WARNING),
        (429, "caller_limited", WARNING),
        (500, "", WARNING),
        (529, "", WARNING),
        (503, "queue_full", WARNING),
        (503, "queue_timeout", WARNING),
        (503, "breaker_open", WARNING),
        (503, "no_credential", WARNING),
        (503, "draining", WARNING),
        (502, "connect_failed", WARNING),
        (502, "protocol_broken", WARNING),
        (504, "deadline_passed", WARNING),
        (200, "stream_broken", WARNING),
        (200, "deadline_passed", WARNING),
        (500, "internal", ERROR),
        (200, "internal", ERROR),
    ],
)
def test_b40_how_severe_an_exchange_is(status: int, slug: str, level: int) -> None:
    tries = () if slug in SLUGS else (Attempt(str(status), 1.0),)
    assert level_of(RECORD._replace(status=status, slug=slug, attempts=tries)) == level


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, INFO),
        ({"stream_error": "api_error"}, WARNING),
        ({"stream_error": "overloaded_error", "slug": "client_gone", "client_left": True}, WARNING),
        ({"stream_error": "api_error", "slug": "internal"}, ERROR),
        ({"attempts": (Attempt("200", 1.0), Attempt("overloaded_error", 1.0))}, WARNING),
        ({"attempts": (Attempt("overloaded_error", 1.0), Attempt("200", 1.0))}, INFO),
        ({"attempts": (Attempt("403", 1.0),), "status": 403}, INFO),
        ({"attempts": (Attempt("403", 1.0),), "status": 403, "credential": "k"}, WARNING),
    ],
)
def test_b40_whatever_failed_is_a_warning(changed: dict[str, Any], level: int) -> None:
    record = RECORD._replace(**({"attempts": (Attempt("200", 1.0),)} | changed))
    assert level_of(record) == level
    assert (level > INFO) == bool(failure_of(record))


@pytest.mark.parametrize("slug", SLUGS)
def test_b40_only_faults_of_its_own_are_errors_of_the_gateway(slug: str) -> None:
    found = level_of(RECORD._replace(status=SLUGS[slug], slug=slug))
    assert (found == ERROR) == (slug == "internal") or slug == "config"


def test_b40_a_line_tells_of_usage_router_and_connection() -> None:
    tries = (Attempt("429", 1.0, "reused", "p", "k", 0.0), Attempt("200", 2.5, "new", "p", "k", 3.25, 1.5006))
    told = fields(
        RECORD._replace(
            attempts=tries, usage_complete=True, cost_micro_usd=12, router_ms=7.00049, first_event_ms=9.5
        )
    )
    assert (told["usage_complete"], told["cost_micro_usd"], told["router_ms"]) == (True, 12, 7.0)
    assert (told["first_event_ms"], told["connect_ms"]) == (9.5, 1.501)
    attempts: Any = told["attempts"]
    first, second = attempts
    assert (first["connect_ms"], second["connect_ms"], second["waited_ms"]) == (0.0, 1.501, 3.25)


def test_b40_what_only_some_exchanges_have_is_told_of_those() -> None:
    assert not {"gaps", "gaps_ms", "trace", "trace_parent", "stream_error"} & fields(RECORD).keys()
    assert fields(RECORD._replace(stream_error="api_error"))["stream_error"] == "api_error"
    told = fields(RECORD._replace(gaps=(1, 2), gaps_ms=3.1234, trace="t", trace_parent="p"))
    assert (told["gaps"], told["gaps_ms"], told["trace"], told["trace_parent"]) == ((1, 2), 3.123, "t", "p")


def test_b40_every_field_of_a_record_has_its_place() -> None:
    """Or is left out for a reason: what was kept goes its own way, and ``at`` is the line's time."""
    told = fields(RECORD._replace(gaps=(1,), trace="t", stream_error="e"))
    assert set(Record.__struct_fields__) - told.keys() == {"at", "captured"}
    assert set(told) - set(Record.__struct_fields__) == {"connect_ms"}


@given(st.floats(0.0, 1e9))
def test_b40_milliseconds_are_rounded_to_microseconds(value: float) -> None:
    told = fields(RECORD._replace(total_ms=value))["total_ms"]
    assert isinstance(told, float)
    assert abs(told - value) <= 0.0005 + value * 1e-12


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.text(st.characters(exclude_categories=()), max_size=8) | st.integers(-(2**70), 2**70),
        max_size=4,
    )
)
def test_a_line_is_one_line_of_json_whatever_it_holds(told: dict[str, object]) -> None:
    written = line(told)
    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    assert json.loads(written) == told


def test_what_json_has_no_word_for_is_told_by_its_repr() -> None:
    assert json.loads(line({"path": "\udc80", "error": ValueError("x")})) == {
        "path": "\udc80",
        "error": "ValueError('x')",
    }


def test_b40_the_clock_turns_with_the_second() -> None:
    clock = Clock()
    assert [clock.text(at) for at in (0.0, 0.25, 1700000000.999999, 1700000001.0, 0.5)] == [
        "1970-01-01T00:00:00.000000Z",
        "1970-01-01T00:00:00.250000Z",
        "2023-11-14T22:13:20.999999Z",
        "2023-11-14T22:13:21.000000Z",
        "1970-01-01T00:00:00.500000Z",
    ]


def test_a_strange_path_spoils_no_other_line() -> None:
    """Half of a surrogate pair cannot be written as UTF-8: that line is escaped, the others are as ever."""
    found = [told(RECORD._replace(path=path), INFO, "now") for path in ("/a", "/\ud800", "/\u00e9")]
    written = lines(found).splitlines(keepends=True)
    assert [json.loads(one)["path"] for one in written] == ["/a", "/\ud800", "/\u00e9"]
    assert written[0] == lines(found[:1])
    assert json.loads(written[1]).keys() == json.loads(written[0]).keys()
