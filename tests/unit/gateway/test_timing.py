"""gateway/timing: where a client's time went, as a header that cannot be broken out of (B42).

Pure.
"""

from __future__ import annotations

import re

import pytest

from app.exchange import Attempt, Journey
from app.gateway.timing import timing

TRIES = (
    Attempt("429", 20.0, "new", "anthropic", "blue", 0.0, 3.0),
    Attempt("200", 50.0, "reused", "anthropic", "green", 5.0),
)
# W3C Server Timing, section 4: server-timing-metric, its parameters tokens or quoted strings.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAM = rf'{_TOKEN}=(?:{_TOKEN}|"[\t !#-\[\]-~]*")'
_METRIC = rf"{_TOKEN}(?:;{_PARAM})*"
VALID = re.compile(rf"{_METRIC}(?:, {_METRIC})*")


def test_b42_it_names_queue_connection_tries_and_credential() -> None:
    value = timing(Journey("anthropic", "green", 7.5, TRIES), 12.345, 50.0)
    assert value == (
        'gateway;dur=12.35, queue;dur=7.50, upstream;dur=50.00, connect;desc="reused", '
        'try;dur=20.00;desc="429 blue", wait;dur=5.00, credential;desc="green"'
    )
    assert VALID.fullmatch(value)
    assert timing(Journey("a"), 1.0, 2.0) == "gateway;dur=1.00, queue;dur=0.00, upstream;dur=2.00"


def test_b42_the_routers_queue_comes_first_where_it_told() -> None:
    value = timing(Journey("a"), 1.0, 2.0, 0.0)
    assert value == "router;dur=0.00, gateway;dur=1.00, queue;dur=0.00, upstream;dur=2.00"
    assert VALID.fullmatch(value)


@pytest.mark.parametrize(
    ("attempt", "part"),
    [
        (Attempt("200", 9.0, "new", connect_ms=4.256), ", connect;dur=4.26"),
        (Attempt("200", 9.0, "new"), ', connect;desc="new"'),
        (Attempt("200", 9.0, "reused"), ', connect;desc="reused"'),
        (Attempt("200", 9.0), ""),
        (Attempt("200", 9.0, "reused", waited_ms=250.0), ', connect;desc="reused", wait;dur=250.00'),
        (Attempt("200", 9.0, "reused", waited_ms=0.5), ', connect;desc="reused"'),
    ],
)
def test_b42_a_connection_was_made_or_was_there(attempt: Attempt, part: str) -> None:
    value = timing(Journey("a", "", 0.0, (attempt,)), 1.0, 2.0)
    assert value == "gateway;dur=1.00, queue;dur=0.00, upstream;dur=2.00" + part
    assert VALID.fullmatch(value)


@pytest.mark.parametrize("label", ['x", evil;desc="\r\nset-cookie: \u043a', "\\", "\x7f", "a,b;c=d"])
def test_labels_cannot_break_out_of_the_header(label: str) -> None:
    tries = (Attempt(label, 1.0, credential=label), Attempt("200", 1.0, label, credential=label))
    assert VALID.fullmatch(timing(Journey("a", label, 0.0, tries), 0.0, 0.0))
