"""SIGTERM: no new work, every stream ends properly, the process is gone in time (B50)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Measured, until
from tests.e2e.wire import USUAL, Answer, Raw, Truncated, message, opened, request, terminal_error


def _kept(port: int) -> Raw:
    """A connection that is kept alive: one request was answered on it."""
    raw = Raw(port)
    assert raw.ask("/health").status == 200
    return raw


def _ask_on(raw: Raw, data: bytes) -> Answer | None:
    """Ask again and again; the refusal that ends the connection, or None where it was closed instead.

    A request that had begun when the signal came may be refused without that; the next one is not.
    """
    kept = 0
    with raw:
        while kept <= 1:
            try:
                raw.send(data)
                answer = raw.answer()
            except (ConnectionError, Truncated):
                return None
            if answer.get("connection").lower() == "close":
                return answer
            kept += answer.status != 200
    raise AssertionError("refused twice on a connection that is kept")


def test_twenty_live_streams(farm: Farm, kind: str, simulator: Running, measured: Measured) -> None:
    """Ten that talk, five that are silent, five that wait for their head; and requests on kept connections."""
    with farm.own(kind, DRAIN_TIMEOUT=2) as server:
        kept = [_kept(server.port) for _ in range(8)]  # more would take all of gthread's threads
        scenarios = ["stream-10000x20ms"] * 10 + ["stall-2"] * 5
        streams = [opened(server.port, scenario) for scenario in scenarios]
        waiting = []
        for stream in (True, True, True, False, False):
            raw = Raw(server.port)
            raw.send(request("/v1/messages", message("hang", stream=stream), USUAL))
            waiting.append(raw)
        until(lambda: simulator.stats()["open_streams"] == 20)
        with ThreadPoolExecutor(len(kept)) as pool:
            ready = [pool.submit(_ask_on, raw, request("/ready")) for raw in kept[:4]]
            posted = request("/v1/messages", message("json-0ms"), USUAL)
            asked = [pool.submit(_ask_on, raw, posted) for raw in kept[4:]]
            began = time.monotonic()
            server.process.terminate()
        for raw, head in streams:
            with raw:
                assert terminal_error(raw.body(head))["error"]["type"] == "overloaded_error"
        for raw in waiting:
            with raw:
                answer = raw.answer()
                assert (answer.status, answer.error) == (503, "overloaded_error")
        assert server.process.wait(10) == 0
        took = time.monotonic() - began
    measured("exit_s", took)
    assert 2.0 <= took < 2.0 + 3.0 + 2.0
    until(lambda: simulator.stats()["open_streams"] == 0)
    _check_refusals([one.result() for one in ready], [one.result() for one in asked])


def _check_refusals(ready: list[Answer | None], asked: list[Answer | None]) -> None:
    """What was answered after the signal said no, and closed; an idle connection may have been closed instead."""
    for answer in (*ready, *asked):
        if answer is None or answer.status == 200:  # 200: it had begun before the signal
            continue
        assert answer.status == 503
        assert answer.get("retry-after") == "1"
        assert answer.get("connection").lower() == "close"
    for answer in asked:
        if answer is not None and answer.status == 503:
            assert answer.error == "overloaded_error"
            assert answer.get("x-penstock-error") == "draining"
            assert answer.get("x-should-retry") == "true"
    assert any(answer is not None and answer.status == 503 for answer in ready)
    assert any(answer is not None and answer.status == 503 for answer in asked)


def test_streams_that_end_in_time_end_normally(farm: Farm, kind: str, simulator: Running) -> None:
    """And the process does not wait for the rest of DRAIN_TIMEOUT."""
    with farm.own(kind, DRAIN_TIMEOUT=20) as server:
        streams = [opened(server.port, "stream-40x25ms") for _ in range(5)]
        waiting = Raw(server.port)
        waiting.send(request("/v1/messages", message("json-700ms"), USUAL))
        until(lambda: simulator.stats()["open_streams"] == 6)
        began = time.monotonic()
        server.process.terminate()
        for raw, head in streams:
            with raw:
                body = raw.body(head)
                assert body.count(b"text_delta") == 40
                assert b"event: error" not in body
        with waiting:
            assert waiting.answer().status == 200
        assert server.process.wait(15) == 0
    assert time.monotonic() - began < 10


def test_idle_connections_do_not_hold_the_worker(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind, DRAIN_TIMEOUT=20) as server:
        kept = [_kept(server.port) for _ in range(10)]
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(15) == 0
        assert time.monotonic() - began < 8
        for raw in kept:
            raw.close()
    assert server.lines("worker_draining")
    assert server.lines("worker_stopped")


def test_connections_without_a_request_do_not_hold_the_worker(farm: Farm, kind: str, simulator: Running) -> None:
    """As browsers and load balancers open them in advance; a gthread worker gives them until its grace is over."""
    with farm.own(kind, DRAIN_TIMEOUT=20 if kind == "gevent" else 1) as server:
        fresh = [Raw(server.port) for _ in range(3)]
        _kept(server.port).close()
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(15) == 0
        took = time.monotonic() - began
        for raw in fresh:
            raw.close()
    assert took < 8


@pytest.mark.parametrize(("kind", "number"), [("gevent", 2), ("gthread", 3)], ids=["SIGINT", "SIGQUIT"])
def test_a_quick_stop_is_quick(farm: Farm, kind: str, simulator: Running, number: int) -> None:
    with farm.own(kind, DRAIN_TIMEOUT=20) as server:
        raw, _ = opened(server.port, "stall-1")
        began = time.monotonic()
        assert server.end(number) == 0
        assert time.monotonic() - began < 8
        raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0)


def test_a_sync_worker_drains_too(farm: Farm, simulator: Running) -> None:
    with farm.own("sync", DRAIN_TIMEOUT=1) as server:
        raw, head = opened(server.port, "stream-10000x20ms")
        server.process.terminate()
        with raw:
            assert terminal_error(raw.body(head))["error"]["type"] == "overloaded_error"
        assert server.process.wait(10) == 0


def test_a_reload_loses_no_stream(farm: Farm, kind: str, simulator: Running) -> None:
    """SIGHUP: the old worker drains while a new one serves."""
    with farm.own(kind, DRAIN_TIMEOUT=20) as server:
        before = server.workers()
        raw, head = opened(server.port, "stream-60x25ms")
        server.process.send_signal(1)
        until(lambda: set(server.workers()) - set(before), 10, "a new worker")
        with raw:
            body = raw.body(head)
        assert body.count(b"text_delta") == 60
        until(lambda: not set(server.workers()) & set(before), 10, "the end of the old worker")
