"""observe/logs: each record and event once and in order, as severe as it is, in few writes, to stdout and files.

Runs on: worker.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections import deque
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import structlog

from app.exchange import Attempt, Captured, Record
from app.observe import log_stdout, logs
from app.observe.log_files import LogFiles
from app.observe.log_line import fields
from app.observe.log_shown import Shown
from app.observe.logs import ExchangeLog
from app.observe.redact import Redactor

RECORD = Record(
    "r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("200", 1.23456, "new"),),
    upstream_head_ms=5.0, gateway_ms=1.00049, client_left=True, fallback=True,
)  # fmt: skip
FAILED = RECORD._replace(request_id="failed", status=529, attempts=(Attempt("529", 1.0),), client_left=False)
BROKEN = RECORD._replace(request_id="broken", status=500, slug="internal", client_left=False)


class Watch:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


class Sink(io.BytesIO):
    """stdout's bytes; counts writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: Any) -> int:
        self.writes += 1
        return super().write(data)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    found = Sink()
    monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=SimpleNamespace(buffer=found)))
    return found


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(logs, "time", found)
    return found


def pumped(level: str = "info", **more: Any) -> ExchangeLog:
    """A log under a keeper."""
    log = ExchangeLog(level, "json", **more)
    log.pump()
    return log


def put(log: ExchangeLog, record: Record) -> None:
    log.observe([record])
    log.look()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [row["request_id"] for row in found]


def test_b40_one_json_line_per_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    put(ExchangeLog("info", "json"), RECORD)
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


def test_b40_the_line_is_what_structlogs_chain_would_write(capsys: pytest.CaptureFixture[str]) -> None:
    """Without it, a line takes a third of the time."""
    put(ExchangeLog("info", "json"), RECORD._replace(at=time.time()))
    ours = capsys.readouterr().out
    sink = io.BytesIO()
    chain: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.JSONRenderer(serializer=orjson.dumps),
    ]
    structlog.wrap_logger(structlog.BytesLogger(sink), chain).info("exchange", **fields(RECORD))
    told = [list(json.loads(text).items()) for text in (ours, sink.getvalue())]
    assert told[0][:-1] == told[1][:-1]
    (ours_name, ours_at), (theirs_name, theirs_at) = told[0][-1], told[1][-1]
    assert ours_name == theirs_name == "time"
    assert datetime.fromisoformat(ours_at) <= datetime.fromisoformat(theirs_at)
    assert datetime.fromisoformat(theirs_at) - datetime.fromisoformat(ours_at) < timedelta(minutes=1)


def test_b40_the_time_is_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the end of the exchange, not of its wait for a write."""
    put(ExchangeLog("info", "json"), RECORD._replace(at=1700000000.25))
    assert json.loads(capsys.readouterr().out)["time"] == "2023-11-14T22:13:20.250000Z"


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["r", "failed", "broken", "opened", "known", "told"]),
        ("info", ["r", "failed", "broken", "known", "told"]),
        ("warning", ["failed", "broken", "told"]),
        ("error", ["broken"]),
    ],
)
def test_a_level_leaves_out_what_is_less_severe(sink: Sink, level: str, told: list[str]) -> None:
    log = ExchangeLog(level, "json")
    for record in (RECORD, FAILED, BROKEN):
        put(log, record)
    log.event("connection_opened", request_id="opened")
    log.event("worker_started", request_id="known")
    log.event("breaker_opened", request_id="told")
    assert ids(sink.rows()) == told


def test_what_is_left_out_is_not_formatted(monkeypatch: pytest.MonkeyPatch, sink: Sink) -> None:
    def never(record: Record, *_: object) -> None:
        raise AssertionError(record)

    monkeypatch.setattr(logs, "told", never)
    log = ExchangeLog("warning", "json")
    put(log, RECORD)
    assert sink.getvalue() == b""
    with pytest.raises(AssertionError):
        put(log, FAILED)


def test_a_quiet_gateways_line_is_written_at_once_and_a_busy_ones_wait(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, RECORD)
    assert sink.writes == 1
    watch.now += 0.049
    for number in range(5):
        put(log, RECORD._replace(request_id=str(number)))
    assert sink.writes == 1
    watch.now += 0.001
    put(log, RECORD._replace(request_id="last"))
    assert sink.writes == 2
    assert ids(sink.rows()) == ["r", "0", "1", "2", "3", "4", "last"]


def test_the_keeper_writes_what_waits(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, RECORD)
    put(log, RECORD)
    log.event("worker_draining", request_id="e")
    assert len(sink.rows()) == 1
    log.pump()
    assert ids(sink.rows()) == ["r", "r", "e"]
    assert sink.writes == 2
    log.pump()
    assert sink.writes == 2


def test_a_tick_that_had_nothing_to_write_delays_no_line(tmp_path: Path, sink: Sink, watch: Watch) -> None:
    log = pumped(files=made(tmp_path))
    put(log, RECORD)
    watch.now += 1.0
    log.pump()
    put(log, RECORD)
    assert len(sink.rows()) == 2


def test_as_many_as_may_wait_are_written(sink: Sink, watch: Watch) -> None:
    log = pumped()
    for _ in range(1 + 16):
        put(log, RECORD)
    assert (len(sink.rows()), sink.writes) == (17, 2)


def test_bodies_do_not_pile_up(sink: Sink, watch: Watch) -> None:
    log = pumped(shown=Shown(True, False, 1 << 20))
    put(log, RECORD)
    put(log, RECORD._replace(captured=Captured(request_body=b"x" * 65_535)))
    assert len(sink.rows()) == 1
    put(log, RECORD._replace(captured=Captured(request_body=b"x")))
    assert len(sink.rows()) == 3
    put(log, RECORD._replace(captured=Captured(request_body=b"x")))
    assert len(sink.rows()) == 3


def test_a_fault_of_ours_is_written_at_once_with_all_before_it(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, RECORD)
    put(log, RECORD)
    put(log, BROKEN)
    assert ids(sink.rows()) == ["r", "r", "broken"]
    log.event("unexpected_error", request_id="e")
    assert (sink.rows()[-1]["request_id"], sink.rows()[-1]["level"]) == ("e", "error")


def test_a_storm_of_refusals_does_not_cost_a_write_each(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, FAILED)
    watch.now += 0.004
    put(log, FAILED)
    assert sink.writes == 1
    watch.now += 0.001
    put(log, FAILED)
    assert (sink.writes, len(sink.rows())) == (2, 3)


def test_without_a_keeper_every_line_is_written_as_it_comes(sink: Sink, watch: Watch) -> None:
    log = ExchangeLog("info", "json")
    for _ in range(3):
        put(log, RECORD)
    assert len(sink.rows()) == 3
    log.pump()
    put(log, RECORD)
    log.close()
    put(log, RECORD)
    assert len(sink.rows()) == 5


def test_what_waits_at_the_interpreters_end_is_written(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, RECORD)
    put(log, RECORD)
    logs._flush_last(lambda: log)  # type: ignore[arg-type]
    logs._flush_last(lambda: None)  # type: ignore[arg-type]
    assert len(sink.rows()) == 2


def test_lines_of_many_threads_are_all_there_and_each_threads_in_order(sink: Sink) -> None:
    log = pumped()
    count, each = 8, 400

    def work(name: int) -> None:
        for number in range(each):
            put(log, RECORD._replace(request_id=f"{name}-{number}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = [tuple(map(int, one.split("-"))) for one in ids(sink.rows())]
    assert len(found) == count * each
    for name in range(count):
        assert [number for thread, number in found if thread == name] == list(range(each))


def test_a_child_writes_nothing_that_is_its_parents(sink: Sink, watch: Watch) -> None:
    log = pumped()
    put(log, RECORD)
    put(log, RECORD)
    log._lock.acquire()  # held by another thread as the child begins
    pid = os.fork()
    if pid == 0:
        put(log, RECORD._replace(request_id="child"))
        os._exit(0 if ids(sink.rows()) == ["r", "child"] else 1)
    log._lock.release()
    assert os.waitpid(pid, 0)[1] == 0
    log.pump()
    assert ids(sink.rows()) == ["r", "r"]


def test_a_stdout_that_was_closed_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=None))
    log = ExchangeLog("info", "json", made(tmp_path / "logs"))
    put(log, RECORD)
    assert log.troubles == ["log: 1 lines could not be written to stdout"]
    assert ids(rows(tmp_path / "logs" / "performance.json")) == ["r"]


def test_a_stdout_that_nobody_reads_is_told_of_and_tried_again(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as told, os.fdopen(writer, "wb") as pipe:
        monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=SimpleNamespace(buffer=pipe)))
        log = pumped()
        for _ in range(300):
            log.observe([RECORD])
        log.flush()
        (trouble,) = log.troubles
        assert trouble.startswith("log: stdout is not read: ")
        assert trouble.endswith(" bytes of lines wait for its reader")
        found = told.read(65_536)
        for _ in range(10):
            log.pump()
            os.set_blocking(reader, False)
            found += told.read(65_536) or b""
        assert log.troubles == []
        assert ids([json.loads(line) for line in found.splitlines()]) == ["r"] * 300


def test_files_have_their_lines_before_stdout_is_asked(tmp_path: Path, sink: Sink, watch: Watch) -> None:
    """It may be a pipe that nobody reads."""
    log = ExchangeLog("info", "json", made(tmp_path / "logs"))

    class Stuck(Sink):
        def write(self, data: Any) -> int:
            assert ids(rows(tmp_path / "logs" / "performance.json")) == ["r"]
            return super().write(data)

    log._stdout._sink = stuck = Stuck()
    put(log, RECORD)
    assert stuck.writes == 1


def test_nobody_waits_for_whoever_is_writing(sink: Sink, watch: Watch) -> None:
    """Another thread may be held up by stdout: this one goes on, and the other takes its line along."""
    log = pumped()
    log._lock.acquire()
    put(log, BROKEN)
    assert sink.rows() == []
    log._lock.release()
    log.pump()
    assert ids(sink.rows()) == ["broken"]


def test_a_line_that_came_while_another_wrote_is_taken_along(sink: Sink, watch: Watch) -> None:
    log = pumped()
    waiting = [BROKEN._replace(request_id=str(number)) for number in range(2)]

    class Meddling(Sink):
        def write(self, data: Any) -> int:
            if waiting:
                put(log, waiting.pop(0))  # as another thread would, that finds the lock taken
            return sink.write(data)

    log._stdout._sink = Meddling()
    put(log, RECORD)
    assert ids(sink.rows()) == ["r", "0", "1"]


def test_somebody_elses_request_is_not_kept_writing_for_ever(sink: Sink, watch: Watch) -> None:
    log = pumped()
    writes = []

    class Flooded(Sink):
        def write(self, data: Any) -> int:
            writes.append(bytes(data))
            put(log, RECORD)
            return len(data)

    log._stdout._sink = Flooded()
    put(log, RECORD)
    assert len(writes) == 3


def test_lines_pile_up_only_so_far(monkeypatch: pytest.MonkeyPatch, sink: Sink, watch: Watch) -> None:
    """stdout takes nothing, and other threads go on."""
    monkeypatch.setattr(logs, "_MOST_WAITING", 10)
    log = pumped()
    log._lock.acquire()
    for _ in range(12):
        put(log, RECORD)
    assert log.lost == 2
    assert log.troubles == ["log: 2 lines could not be written to stdout"]
    log._lock.release()
    log.pump()
    assert len(sink.rows()) == 10


def test_a_line_that_nobody_takes_is_lost_and_counted(sink: Sink) -> None:
    """stdout's reader is gone: the exchange goes on, and it can be told."""
    log = ExchangeLog("info", "json")
    sink.close()
    put(log, RECORD)
    put(log, RECORD)
    assert log.lost == 2
    assert log.troubles == ["log: 2 lines could not be written to stdout"]


def test_events_have_their_weight_and_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = ExchangeLog("debug", "json")
    events: deque[dict[str, object]] = deque(
        [
            {"event": "loop_died", "error": "x"},
            {"event": "connection_opened", "request_id": "r", "tls_ms": 2.5},
            {"event": "connection_unresponsive"},
            {"event": "other"},
            {"odd": 1},
        ]
    )
    assert log.drain(events) == ["loop_died", "connection_opened", "connection_unresponsive", "other", "event"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "debug", "warning", "info", "info"]
    assert (lines[1]["request_id"], lines[1]["tls_ms"]) == ("r", 2.5)
    assert log.drain(events) == []


def test_a_console_line_is_for_people_and_has_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = ExchangeLog("info", "console", shown=Shown(True, False, 100))
    log.event("started", pid=1)
    put(log, RECORD._replace(captured=Captured(request_body=b"hello")))
    started, exchange = capsys.readouterr().out.splitlines()
    assert "started" in started
    assert "pid=1" in started
    assert "[info" in exchange
    for name in fields(RECORD):
        assert f"{name}=" in exchange
    assert "request_body=hello" in exchange


def made(folder: Path, *, with_requests: bool = False) -> LogFiles:
    return LogFiles(folder, 1 << 20, 3, with_requests=with_requests)


def test_files_hold_exchanges_and_what_went_wrong(tmp_path: Path, sink: Sink) -> None:
    log = ExchangeLog("info", "json", made(tmp_path / "logs"))
    for record in (RECORD, FAILED, BROKEN):
        put(log, record)
    log.event("worker_started", pid=1)
    log.event("breaker_opened", provider="p")
    assert ids(rows(tmp_path / "logs/performance.json")) == ["r", "failed", "broken"]
    assert [row["event"] for row in rows(tmp_path / "logs/errors.json")] == [
        "exchange",
        "exchange",
        "breaker_opened",
    ]
    assert not (tmp_path / "logs/requests.json").exists()
    assert len(sink.rows()) == 5


def test_headers_and_bodies_have_a_file_of_their_own_at_debug(tmp_path: Path, sink: Sink) -> None:
    files = made(tmp_path, with_requests=True)
    log = ExchangeLog("debug", "json", files, Shown(True, True, 100), Redactor(["my-own-secret"]))
    kept = Captured(
        (("X-Api-Key", "k1"), ("accept", "a"), ("Accept", "my-own-secret")),
        (("content-type", "text/plain"),),
        b'{"password":"p1"}',
        b"my-own-secret!",
    )
    put(log, RECORD._replace(captured=kept, request_bytes=17, response_bytes=14))
    (row,) = rows(tmp_path / "requests.json")
    assert row["request_headers"] == {"x-api-key": "[redacted]", "accept": "a, [redacted]"}
    assert row["response_headers"] == {"content-type": "text/plain"}
    assert (row["request_body"], row["response_body"]) == ('{"password":"[redacted]"}', "[redacted]!")
    assert row.keys() > fields(RECORD).keys()
    for others in (sink.rows(), rows(tmp_path / "performance.json")):
        assert not {"request_headers", "request_body", "response_body"} & others[0].keys()


def test_bodies_are_on_stdout_where_they_have_no_file(tmp_path: Path, sink: Sink) -> None:
    log = ExchangeLog("info", "json", made(tmp_path), Shown(False, True, 100))
    put(log, RECORD._replace(captured=Captured(request_body=b"q", response_body=b"hi"), response_bytes=2))
    assert sink.rows()[0]["response_body"] == "hi"
    assert "request_body" not in sink.rows()[0]
    assert "response_body" not in rows(tmp_path / "performance.json")[0]


def test_a_file_that_fails_is_told_of_once_and_recovers(tmp_path: Path, sink: Sink) -> None:
    folder = tmp_path / "logs"
    folder.write_text("not a directory")
    log = ExchangeLog("info", "json", made(folder))
    put(log, RECORD)
    put(log, FAILED)
    log.pump()
    log.pump()
    told = [row for row in sink.rows() if row["event"] == "log_file_failed"]
    assert [(row["file"], row["level"]) for row in told] == [
        ("performance.json", "warning"),
        ("errors.json", "warning"),
    ]
    assert told[0]["error"] == "Not a directory"
    assert "log: performance.json cannot be written to: Not a directory" in log.troubles
    assert log.lost == 0
    folder.unlink()
    log.pump()
    log.pump()
    restored = [row["file"] for row in sink.rows() if row["event"] == "log_file_restored"]
    assert sorted(restored) == ["errors.json", "performance.json"]
    assert log.troubles == []
    assert ids(rows(folder / "performance.json")) == ["r", "failed"]


def test_what_a_failed_file_cannot_take_by_the_end_is_lost_and_counted(tmp_path: Path, sink: Sink) -> None:
    folder = tmp_path / "logs"
    folder.write_text("not a directory")
    log = ExchangeLog("error", "json", made(folder))
    put(log, BROKEN)
    put(log, FAILED)
    log.close()
    assert log.lost == 2  # its line in performance.json and in errors.json
    assert [row["event"] for row in sink.rows()] == ["exchange"]  # the rest is below error
    assert "log: 1 lines could not be written to errors.json" in log.troubles
