"""gateway: where spans are made an exchange has a place in its trace, and its upstream hears of it.

Pure.
"""

from __future__ import annotations

import pytest

from app.exchange import Exchange, Headers, Record
from app.gateway.account import Account
from app.gateway.life import Life
from app.gateway.plan import Rules, make_plan
from app.gateway.records import Records
from app.gateway.watching import Watching
from app.providers.table import PROVIDERS
from app.wire.trace import Trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
PROVIDER = PROVIDERS["anthropic"]
RULES = Rules(PROVIDER, "https://a.test", "2023-06-01", False, 1.0, 1.0)


def passed(headers: Headers, *, spans: bool) -> tuple[Headers, Record]:
    """What goes on of these headers, and the Record at the end."""
    exchange = Exchange("r1", "POST", "/v1/messages", headers, b"{}", False, 2, "messages", 100.0)
    records: list[Record] = []
    account = Account(exchange, Life(1.0), Records([records.extend]), Watching(spans=spans))
    plan = make_plan(exchange, RULES, PROVIDER.endpoint("/v1/messages"), 100.0, account.trace)
    account.settle(None, False, 0)
    return tuple(pair for pair in plan.headers if pair[0].startswith("trace")), records[0]


def test_a_callers_trace_goes_on_through_us() -> None:
    headers, record = passed((("TraceParent", PARENT), ("tracestate", "a=1")), spans=True)
    assert headers == (("traceparent", record.trace), ("tracestate", "a=1"))
    assert record.trace_parent == PARENT
    assert record.trace.startswith(f"00-{TRACE}-")
    assert record.trace != PARENT


@pytest.mark.parametrize("headers", [(), (("traceparent", "x"),), (("traceparent", PARENT),) * 2])
def test_without_one_the_trace_begins_here_and_nobody_hears_of_it(headers: Headers) -> None:
    heard, record = passed(headers, spans=True)
    assert heard == headers
    assert record.trace[3:35] not in ("", TRACE)
    assert record.trace_parent == ""


def test_no_two_are_the_same() -> None:
    assert len({passed((("traceparent", PARENT),), spans=True)[1].trace for _ in range(100)}) == 100


def test_one_that_is_for_the_next_hop_only_ends_here() -> None:
    headers, record = passed((("traceparent", PARENT), ("connection", "traceparent")), spans=True)
    assert headers == ()
    assert record.trace_parent == PARENT


def test_without_spans_nothing_is_touched() -> None:
    headers, record = passed((("traceparent", PARENT), ("tracestate", "a=1")), spans=False)
    assert headers == (("traceparent", PARENT), ("tracestate", "a=1"))
    assert Trace(record.trace, record.trace_parent) == Trace("", "")
