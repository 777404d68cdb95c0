"""An upstream that stops answering while its connections stay open, end to end: found, replaced, and told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import Answer, ask, opened, post, terminal_error
from tests.freezing import Forwarder, forwarding

BOUND_S = 1.25 + 1.0 + 5.0
"""Interval, timeout, and what a busy machine may need; without PINGs it would be minutes."""
LIMITS: dict[str, Any] = {"UPSTREAM_PING_INTERVAL": 1, "UPSTREAM_PING_TIMEOUT": 1, "RETRY_MAX_ATTEMPTS": 3}


@pytest.fixture
def between(simulator: Running) -> Iterator[Forwarder]:
    """In front of the simulator's TLS port."""
    with forwarding(int(simulator.tls_url.rpartition(":")[2])) as made:
        yield made


@pytest.fixture
def gateway(farm: Farm, kind: str, between: Forwarder) -> Iterator[Server]:
    upstream = f"https://localhost:{between.port}"
    with farm.own(kind, ANTHROPIC_UPSTREAM_URL=upstream, LOG_LEVEL="debug", **LIMITS) as server:
        yield server


def _upstream(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = ask(server.port, "/ready").json()["upstreams"][0]
    return found


def test_a_frozen_connection_is_found_and_replaced(
    gateway: Server, simulator: Running, between: Forwarder
) -> None:
    stream, head = opened(gateway.port, "stream-4000x10ms")
    answers: list[Answer] = []
    headless = threading.Thread(target=lambda: answers.append(post(gateway.port, "delay-1500ms")))
    headless.start()
    until(lambda: simulator.stats()["open_streams"] == 2, what="both streams")
    between.freeze()
    began = time.monotonic()
    with stream:
        body = stream.body(head)
    assert time.monotonic() - began < BOUND_S
    assert terminal_error(body)["error"]["type"] == "api_error"
    headless.join(20)
    (answer,) = answers
    assert answer.status == 200, "tried again on a new connection: no head had come"
    assert post(gateway.port, "json-0ms").status == 200
    assert _upstream(gateway)["unresponsive"] == 1
    assert (between.accepted, _upstream(gateway)["open_connections"]) == (2, 1)
    (row,) = gateway.lines("connection_unresponsive")
    assert (row["level"], row["broken"], row["lane"]) == ("warning", 2, 1)
    until(
        lambda: b'penstock_events_total{event="connection_unresponsive"} 1.0' in ask(gateway.port, "/metrics").body
    )
    until(lambda: len(gateway.lines()) == 3, what="the exchanges' lines")
    broken = next(line for line in gateway.lines() if line["slug"])
    assert broken["slug"] == "stream_broken" and "PING" in broken["cause"]
    again = next(line for line in gateway.lines() if line["model"] == "claude-sim-delay-1500ms")
    assert [attempt["outcome"] for attempt in again["attempts"]] == ["protocol_broken", "200"]


def test_a_slow_upstream_is_left_alone(gateway: Server, simulator: Running, between: Forwarder) -> None:
    """Four intervals without a word but the answers to PINGs."""
    assert post(gateway.port, "slowhead-4000").status == 200
    assert (_upstream(gateway)["unresponsive"], between.accepted) == (0, 1)


def test_connections_are_told_under_the_requests_id(gateway: Server, between: Forwarder) -> None:
    for number in range(2):
        post(gateway.port, "json-0ms", headers=(("x-request-id", f"router-given-request-id-{number}"),))
    until(lambda: gateway.lines("connection_reused"), what="the second request's line")
    (opened_,), (reused,) = gateway.lines("connection_opened"), gateway.lines("connection_reused")
    assert opened_["request_id"] == "router-given-request-id-0"
    assert reused["request_id"] == "router-given-request-id-1"
    assert {opened_["level"], reused["level"]} == {"debug"}
    assert min(opened_["connect_ms"], opened_["tls_ms"]) > 0.0 <= opened_["settings_ms"]
