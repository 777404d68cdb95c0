"""The files of LOG_DIR: whole lines, each once, while two workers write and rotate them, and when they cannot."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import USUAL, Raw, ask, message, post

NAMES = ("performance.json", "errors.json", "requests.json")


def _files(folder: Path, name: str) -> list[Path]:
    """A file and its rotated ones, the oldest first."""
    rotated = sorted(folder.glob(name + ".*"), key=lambda one: int(one.suffix[1:]), reverse=True)
    return [one for one in (*rotated, folder / name) if one.exists()]


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """All lines of it; each must be whole."""
    text = b"".join(one.read_bytes() for one in _files(folder, name))
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def _many(port: int, count: int, clients: int, scenario: str = "json-0ms") -> list[str]:
    """So many requests of each of so many clients, each on its own connection; the ids they were given."""
    asked: list[str] = []

    def client() -> None:
        with Raw(port) as raw:
            for _ in range(count):
                asked.append(raw.ask("/v1/messages", message(scenario), USUAL).get("x-request-id"))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def test_two_workers_rotate_the_same_files_and_lose_nothing(farm: Farm, kind: str, folder: Path) -> None:
    """Tiny files, so that both rotate all the time; enough are kept. Then SIGTERM, with lines still waiting."""
    options: dict[str, Any] = {"LOG_DIR": folder, "LOG_FILE_MAX_BYTES": 65_536, "LOG_FILES_KEPT": 100}
    with farm.own(kind, WEB_CONCURRENCY=2, LOG_LEVEL="debug", **options) as server:
        asked = _many(server.port, 60, 8)
        asked += _many(server.port, 10, 4, "status-529")
        pids = {row["pid"] for row in server.lines("worker_started")}
        assert server.end() == 0
    assert len(pids) == 2
    for name in ("performance.json", "requests.json"):
        rows = [row for row in _rows(folder, name) if row["route"] != "other"]  # not the farm's own question
        assert sorted(row["request_id"] for row in rows) == sorted(asked), name
        assert len(_files(folder, name)) > 3
        assert all(one.stat().st_size <= 65_536 for one in _files(folder, name))
    assert [row["status"] for row in _rows(folder, "errors.json")] == [529] * 40
    assert sorted(row["request_id"] for row in server.lines() if row["route"] != "other") == sorted(asked)


def test_only_so_many_are_kept(farm: Farm, folder: Path) -> None:
    options: dict[str, Any] = {"LOG_DIR": folder, "LOG_FILE_MAX_BYTES": 65_536, "LOG_FILES_KEPT": 1}
    with farm.own("gevent", WEB_CONCURRENCY=2, **options) as server:
        asked = _many(server.port, 60, 8)
        server.end()
    rows = _rows(folder, "performance.json")
    assert sorted(one.name for one in folder.iterdir()) == ["performance.json", "performance.json.1"]
    assert 0 < len(rows) < len(asked)
    assert {row["request_id"] for row in rows} <= set(asked)


def test_what_requests_json_holds(farm: Farm, kind: str, folder: Path) -> None:
    key = "sk-ant-callers-own-secret-1"
    switches: dict[str, Any] = {"ENABLE_REQUEST_BODY_LOGGING": "true", "ENABLE_RESPONSE_BODY_LOGGING": "true"}
    body = message("json-0ms", metadata={"password": "secret-2"})
    headers = (*(pair for pair in USUAL if pair[0] != "x-api-key"), ("x-api-key", key), ("cookie", "a=secret-3"))
    headers += (("accept-encoding", "gzip"),)
    with farm.own(kind, LOG_DIR=folder, LOG_LEVEL="debug", **switches) as server:
        answer = ask(server.port, "/v1/messages", body, headers)
        until(lambda: _rows(folder, "requests.json"), 5, "the line")
        server.end()
    (row,) = _rows(folder, "requests.json")
    assert row["request_headers"]["x-api-key"] == row["request_headers"]["cookie"] == "[redacted]"
    assert row["request_headers"]["accept"] == "application/json"
    assert row["response_headers"]["request-id"] == row["upstream_request_id"]
    told = json.loads(row["request_body"])
    assert told == json.loads(body) | {"metadata": {"password": "[redacted]"}}
    plain = gzip.decompress(answer.body) if answer.get("content-encoding") == "gzip" else answer.body
    assert json.loads(row["response_body"])["id"] == json.loads(plain)["id"]
    everywhere = server.output + "".join(one.read_text() for one in folder.iterdir())
    for secret in (key, "secret-2", "secret-3"):
        assert secret not in everywhere, secret
    assert "request_body" not in _rows(folder, "performance.json")[0]
    assert not {"request_body", "request_headers"} & set(server.lines()[0])


def _ready(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = ask(server.port, "/ready").json()
    return found


def _metric(server: Server, name: str) -> float:
    text = ask(server.port, "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture
def blocked(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be made, even by root: it is a file."""
    folder.mkdir()
    yield folder
    if folder.is_file():
        folder.unlink()


def test_a_folder_that_cannot_be_written_fails_no_request_is_told_and_recovers(
    farm: Farm, kind: str, blocked: Path
) -> None:
    with farm.own(kind, LOG_DIR=blocked) as server:
        asked = [post(server.port, "json-0ms").get("x-request-id")]
        until(lambda: _rows(blocked, "performance.json"), 5, "the first line")
        for one in blocked.iterdir():
            one.unlink()
        blocked.rmdir()
        blocked.write_text("in the way")
        answers = [post(server.port, "json-0ms") for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        until(lambda: server.lines("log_file_failed"), 5, "the warning")
        state = _ready(server)
        assert state["status"] == "degraded"
        assert "log: performance.json cannot be written to: Not a directory" in state["reasons"]
        answers += [post(server.port, "json-0ms") for _ in range(5)]
        blocked.unlink()
        until(lambda: server.lines("log_file_restored"), 5, "the end of it")
        until(lambda: _ready(server)["status"] == "ready", 5, "ready again")
        server.end()
    told = [row["file"] for row in server.lines("log_file_failed")]
    assert sorted(told) == ["errors.json", "performance.json"]  # once each: the warning was for errors.json too
    asked = [answer.get("x-request-id") for answer in answers]
    assert [row["request_id"] for row in _rows(blocked, "performance.json")] == asked  # they waited


def test_lines_that_no_disk_takes_are_lost_counted_and_told(farm: Farm, blocked: Path) -> None:
    """More than may wait for it."""
    switches: dict[str, Any] = {
        "ENABLE_REQUEST_BODY_LOGGING": "true",
        "BODY_LOG_BYTES": 1 << 20,
        "LOG_LEVEL": "debug",
    }
    blocked.rmdir()
    with farm.own("gevent", LOG_DIR=blocked, **switches) as server:
        blocked.write_text("in the way")
        big = message("json-0ms", system="x" * 900_000)
        for _ in range(4):
            assert ask(server.port, "/v1/messages", big, USUAL).status == 200
        until(lambda: _metric(server, "penstock_log_lines_lost") >= 1, 10, "the metric")
        reasons = _ready(server)["reasons"]
        assert any("lines could not be written to requests.json" in one for one in reasons), reasons


def test_a_worker_that_has_no_right_to_the_lock_serves_on(farm: Farm, kind: str, folder: Path) -> None:
    """Another process holds the file: no request waits for that, and the lines come when it lets go."""
    import fcntl

    with farm.own(kind, LOG_DIR=folder) as server:
        post(server.port, "json-0ms")
        until(lambda: _rows(folder, "performance.json"), 5, "the first line")
        fd = os.open(folder / "performance.json", os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        asked = _many(server.port, 20, 4)
        until(lambda: len(server.lines()) >= 81, 5, "their lines on stdout")
        assert len(_rows(folder, "performance.json")) == 1
        os.close(fd)
        until(lambda: len(_rows(folder, "performance.json")) >= 81, 5, "their lines in the file")
        server.end()
    assert sorted(row["request_id"] for row in _rows(folder, "performance.json")[1:]) == sorted(asked)
