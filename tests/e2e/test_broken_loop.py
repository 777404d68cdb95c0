"""The background loop dies or hangs: the thread pool serves on, the worker is replaced when idle (B51)."""

from __future__ import annotations

import pytest

from app.simulator import golden
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import Raw, ask, opened, post, terminal_error

APP = "tests.e2e.apps.breakable:app"


def _break(server: Server, how: str) -> None:
    assert ask(server.port, f"/break/{how}", b"").status == 200


def _serves_on(server: Server, reason: str) -> None:
    """JSON and streams through the pool, and the pages say so."""
    stays, head = opened(server.port, "stream-10000x20ms")
    with stays:
        for _ in range(3):
            assert post(server.port, "json-0ms").json()["type"] == "message"
        assert post(server.port, "golden", stream=True).body == golden.GOLDEN_SSE
        ready = ask(server.port, "/ready")
        assert ready.status == 200
        assert (ready.json()["status"], ready.json()["reasons"]) == ("degraded", [reason])
        router = ask(server.port, "/anthropic/metrics").json()["router_metrics"]
        assert router["router_status"] == reason
        assert 1 <= router["thread_pool_active"] <= router["thread_pool_size"] == 2
        got = b""
        for piece in stays.pieces(head):
            got += piece
            if got.count(b"text_delta") >= 40:
                break


@pytest.mark.parametrize(
    ("kind", "how", "reason"),
    [("gevent", "stop", "loop_dead"), ("gthread", "stop", "loop_dead"), ("gevent", "wedge", "loop_wedged")],
)
def test_requests_are_served_on(farm: Farm, kind: str, simulator: Running, how: str, reason: str) -> None:
    with farm.own(kind, app=APP, ROUTER_THREAD_POOL_SIZE=2) as server:
        assert post(server.port, "json-0ms").status == 200
        (worker,) = server.workers()
        with Raw(server.port) as busy:  # an upload that has begun keeps the worker from being replaced
            busy.send(b"POST /v1/files HTTP/1.1\r\nHost: g\r\naccept: */*\r\nContent-Length: 2000000\r\n\r\nx")
            until(lambda: ask(server.port, "/ready").json()["in_flight"] == 1)
            _break(server, how)
            until(lambda: ask(server.port, "/ready").json()["status"] == "degraded", 8)
            _serves_on(server, reason)
            assert server.workers() == [worker]
        until(lambda: server.workers() not in ([], [worker]), 15, "another worker")
        until(lambda: ask(server.port, "/ready").json()["status"] == "ready", 10)
        answer = post(server.port, "json-0ms")
        assert answer.status == 200
    fallbacks = [row["fallback"] for row in server.lines()]
    assert fallbacks[0] is False
    assert fallbacks[1:-1].count(True) == 5
    assert fallbacks[-1] is False
    assert [row["reason"] for row in server.lines("worker_replaced")] == [reason]
    assert server.lines("bridge_degraded")[0]["reason"] == reason


def test_streams_on_the_dead_loop_end_with_their_error(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind, app=APP) as server:
        raw, head = opened(server.port, "stream-10000x20ms")
        _break(server, "stop")
        with raw:
            assert terminal_error(raw.body(head))["error"]["type"] == "api_error"
        until(lambda: simulator.stats()["open_streams"] == 0)
