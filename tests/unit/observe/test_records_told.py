"""observe: one line and one count per record, nothing secret; events by their weight (B40, B41).

Runs on: worker.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from app.exchange import Attempt, Record
from app.observe import metrics
from app.observe.logs import ExchangeLog, make_logger

RECORD = Record(
    "r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("200", 1.23456, "new"),),
    upstream_head_ms=5.0, gateway_ms=1.00049, client_left=True, fallback=True,
)  # fmt: skip


def test_b40_one_json_line_per_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    ExchangeLog(make_logger("info", "json"))(RECORD)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["event"], told["request_id"], told["path"]) == ("exchange", "r", "/v1/messages")
    assert told["attempts"] == [{"outcome": "200", "ms": 1.235, "connection": "new"}]
    assert (told["gateway_ms"], told["ttfb_ms"], told["level"]) == (1.0, None, "info")
    assert told["time"].endswith("Z")


def test_events_have_their_weight_and_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = ExchangeLog(make_logger("debug", "json"))
    events: deque[dict[str, object]] = deque(
        [{"event": "loop_died", "error": "x"}, {"event": "connection_opened"}, {"event": "other"}, {"odd": 1}]
    )
    assert log.drain(events) == ["loop_died", "connection_opened", "other", "event"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "debug", "info", "info"]
    assert log.drain(events) == []


def test_a_console_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    ExchangeLog(make_logger("info", "console")).event("started", pid=1)
    assert "started" in capsys.readouterr().out


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
    metrics.observe(plain)
    assert [value(name, route="t") for name in names] == before
    metrics.observe(Record(**{**{s: getattr(RECORD, s) for s in Record.__slots__}, "route": "t"}))
    assert [value(name, route="t") for name in names] == [n + 1 for n in before]
    assert value("penstock_requests_total", route="t", status="404", slug="unknown_route") >= 1


def test_b41_all_workers_are_in_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"penstock_requests" in metrics.exposition(False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert metrics.exposition(True) == b""
