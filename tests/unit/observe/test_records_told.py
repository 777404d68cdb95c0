"""observe: one line and one count per record, nothing secret; events by their weight (B40, B41).

Runs on: worker.
"""

from __future__ import annotations

import io
import json
from collections import deque
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.exchange import Attempt, Record
from app.observe import counting, logs, metrics
from app.observe.histogram import Histogram
from app.observe.logs import ExchangeLog

RECORD = Record(
    "r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("200", 1.23456, "new"),),
    upstream_head_ms=5.0, gateway_ms=1.00049, client_left=True, fallback=True,
)  # fmt: skip


def test_b40_one_json_line_per_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    ExchangeLog("info", "json")(RECORD)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["event"], told["request_id"], told["path"]) == ("exchange", "r", "/v1/messages")
    (attempt,) = told["attempts"]
    assert (attempt["outcome"], attempt["ms"], attempt["connection"], attempt["waited_ms"]) == (
        "200",
        1.235,
        "new",
        0.0,
    )
    assert (told["gateway_ms"], told["ttfb_ms"], told["level"]) == (1.0, None, "info")
    assert told["time"].endswith("Z")


def test_b40_the_line_is_what_the_logger_would_write(capsys: pytest.CaptureFixture[str]) -> None:
    log = ExchangeLog("info", "json")
    log(RECORD)
    log._logger.info("exchange", **logs.fields(RECORD))
    ours, theirs = (list(json.loads(line).items()) for line in capsys.readouterr().out.splitlines())
    assert [pair for pair in ours if pair[0] != "time"] == [pair for pair in theirs if pair[0] != "time"]
    ours_at, theirs_at = (datetime.fromisoformat(dict(line)["time"]) for line in (ours, theirs))
    assert ours_at <= theirs_at < ours_at + timedelta(minutes=1)


@pytest.mark.parametrize(("level", "style", "lines"), [("warning", "json", 0), ("info", "console", 1)])
def test_b40_a_line_keeps_to_level_and_style(
    capsys: pytest.CaptureFixture[str], level: str, style: str, lines: int
) -> None:
    ExchangeLog(level, style)(RECORD)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == lines
    assert all("request_id=r" in line for line in told)


def test_a_line_that_nobody_takes_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout's reader is gone: the exchange goes on, and it can be told."""
    log = ExchangeLog("info", "json")
    closed = io.BytesIO()
    closed.close()
    monkeypatch.setattr(log, "_sink", closed)
    log(RECORD)
    log(RECORD)
    assert log.lost == 2


def test_b40_the_clock_turns_with_the_second() -> None:
    clock = logs._Clock()
    assert [clock.text(at) for at in (0.0, 0.25, 1700000000.999999, 1700000001.0, 0.5)] == [
        "1970-01-01T00:00:00.000000Z",
        "1970-01-01T00:00:00.250000Z",
        "2023-11-14T22:13:20.999999Z",
        "2023-11-14T22:13:21.000000Z",
        "1970-01-01T00:00:00.500000Z",
    ]


@given(st.lists(st.floats(0.0, 12.0) | st.sampled_from([0.5, 1.0, 10.0]), max_size=30))
def test_b41_many_values_at_once_are_observed_as_one_by_one(values: list[float]) -> None:
    """Ours reaches into prometheus_client: its own way is the measure."""
    one, many = (Histogram("h", "-", ["l"], buckets=(0.5, 1, 10), registry=None) for _ in range(2))
    child = one.labels("x")
    for observed in values:
        child.observe(observed)
    many.labels("x").observe_all(values)
    kept = [
        [(s.name, s.labels, round(s.value, 6)) for metric in h.collect() for s in metric.samples]
        for h in (one, many)
    ]
    kept = [[sample for sample in samples if sample[0] != "h_created"] for samples in kept]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 6


def test_events_have_their_weight_and_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = ExchangeLog("debug", "json")
    events: deque[dict[str, object]] = deque(
        [{"event": "loop_died", "error": "x"}, {"event": "connection_opened"}, {"event": "other"}, {"odd": 1}]
    )
    assert log.drain(events) == ["loop_died", "connection_opened", "other", "event"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "debug", "info", "info"]
    assert log.drain(events) == []


def test_a_console_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    ExchangeLog("info", "console").event("started", pid=1)
    assert "started" in capsys.readouterr().out


def count(record: Record) -> None:
    counting.observe(record)
    counting.flush()


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_b41_a_record_is_counted_by_what_happened() -> None:
    names = (
        "penstock_client_departures_total",
        "penstock_gateway_seconds_count",
        "penstock_upstream_head_seconds_count",
    )
    before = [value(name, route="t") for name in names]
    plain = Record("r", "t", "GET", "/", 404, "unknown_route")
    count(plain)
    assert [value(name, route="t") for name in names] == before
    count(RECORD._replace(route="t"))
    assert [value(name, route="t") for name in names] == [n + 1 for n in before]
    assert value("penstock_requests_total", route="t", status="404", slug="unknown_route") >= 1


def test_b41_all_workers_are_in_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"penstock_requests" in metrics.exposition(False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert metrics.exposition(True) == b""


def test_b37_queue_tries_and_drops_are_counted() -> None:
    tries = (Attempt("429", 1.0, "", "p", "a"), Attempt("connect_failed", 1.0, "", "p", "b"), Attempt("200", 1.0))
    names = (
        ("penstock_queue_wait_seconds_sum", {"provider": "p"}),
        ("penstock_attempts_sum", {"provider": "p"}),
        ("penstock_retries_total", {"provider": "p", "reason": "429"}),
        ("penstock_retries_total", {"provider": "p", "reason": "connect_failed"}),
        ("penstock_retries_total", {"provider": "p", "reason": "200"}),
    )
    before = [value(name, **labels) for name, labels in names]
    count(Record("r", "t", "POST", "/", 200, "", attempts=tries, provider="p", queue_ms=2000.0))
    assert [round(value(name, **labels) - was, 6) for (name, labels), was in zip(names, before, strict=True)] == [
        2.0,
        3.0,
        1.0,
        1.0,
        0.0,
    ]
    drops = value("penstock_drops_total")
    count(Record("r", "t", "POST", "/", 503, "queue_full", provider="p", queue_ms=0.0))
    assert value("penstock_drops_total") == drops + 1


def test_b37_of_all_states_one_is_set() -> None:
    for state in ("open", "closed"):
        metrics.set_state(metrics.BREAKER, metrics.BREAKER_STATES, state, "q")
        assert {s: value("penstock_breaker_state", provider="q", state=s) for s in metrics.BREAKER_STATES} == {
            one: float(one == state) for one in metrics.BREAKER_STATES
        }
