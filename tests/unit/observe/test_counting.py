"""observe/counting: every Record is counted by what happened, once, under few labels (B37, B41, B43).

Runs on: worker.
"""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.exchange import Attempt, Record
from app.observe import counting
from app.observe.folding import TYPES, Fold
from app.observe.groups import sorts

PLAIN = Record("r", "t", "GET", "/", 404, "unknown_route")


@pytest.fixture(autouse=True)
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds of this test's own."""
    monkeypatch.setattr(counting, "_model", Fold(50))
    monkeypatch.setattr(counting, "_tool", Fold(20))
    monkeypatch.setattr(counting, "_type", Fold(TYPES))


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Rise:
    """By how much a sample has risen since."""

    def __init__(self, name: str, **labels: str) -> None:
        self._what = name, labels
        self._before = value(name, **labels)

    def __call__(self) -> float:
        name, labels = self._what
        return round(value(name, **labels) - self._before, 9)


def count(record: Record, times: int = 1) -> None:
    counting.count(sorts([record] * times))


def test_b41_requests_by_route_model_status_and_slug() -> None:
    fine = Rise("penstock_requests_total", route="t", model="claude-x", status="200", slug="")
    refused = Rise("penstock_requests_total", route="t", model="", status="404", slug="unknown_route")
    count(PLAIN._replace(model="claude-x", status=200, slug=""), 3)
    count(PLAIN)
    assert (fine(), refused()) == (3, 1)


def test_b41_failures_by_route_and_type() -> None:
    """As the monitor has them; what is none has no series."""
    fine = PLAIN._replace(status=200, slug="", attempts=(Attempt("200", 1.0),))
    rises = {
        kind: Rise("penstock_failures_total", route="t", type=kind) for kind in ("upstream_529", "queue_full")
    }
    event = Rise("penstock_failures_total", route="u", type="upstream_error_event")
    count(fine)
    count(PLAIN)
    count(fine._replace(stream_error="overloaded_error"), 2)
    count(fine._replace(status=529, attempts=(Attempt("529", 1.0),)))
    count(fine._replace(route="u", stream_error="api_error"))
    count(PLAIN._replace(slug="queue_full", status=503))
    assert ({kind: rise() for kind, rise in rises.items()}, event()) == ({"upstream_529": 3, "queue_full": 1}, 1)
    assert REGISTRY.get_sample_value("penstock_failures_total", {"route": "t", "type": ""}) is None


def test_b41_types_of_failures_are_few() -> None:
    other = Rise("penstock_failures_total", route="t", type="other")
    for number in range(TYPES + 3):
        count(PLAIN._replace(slug=f"slug_{number}"))
    assert other() == 3


def test_b41_bytes_departures_and_fallbacks() -> None:
    rises = [
        Rise("penstock_request_bytes_total", route="t"),
        Rise("penstock_response_bytes_total", route="t"),
        Rise("penstock_client_departures_total", route="t"),
        Rise("penstock_bridge_fallbacks_total"),
    ]
    count(PLAIN._replace(request_bytes=10, response_bytes=100))
    count(PLAIN._replace(request_bytes=1, response_bytes=5, client_left=True, fallback=True))
    assert [rise() for rise in rises] == [11, 105, 1, 1]


TIMES = {
    "penstock_request_seconds": ("total_ms", 40.0),
    "penstock_gateway_seconds": ("gateway_ms", 2.0),
    "penstock_upstream_head_seconds": ("upstream_head_ms", 30.0),
    "penstock_time_to_first_byte_seconds": ("ttfb_ms", 31.0),
    "penstock_time_to_first_event_seconds": ("first_event_ms", 33.0),
}


def test_b41_times_are_counted_where_they_were_reached() -> None:
    sums = {name: Rise(f"{name}_sum", route="times") for name in TIMES}
    counts = {name: Rise(f"{name}_count", route="times") for name in TIMES}
    found: dict[str, Any] = dict(TIMES.values())
    count(PLAIN._replace(route="times", **found))
    assert {name: rise() for name, rise in sums.items()} == {name: ms / 1000 for name, (_, ms) in TIMES.items()}
    count(PLAIN._replace(route="times", total_ms=1.0))  # never got as far as a head
    assert {name: rise() for name, rise in counts.items()} == {
        name: 2.0 if name == "penstock_request_seconds" else 1.0 for name in TIMES
    }


def test_b41_gaps_go_into_buckets_of_powers_of_two() -> None:
    """Below 1 ms, below 2, below 4 …; the last one is open."""
    gaps = (1, 2, 0, 3) + (0,) * 13 + (4,)
    streamed = PLAIN._replace(route="gaps", upstream_head_ms=1.0, first_event_ms=1.0, gaps=gaps, gaps_ms=1500.0)
    count(streamed, 2)
    count(PLAIN._replace(route="gaps", upstream_head_ms=1.0, first_event_ms=1.0))
    bounds = ("0.001", "0.002", "0.004", "0.008", "0.016", "65.536", "+Inf")
    found = {le: value("penstock_event_gap_seconds_bucket", route="gaps", le=le) for le in bounds}
    assert found == {
        "0.001": 2,
        "0.002": 6,
        "0.004": 6,
        "0.008": 12,
        "0.016": 12,
        "65.536": 12,
        "+Inf": 20,
    }
    assert value("penstock_event_gap_seconds_sum", route="gaps") == 3.0
    assert value("penstock_event_gap_seconds_count", route="gaps") == 20


def used(model: str, record_fields: dict[str, Any], tokens: dict[str, int]) -> None:
    count(PLAIN._replace(route="used", model=model, tokens=tokens, **record_fields))


KINDS = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")


def test_b43_tokens_by_kind() -> None:
    used(
        "all",
        {"usage_complete": True, "cost_micro_usd": 1_500_000},
        {
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_creation_input_tokens": 7,
            "cache_creation.ephemeral_5m_input_tokens": 3,
            "cache_creation.ephemeral_1h_input_tokens": 4,
            "cache_read_input_tokens": 5,
            "server_tool_use.web_search_requests": 6,
            "server_tool_use.web_fetch_requests": 8,
            "something_new": 9,
        },
    )
    assert [value("penstock_tokens_total", kind=kind, model="all") for kind in KINDS] == [1, 2, 3, 4, 5]
    assert value("penstock_server_tool_uses_total", tool="web_search", model="all") == 6
    assert value("penstock_server_tool_uses_total", tool="web_fetch", model="all") == 8
    assert value("penstock_cost_usd_total", model="all") == 1.5
    assert value("penstock_unpriced_total", model="all") == 0
    assert value("penstock_usage_partial_total", route="used") == 0


@pytest.mark.parametrize(
    ("tokens", "short", "long"),
    [
        ({"cache_creation_input_tokens": 7}, 7, 0),
        ({"cache_creation_input_tokens": 7, "cache_creation.ephemeral_1h_input_tokens": 7}, 0, 7),
        ({"cache_creation_input_tokens": 7, "cache_creation.ephemeral_1h_input_tokens": 4}, 3, 4),
        ({"cache_creation.ephemeral_5m_input_tokens": 2}, 2, 0),
        ({"cache_creation_input_tokens": 1, "cache_creation.ephemeral_5m_input_tokens": 2}, 2, 0),
    ],
)
def test_b43_cache_writes_of_no_stated_length_are_of_five_minutes(
    tokens: dict[str, int], short: int, long: int
) -> None:
    rises = [Rise("penstock_tokens_total", kind=kind, model="w") for kind in ("cache_write_5m", "cache_write_1h")]
    used("w", {}, tokens)
    assert [rise() for rise in rises] == [short, long]


def test_b43_what_has_no_price_or_broke_off_is_told() -> None:
    unpriced = Rise("penstock_unpriced_total", model="u")
    partial = Rise("penstock_usage_partial_total", route="used")
    used("u", {"usage_complete": True}, {"input_tokens": 1})
    used("u", {"usage_complete": True}, {"input_tokens": 0})
    used("u", {"usage_complete": True}, {})
    assert (unpriced(), partial()) == (1, 0)
    used("u", {"cost_micro_usd": 0}, {"input_tokens": 1})
    assert (unpriced(), partial()) == (1, 1)


def test_b37_queue_tries_and_drops_are_counted() -> None:
    tries = (
        Attempt("429", 1.0, "", "p", "a", connect_ms=20.0),
        Attempt("connect_failed", 1.0, "", "p", "b"),
        Attempt("200", 1.0, "", "q"),
    )
    rises = [
        Rise("penstock_queue_wait_seconds_sum", provider="p"),
        Rise("penstock_attempts_sum", provider="p"),
        Rise("penstock_attempts_count", provider="p"),
        Rise("penstock_retries_total", provider="p", reason="429"),
        Rise("penstock_retries_total", provider="p", reason="connect_failed"),
        Rise("penstock_retries_total", provider="q", reason="200"),
        Rise("penstock_connect_seconds_sum", provider="p"),
        Rise("penstock_connect_seconds_count", provider="p"),
    ]
    count(PLAIN._replace(attempts=tries, provider="p", queue_ms=2000.0))
    assert [rise() for rise in rises] == [2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.02, 1.0]
    drops = Rise("penstock_drops_total")
    count(PLAIN._replace(status=503, slug="queue_full", provider="p", queue_ms=0.0))
    assert drops() == 1
    assert rises[2]() == 1.0  # nothing was sent


def series() -> int:
    """Samples of those metrics whose labels clients have a hand in."""
    names = {"penstock_requests", "penstock_tokens", "penstock_cost_usd", "penstock_unpriced"}
    names |= {"penstock_server_tool_uses", "penstock_retries"}
    return sum(len(metric.samples) for metric in REGISTRY.collect() if metric.name in names)


def test_b41_ten_thousand_models_statuses_and_tools_are_few_series() -> None:
    counting.limit_models(30)
    before = series()
    for n in range(10_000):
        attempts = (Attempt(str(n), 1.0, "", "few"), Attempt("200", 1.0, "", "few"))
        tokens = {"input_tokens": 1, f"server_tool_use.t{n}_requests": 1, f"unknown_{n}": 1}
        told = PLAIN._replace(route="few", slug="", status=200, model=f"model-{n}", provider="few")
        counting.count(sorts([told._replace(queue_ms=0.0, attempts=attempts, tokens=tokens)]))
    names = 31  # and "other"
    reasons = 500 + 1
    one_tool_each = 20 + 20  # of the first models, and of "other"
    assert value("penstock_requests_total", route="few", model="other", status="200", slug="") == 10_000 - 30
    assert value("penstock_tokens_total", kind="input", model="other") >= 10_000 - 30
    assert series() - before <= 3 * names + reasons + one_tool_each
    was = series()
    for n in range(10_000):
        counting.count(sorts([PLAIN._replace(route="few", model=f"model-{n % 3}", status=n - 5000)]))
    assert series() - was <= 3 * (500 + 1)
    assert value("penstock_requests_total", route="few", model="model-0", status="other", slug="unknown_route") > 0
