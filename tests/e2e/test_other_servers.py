"""The same application under other servers, several workers, preload, and inside other applications (B6)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from app.simulator import golden
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, free_port, until
from tests.e2e.wire import USUAL, Head, Raw, ask, message, opened, post, request, terminal_error

FLASK = ["-m", "flask", "--app", "wsgi", "run", "--host", "127.0.0.1", "--port"]
WAITRESS = ["-m", "waitress", "--host", "127.0.0.1", "--port"]


@pytest.fixture(params=["flask", "waitress"])
def other(request: pytest.FixtureRequest, farm: Farm, simulator: Running) -> Iterator[Server]:
    port = free_port()
    rest = FLASK if request.param == "flask" else WAITRESS
    command = [sys.executable, *rest, str(port), *([] if request.param == "flask" else ["wsgi:app"])]
    with farm.other(str(request.param), command, port) as server:
        simulator.reset()
        yield server


def test_json_and_streams(other: Server, simulator: Running) -> None:
    for _ in range(3):
        assert post(other.port, "golden").body == golden.GOLDEN_JSON
        assert post(other.port, "golden", stream=True).body == golden.GOLDEN_SSE
    assert post(other.port, "status-429").status == 429
    broken = post(other.port, "reset-3", stream=True)
    assert terminal_error(broken.body)["error"]["type"] == "api_error"
    last = simulator.last()
    assert last is not None
    sent = {name: value for name, value in last["headers"]}
    assert {name: sent[name] for name, _ in USUAL} == dict(USUAL)
    assert ask(other.port, "/v2/x").error == "not_found_error"


def test_events_come_one_by_one(other: Server) -> None:
    raw, head = opened(other.port, "stall-2", timeout_s=10)
    got = b""
    with raw:
        for piece in raw.pieces(head):
            got += piece
            if got.count(b"text_delta") == 2:
                break


def test_a_client_that_leaves(other: Server, simulator: Running) -> None:
    """At the latest with the next write that fails; waitress tells sooner."""
    raw, _ = opened(other.port, "stream-10000x20ms")
    raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0)
    assert simulator.stats()["client_aborts"] == 1


@pytest.mark.parametrize(("kind", "args"), [("gevent", ""), ("gevent", "--preload"), ("gthread", "--preload")])
def test_two_workers(farm: Farm, kind: str, simulator: Running, args: str) -> None:
    """Each its own loop and connections; one page of metrics for both (B41)."""
    with farm.own(kind, args=args, WEB_CONCURRENCY=2) as server:
        workers = until_two(server)
        for number in range(40):
            assert post(server.port, "golden", stream=number % 2 == 0).status == 200
        streams = [opened(server.port, "stream-20x20ms") for _ in range(6)]
        for raw, head in streams:
            with raw:
                assert raw.body(head).count(b"text_delta") == 20
        started = {row["pid"] for row in server.lines("worker_started")}
        assert started == set(workers)
        counted = 'penstock_requests_total{model="claude-sim-golden",route="messages",slug="",status="200"} 40.0'
        until(lambda: counted in ask(server.port, "/metrics").body.decode(), 5, "a page with what both counted")
    assert {row["pid"] for row in server.lines("worker_stopped")} == set(workers)


def until_two(server: Server) -> list[int]:
    until(lambda: len(server.lines("worker_started")) == 2, 10, "two workers")
    return server.workers()


def test_a_worker_that_dies_is_replaced(farm: Farm, simulator: Running) -> None:
    with farm.own("gevent") as server:
        (worker,) = server.workers()
        raw, _ = opened(server.port, "stall-1")
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.workers() not in ([], [worker]), 10, "another worker")
        until(lambda: post(server.port, "json-0ms").status == 200, 10)
        raw.close()
        until(lambda: simulator.stats()["open_streams"] == 0)
        assert "penstock_in_flight 0.0" in ask(server.port, "/metrics").body.decode()


def test_a_blueprint_in_an_application(farm: Farm, kind: str, simulator: Running) -> None:
    """Its routes, hooks and error handlers stay as they are."""
    with farm.own(kind, app="tests.e2e.apps.mounted:flask_app", ready="/own") as server:
        assert ask(server.port, "/own").json() == {"own": True}
        assert ask(server.port, "/fails").body == b"the application's own 404"
        assert ask(server.port, "/v1/messages").body == b"the application's own 404"
        for mount in ("/llm/v1", "/llm/anthropic/v1"):
            answer = ask(server.port, f"{mount}/messages?a=%2F", message("golden", stream=True), USUAL)
            assert answer.body == golden.GOLDEN_SSE
            assert answer.get("x-own-hook") != ""
            last = simulator.last()
            assert last is not None
            assert last["target"] == "/v1/messages?a=%2F"
        assert ask(server.port, "/llm/health").json() == {"status": "ok"}
        assert ask(server.port, "/llm/ready").status == 200
        assert ask(server.port, "/llm/nothing").error == "not_found_error"
        assert ask(server.port, "/llm/v1/%2e%2e/own").error == "invalid_request_error"


def test_a_middleware_in_front_of_any_application(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind, app="tests.e2e.apps.mounted:wrapped", ready="/") as server:
        for path in ("/", "/v1/messages", "/llmx", "/other/llm/v1"):
            assert ask(server.port, path).body == f"plain |{path}".encode()
        answer = ask(server.port, "/llm/v1/messages?q=%20", message("golden"), USUAL)
        assert answer.body == golden.GOLDEN_JSON
        last = simulator.last()
        assert last is not None
        assert last["target"] == "/v1/messages?q=%20"
        assert ask(server.port, "/llm/health").json() == {"status": "ok"}
        assert ask(server.port, "/llm/").error == "not_found_error"
        raw, head = opened_at(server.port, "/llm/anthropic/v1/messages", "stream-5x10ms")
        with raw:
            assert raw.body(head).count(b"text_delta") == 5


def opened_at(port: int, target: str, scenario: str) -> tuple[Raw, Head]:
    raw = Raw(port)
    raw.send(request(target, message(scenario, stream=True), USUAL))
    return raw, raw.head()
