"""observe/logs: one line per record, nothing secret; events by their weight (B40).

Runs on: worker.
"""

from __future__ import annotations

import io
import json
from collections import deque
from datetime import datetime, timedelta

import pytest

from app.exchange import Attempt, Record
from app.observe import logs
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
