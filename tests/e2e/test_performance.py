"""The performance monitor over two workers: one sum from either, nothing lost with a worker, alerts (B5, B44)."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.test_workers_share import Side, both_up, sides
from tests.e2e.wire import ask, post

SECRET = "hook-secret-b7e1"
OFF: dict[str, Any] = {
    "ALERT_P95_LATENCY_MS": 0,
    "ALERT_P99_LATENCY_MS": 0,
    "ALERT_MEMORY_GROWTH_MB": 0,
    "ALERT_REQUESTS_PER_SECOND_MIN": 0,
}


class Receiver:
    """A webhook's server: refuses so many times, then takes what comes.

    Attributes:
        heard: Every body, those refused included.
        taken: The bodies it took.
        refuses: How many more it refuses.
    """

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.taken: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        self.refuses = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.paths.add(self.path)
                outer.heard.append(body)
                outer.refuses -= 1
                if outer.refuses < 0:
                    outer.taken.append(body)
                self.send_response(200 if outer.refuses < 0 else 500)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quietly."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{SECRET}?token={SECRET}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def performance(side: Side | Server) -> dict[str, Any]:
    answer = side.ask("/anthropic/metrics") if isinstance(side, Side) else ask(side.port, "/anthropic/metrics")
    found: dict[str, Any] = answer.json()["performance"]
    return found


def minute(side: Side | Server) -> dict[str, Any]:
    found: dict[str, Any] = performance(side)["windows"]["1m"]
    return found


def another_instead(server: Server, pid: int) -> None:
    """Kill that worker and wait for the one that takes its place."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in server.workers() and len(server.workers()) == 2, 10, "another worker")
    started = server.workers()
    until(lambda: {row["pid"] for row in server.lines("worker_started")} >= set(started), 15, "its start")


def test_b44_error_events_in_streams_are_failures_here_and_there(farm: Farm) -> None:
    """The monitor and the metrics have the same types."""
    with farm.own("gevent") as server:
        for scenario in ("streamerror-1", "overloaded", "stream-2x1ms"):
            assert post(server.port, scenario, stream=True).status == 200
        until(lambda: minute(server)["requests"] == 3, 5, "three streams")
        assert {name: row["errors"] for name, row in minute(server)["by_type"].items()} == {"upstream_529": 2}
        page = ask(server.port, "/metrics").body.decode()
        assert 'penstock_failures_total{route="messages",type="upstream_529"} 2.0' in page


def test_b44_either_worker_answers_for_both_and_for_those_that_are_gone(farm: Farm, simulator: Running) -> None:
    with farm.own("gevent", WEB_CONCURRENCY=2) as server:
        both_up(server)
        with sides(server) as (one, two):
            assert [one.post().status for _ in range(7)] + [two.post().status for _ in range(5)] == [200] * 12
            assert two.post("status-500").status == 500
            for side in (one, two):
                until(lambda side=side: minute(side)["requests"] == 13, 5, "the sum")  # type: ignore[misc]
                found = performance(side)
                assert (found["enabled"], found["scope"], found["workers"]) == (True, "node", 2)
                assert set(found["windows"]) == {"10s", "1m", "5m", "1h"}
                assert found["windows"]["1h"]["requests"] == 13
                told = minute(side)
                assert (told["errors"], told["by_type"]) == (
                    1,
                    {"upstream_5xx": {"errors": 1, "error_rate": 0.0769}},
                )
                assert told["by_endpoint"]["messages"]["requests"] == 13
                assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p95"] <= told["latency_ms"]["p99"]
            another_instead(server, one.pid)
            assert minute(two)["requests"] == 13
        with sides(server) as both:
            assert [side.post().status for side in both] == [200, 200]
            for side in both:
                until(lambda side=side: minute(side)["requests"] == 15, 5, "past and present")  # type: ignore[misc]


def test_b44_an_alert_is_told_once_to_everyone_and_resolved(
    farm: Farm, simulator: Running, receiver: Receiver
) -> None:
    receiver.refuses = 2
    settings = {**OFF, "ALERT_WEBHOOK_URL": receiver.url, "WEB_CONCURRENCY": 2}
    with farm.own("gevent", app="tests.e2e.apps.quick_alerts:app", **settings) as server:
        both_up(server)
        assert {post(server.port, "status-500").status for _ in range(25)} == {500}
        until(lambda: receiver.taken, 10, "the alert")
        (alert,) = receiver.taken
        assert [one["alert"] for one in receiver.heard] == [alert["alert"]] * 3
        assert (alert["state"], alert["rule"], alert["value"], alert["threshold"]) == (
            "firing",
            "error_rate",
            1.0,
            0.05,
        )
        assert (alert["window_s"], alert["host"]) == (60, os.uname().nodename)
        assert "error" not in alert and "firing: share of exchanges that failed" in alert["text"]
        until(lambda: told(server, "penstock_alert_deliveries_total", 'result="delivered"') == 1, 5)
        assert told(server, "penstock_alerts_total", 'rule="error_rate"') == 1
        assert told(server, "penstock_alert_firing", 'rule="error_rate"') == 1
        (line,) = until_lines(server, "alert_firing")
        assert (line["level"], line["rule"], line["value"]) == ("warning", "error_rate", 1.0)
        assert len(until_lines(server, "alert_delivery_retried")) == 2
        (state,) = performance(server)["alerts"]
        assert (state["rule"], state["state"]) == ("error_rate", "firing")

        time.sleep(1.0)  # that it was delivered is written down within a quarter second
        for pid in server.workers():  # whichever of them watched is gone then
            another_instead(server, pid)
        until(lambda: told(server, "penstock_alert_firing", 'rule="error_rate"') == 1, 5, "one that watches")
        assert {post(server.port, "json-0ms").status for _ in range(600)} == {200}
        until(lambda: len(receiver.taken) == 2, 10, "its end")
        end = receiver.taken[1]
        assert (end["alert"], end["state"], end["rule"]) == (alert["alert"], "resolved", "error_rate")
        assert end["value"] <= 0.045
        assert len(receiver.heard) == 4
        assert [row["level"] for row in until_lines(server, "alert_resolved")] == ["warning"]
        assert len(server.lines("alert_firing")) == 1
        until(lambda: told(server, "penstock_alert_firing", 'rule="error_rate"') == 0, 5)

        until(lambda: len(server.lines("alert_callback_failed")) == 2, 5)
        callbacks = [line for line in server.output.splitlines() if line.startswith("callback: ")]
        assert callbacks == ["callback: firing error_rate", "callback: resolved error_rate"]
        assert [row["callback"] for row in server.lines("alert_callback_failed")] == ["stumble", "stumble"]
        assert receiver.paths == {f"/{SECRET}?token={SECRET}"}
        pages = [ask(server.port, path).body.decode() for path in ("/ready", "/metrics", "/anthropic/metrics")]
        assert not [text for text in (server.output, *pages) if SECRET in text]


def test_b44_a_webhook_that_takes_nothing_is_a_reason_in_ready_until_it_does(
    farm: Farm, simulator: Running, receiver: Receiver
) -> None:
    receiver.refuses = 1_000_000
    settings = {**OFF, "ALERT_WEBHOOK_URL": receiver.url, "WEB_CONCURRENCY": 2}
    reason = "alerts: the webhook was not told of error_rate: status 500"
    with farm.own("gevent", app="tests.e2e.apps.quick_alerts:app", **settings) as server:
        both_up(server)
        assert {post(server.port, "status-500").status for _ in range(25)} == {500}
        with sides(server) as both:
            for side in both:  # also of the worker that does not watch
                until(lambda side=side: reason in side.ask("/ready").json()["reasons"], 10)  # type: ignore[misc]
                ready = side.ask("/ready")
                assert (ready.status, ready.json()["status"]) == (200, "degraded")
            assert told(server, "penstock_alert_deliveries_total", 'result="failed"') == 1
            assert [row["error"] for row in until_lines(server, "alert_undelivered")] == ["status 500"]
            receiver.refuses = 0
            assert {post(server.port, "json-0ms").status for _ in range(600)} == {200}
            until(lambda: receiver.taken, 10, "the end")
            for side in both:
                until(lambda side=side: side.ask("/ready").json()["status"] == "ready", 10)  # type: ignore[misc]


def test_b44_it_can_be_switched_off(farm: Farm, simulator: Running) -> None:
    with farm.own("gthread", ENABLE_PERFORMANCE_MONITOR="false") as server:
        assert post(server.port, "json-0ms").status == 200
        assert performance(server) == {"enabled": False}


@pytest.mark.parametrize("args", ["-k gevent --preload", "-k gthread", "-k sync"])
def test_b44_other_workers_and_an_application_loaded_ahead(farm: Farm, simulator: Running, args: str) -> None:
    kind = args.split()[1]
    with farm.own(kind, args=args.partition(kind)[2], WEB_CONCURRENCY=2) as server:
        both_up(server)
        assert {post(server.port, "json-0ms").status for _ in range(6)} == {200}
        until(lambda: minute(server)["requests"] == 6, 5, "the sum")
        assert performance(server)["scope"] == "node"


def told(server: Server, name: str, label: str) -> float | None:
    """A sample of that metric, or None."""
    text = ask(server.port, "/metrics").body.decode()
    found = [line for line in text.splitlines() if line.startswith(f"{name}{{") and label in line]
    return float(found[0].rpartition(" ")[2]) if found else None


def until_lines(server: Server, event: str) -> list[dict[str, Any]]:
    """Log lines of an event, as soon as there are any."""
    until(lambda: server.lines(event), 5, event)
    return server.lines(event)
