"""penstock explain: what any worker served is told by whichever is asked; a killed one holds up nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.simulator.running import Running
from app.store.asking import WAIT_S
from tests.e2e.servers import ROOT, Farm, Measured, Server, until
from tests.e2e.test_workers_share import Side, both_up, sides
from tests.e2e.wire import KEY, USUAL, Answer, ask, message

ADMIN_KEY = "admin-key-of-the-e2e-tests"
ADMIN = (("x-api-key", ADMIN_KEY),)
BOUND_S = WAIT_S + 3.0
"""Of an answer: what it waits for others, and what a busy machine adds."""


def explain(server: Server, request_id: str, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command, asking this server."""
    command = [sys.executable, "-m", "app", "explain", request_id, *(more or ("--url", server.url))]
    own = {"PATH": os.environ["PATH"], "GATEWAY_ADMIN_KEY": ADMIN_KEY, **environ}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60)


def shown(server: Server, request_id: str) -> Any:
    """The page of one id, over a connection of its own."""
    return ask(server.port, f"/admin/records/{request_id}", None, ADMIN)


def kept_by(side: Side, request_id: str) -> Answer:
    """The page of one id, as this worker gives it."""
    return side.raw.ask(f"/admin/records/{request_id}", None, ADMIN)


def post(server: Server, side: Side, number: int) -> str:
    """One exchange served by this worker; its id."""
    request_id = f"a-request-of-worker-{side.pid}-{number}"
    answer = side.raw.ask("/v1/messages", message("json-0ms"), (*USUAL, ("x-request-id", request_id)))
    assert answer.get("x-request-id") == request_id
    settled(server, request_id)
    return request_id


def settled(server: Server, request_id: str) -> None:
    """Wait until an exchange is over for the gateway, too: its client has the answer a little earlier."""
    until(lambda: any(row["request_id"] == request_id for row in server.lines()), 5, "its log line")


def directory(server: Server) -> Path:
    """Where this server's workers ask each other."""
    for pid in server.workers():
        for found in Path("/dev/shm").glob(f"penstock-asking-*/m-*-{pid}-*"):  # noqa: S108 - theirs
            return found.parent
    raise AssertionError("no directory of theirs")


@pytest.fixture(scope="module", params=["gevent", "gthread", "sync"])
def crew(farm: Farm, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that remember."""
    logs = tmp_path_factory.mktemp("logs")
    settings: dict[str, Any] = {
        "WEB_CONCURRENCY": 2,
        "GATEWAY_ADMIN_KEY": ADMIN_KEY,
        "RETRY_MAX_ATTEMPTS": 2,
        "LOG_DIR": logs,
    }
    with farm.own(request.param, **settings) as server:
        both_up(server)
        yield server


@contextlib.contextmanager
def both(server: Server) -> Iterator[list[Side]]:
    """A connection to each worker; a sync worker serves one at a time, and closes it."""
    if server.kind == "sync":
        pytest.skip("a sync worker keeps no connection that could be told apart")
    with sides(server) as found:
        yield found


def test_each_worker_tells_of_what_the_other_served(crew: Server, measured: Measured) -> None:
    with both(crew) as (one, two):
        for number in range(3):
            ids = [post(crew, one, number), post(crew, two, number)]
            for side in (one, two):
                for served_by, request_id in zip((one, two), ids, strict=True):
                    began = time.monotonic()
                    answer = kept_by(side, request_id)
                    took_s = time.monotonic() - began
                    assert answer.status == 200
                    found = answer.json()
                    assert [row["worker"] for row in found["records"]] == [served_by.pid]
                    assert (found["workers_asked"], found["workers_answered"], "note" in found) == (2, 2, False)
        measured("an answer of both workers, s", round(took_s, 3))
        listed = one.raw.ask("/admin/records?limit=100", None, ADMIN).json()
        times = [row["time"] for row in listed["records"]]
        assert times == sorted(times, reverse=True)
        assert {row["worker"] for row in listed["records"]} == {one.pid, two.pid}
    assert [path.name[0] for path in directory(crew).iterdir()] == ["m", "m"], "nothing is left of questions"


def test_explain_tells_what_the_log_line_tells(crew: Server) -> None:
    ids = [f"a-request-to-be-explained-{crew.kind}-{number}" for number in range(8)]
    for request_id in ids:
        headers = (*USUAL, ("x-request-id", request_id))
        ask(crew.port, "/v1/messages", message("json-0ms"), headers)
    for request_id in ids:
        settled(crew, request_id)
    lines = {row["request_id"]: row for row in crew.lines()}
    for request_id in ids:
        told = explain(crew, request_id, "--json", "--url", crew.url)
        assert (told.returncode, told.stderr) == (0, "")
        row = json.loads(told.stdout)
        assert row.pop("worker") in crew.workers()
        line = lines[request_id]
        assert row == {name: value for name, value in line.items() if name not in ("event", "level")}
    text = explain(crew, ids[0]).stdout
    assert text.startswith("POST /v1/messages: 200\n")
    for word in (
        "  tokens         ",
        "  gateway added  ",
        "try 1: anthropic, the caller's key, ",
        "  caller         ",
    ):
        assert word in text


def test_a_stream_with_a_retry_is_told_from_the_log_and_from_the_worker(crew: Server) -> None:
    request_id = f"a-request-in-several-tries-{crew.kind}"
    headers = (*USUAL, ("x-request-id", request_id))
    assert ask(crew.port, "/v1/messages", message("status-529"), headers).status == 529
    settled(crew, request_id)
    asked = explain(crew, request_id)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("POST /v1/messages: 529")
    assert asked.stdout.count("the caller's key, ") == 2
    assert "pause: backoff" in asked.stdout
    folder = next(crew_dir for crew_dir in _log_dirs(crew))
    until(lambda: request_id in (folder / "performance.json").read_text(), 5, "its line")
    read = explain(crew, request_id, "--log", str(folder), GATEWAY_ADMIN_KEY="")
    assert read.returncode == 0, read.stderr
    assert [line for line in asked.stdout.splitlines() if "worker" not in line] == read.stdout.splitlines()


def _log_dirs(server: Server) -> Iterator[Path]:
    """LOG_DIR of this server, from its own environment."""
    for item in Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0"):
        if item.startswith(b"LOG_DIR="):
            yield Path(item.removeprefix(b"LOG_DIR=").decode())


def test_what_is_not_known_is_said(crew: Server) -> None:
    lost = explain(crew, "req-nobody-has-ever-seen-this")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert "2 of 2 workers answered; exchanges they keep: " in lost.stderr
    wrong = explain(crew, "req-nobody-has-ever-seen-this", GATEWAY_ADMIN_KEY="another-key-altogether")
    assert wrong.returncode == 2
    assert "refuses the key (401)" in wrong.stderr


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/records/..%2f..%2f..%2fetc%2fpasswd", 400),
        ("/admin/records/../../health", 400),
        ("/admin/records/%00%0a%1b", 400),
        ("/admin/records/%F0%9F%92%A5", 400),
        ("/admin/records/m-0000000000000000-1-00000000", 404),
        ("/admin/records/" + "x" * 201, 400),
        ("/admin/records/" + "x" * 10_240, 414),
        ("/admin/records?limit=9999999999", 400),
    ],
)
def test_hostile_ids_are_refused_in_our_own_shape(crew: Server, path: str, status: int) -> None:
    answer = ask(crew.port, path, None, ADMIN)
    assert answer.status == status
    assert answer.error in ("invalid_request_error", "not_found_error")
    assert ask(crew.port, path).status == (status if status == 414 else 401)


def test_the_admin_key_goes_nowhere(crew: Server, simulator: Running) -> None:
    simulator.reset()
    bearer = (("authorization", f"Bearer {ADMIN_KEY}"), *USUAL[:3])
    for headers in ((*ADMIN, *USUAL[:3]), bearer):
        answer = ask(crew.port, "/v1/messages", message("json-0ms"), headers)
        assert (answer.status, answer.error) == (401, "authentication_error")
    assert simulator.requests() == []
    assert ask(crew.port, "/admin/records", None, bearer).status == 200
    assert ask(crew.port, "/admin/records", None, (("x-api-key", KEY),)).status == 401
    assert ask(crew.port, "/v1/messages", message("json-0ms"), USUAL).status == 200


def test_a_killed_workers_records_are_gone_and_nobody_waits_for_it(crew: Server, measured: Measured) -> None:
    with both(crew) as (one, two):
        lost, kept = post(crew, one, 1000), post(crew, two, 1000)
        os.kill(one.pid, signal.SIGKILL)
        began = time.monotonic()
        answer = kept_by(two, lost)
        took_s = time.monotonic() - began
        assert answer.status == 404
        assert took_s < BOUND_S
        measured("an answer right after a worker was killed, s", round(took_s, 3))
        until(lambda: len(crew.workers()) == 2 and one.pid not in crew.workers(), 15, "another worker")
        new = next(pid for pid in crew.workers() if pid != two.pid)
        until(lambda: any(row["pid"] == new for row in crew.lines("worker_started")), 15, "its start")
        found = kept_by(two, kept).json()
        assert (found["workers_asked"], found["workers_answered"]) == (2, 2)
        names = sorted(path.name.split("-")[2] for path in directory(crew).glob("m-*"))
        assert names == sorted(map(str, crew.workers()))


def test_a_worker_that_stands_still_is_waited_for_so_long_and_no_longer(crew: Server, measured: Measured) -> None:
    with both(crew) as (one, two):
        request_id = post(crew, two, 2000)
        os.kill(one.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = kept_by(two, request_id).json()
            took_s = time.monotonic() - began
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert (found["workers_asked"], found["workers_answered"]) == (2, 1)
        assert WAIT_S <= took_s < BOUND_S
        measured("an answer beside a worker that stands still, s", round(took_s, 3))


def test_a_reload_keeps_them_talking(crew: Server) -> None:
    before = set(crew.workers())
    crew.process.send_signal(signal.SIGHUP)
    until(lambda: len(crew.workers()) == 2 and not before & set(crew.workers()), 30, "new workers")
    until(lambda: {row["pid"] for row in crew.lines("worker_started")} >= set(crew.workers()), 15, "their start")
    request_id = f"a-request-after-a-reload-{crew.kind}"
    ask(crew.port, "/v1/messages", message("json-0ms"), (*USUAL, ("x-request-id", request_id)))
    settled(crew, request_id)
    for _ in range(4):
        found = shown(crew, request_id).json()
        assert (len(found["records"]), found["workers_answered"]) == (1, 2)


def test_no_key_was_written_anywhere(crew: Server) -> None:
    assert len(crew.lines()) > 5
    (logs,) = _log_dirs(crew)
    for text in (crew.output, *(path.read_text() for path in logs.iterdir())):
        assert ADMIN_KEY not in text
        assert KEY not in text


def test_without_our_configuration_it_says_that_it_knows_of_itself_alone(farm: Farm) -> None:
    args = "-c /dev/null --bind 127.0.0.1:0 --workers 1 --threads 4"
    with farm.own("gthread", args=args, GATEWAY_ADMIN_KEY=ADMIN_KEY) as server:
        request_id = "a-request-without-a-directory"
        ask(server.port, "/v1/messages", message("json-0ms"), (*USUAL, ("x-request-id", request_id)))
        until(lambda: shown(server, request_id).status == 200, 5, "its record")
        found = shown(server, request_id).json()
        assert (found["workers_asked"], found["workers_answered"]) == (1, 1)
        assert "were not asked" in found["note"]


def test_the_directory_is_for_their_user_alone_and_goes_away_with_them(farm: Farm) -> None:
    with farm.own("gevent", GATEWAY_ADMIN_KEY=ADMIN_KEY) as server:
        until(lambda: server.lines("worker_started"), 15)
        folder = directory(server)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_without_an_admin_key_there_is_nothing_of_it(farm: Farm) -> None:
    server = farm.shared("gevent")
    assert ask(server.port, "/admin/records", None, ADMIN).get("x-penstock-error") == "unknown_route"
    with pytest.raises(AssertionError, match="no directory"):
        directory(server)
    told = explain(server, "req-nobody-has-ever-seen-this")
    assert (told.returncode, "is GATEWAY_ADMIN_KEY set for that gateway?" in told.stderr) == (2, True)
