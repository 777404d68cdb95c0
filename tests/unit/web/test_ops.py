"""web/ops, web/health: what operators see (B5, B50, B51).

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest
from flask import Flask

from app.factory import Assembly, create_app
from app.settings import Settings
from app.upstream.pool import Pool

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream


@pytest.fixture
def app(settings: Callable[..., Settings], upstream: Upstream) -> Flask:
    return create_app(settings())


@pytest.fixture
def assembly(app: Flask) -> Assembly:
    found: Assembly = app.extensions["penstock"]
    return found


def test_b5_alive_and_ready(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/health").json == {"status": "ok"}
    answer = client.get("/ready")
    assert (answer.status_code, answer.json and answer.json["status"]) == (200, "ready")


def test_b50_draining_is_not_ready(app: Flask, assembly: Assembly) -> None:
    assembly.life.drain()
    answer = app.test_client().get("/ready")
    assert answer.json is not None
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (answer.json["status"], answer.json["reasons"]) == ("draining", ["draining"])


def test_b51_degraded_is_ready_and_says_why(app: Flask, assembly: Assembly) -> None:
    main = assembly.bridge().main
    main.alive = False
    answer = app.test_client().get("/ready")
    main.alive = True
    assert answer.json is not None
    assert (answer.status_code, answer.json["status"], answer.json["reasons"]) == (200, "degraded", ["loop_dead"])


def test_b5_an_unreachable_upstream_is_not_ready_until_it_is_back(
    app: Flask, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = [False, True]

    async def warm_up(self: Pool) -> tuple[bool, float]:
        return worked.pop(0), 0.0

    monkeypatch.setattr(Pool, "warm_up", warm_up)
    client = app.test_client()
    upstream.fails = httpx.ConnectError("refused")
    assert client.get("/v1/x", buffered=True).status_code == 502
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").status_code == 200


def test_b5_an_answer_is_proof_that_the_upstream_is_back(app: Flask, upstream: Upstream) -> None:
    client = app.test_client()
    upstream.fails = httpx.ConnectError("refused")
    client.get("/v1/x", buffered=True)
    upstream.fails = None
    client.get("/v1/x", buffered=True)
    assert client.get("/ready").status_code == 200


def test_b5_the_adapters_metrics_have_their_exact_shape(app: Flask, upstream: Upstream) -> None:
    client = app.test_client()
    client.get("/v1/x", buffered=True)
    told = client.get("/anthropic/metrics").json
    assert told is not None
    assert set(told) == {"timestamp", "adapter_metrics", "router_metrics"}
    adapter = told["adapter_metrics"]
    assert (adapter["status"], adapter["initialized"], adapter["request_count"]) == ("ready", True, 1)
    assert set(adapter["connection_stats"]) == {"hits", "misses", "timeouts"}
    assert adapter["configuration"] == {"max_connections": 200, "max_keepalive": 100, "chunk_size": 8192}
    assert told["router_metrics"] == {"router_status": "active", "thread_pool_active": 0, "thread_pool_size": 4}


def test_b41_prometheus_counts_exchanges_and_events(app: Flask, assembly: Assembly, upstream: Upstream) -> None:
    assembly.bridge().events.append({"event": "loop_exception", "error": "x"})
    assembly.bridge().events.append({"event": "connection_opened"})
    app.test_client().get("/v1/models", buffered=True)
    text = app.test_client().get("/metrics").get_data(as_text=True)
    assert 'penstock_requests_total{route="models",slug="",status="200"}' in text
    assert 'penstock_events_total{event="loop_exception"}' in text


def test_b5_metrics_can_be_switched_off(settings: Callable[..., Settings], upstream: Upstream) -> None:
    client = create_app(settings(ENABLE_METRICS_ENDPOINT="false")).test_client()
    assert client.get("/metrics").status_code == 404


def test_a_silent_loop_has_no_statistics(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(assembly.bridge(), "call", silent)
    assert assembly.health.stats() == ()
