"""web/ops, web/health: what operators see (B5, B50, B51).

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest
from flask import Flask

from app.assembly import Assembly
from app.factory import create_app
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

    async def warm_up(self: Pool, slots: int = 1) -> tuple[bool, float]:
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
    assert set(told) == {"timestamp", "adapter_metrics", "router_metrics", "traffic", "performance"}
    adapter = told["adapter_metrics"]
    assert (adapter["status"], adapter["initialized"], adapter["request_count"]) == ("ready", True, 1)
    assert set(adapter["connection_stats"]) == {"hits", "misses", "timeouts"}
    assert adapter["configuration"] == {"max_connections": 200, "max_keepalive": 100, "chunk_size": 8192}
    assert told["router_metrics"] == {"router_status": "active", "thread_pool_active": 0, "thread_pool_size": 4}


def test_b37_slots_queue_breaker_and_keys_are_told(settings: Callable[..., Settings], upstream: Upstream) -> None:
    keys = {"ANTHROPIC_API_KEYS": "sk-a,sk-b", "ANTHROPIC_CONCURRENCY": "3", "ANTHROPIC_BUFFER_SIZE": "7"}
    client = create_app(settings(**keys)).test_client()
    assert client.get("/v1/x", buffered=True).status_code == 200
    told = client.get("/anthropic/metrics").json
    assert told is not None
    (target,) = told["traffic"]["targets"]
    slots = target["slots"]
    assert (slots["concurrency"], slots["buffer_size"], slots["running"], slots["admitted"]) == (3, 7, 0, 1)
    assert target["breaker"] == {"state": "closed", "retry_in_s": 0.0}
    assert [(one["label"], one["state"]) for one in target["credentials"]] == [
        ("key-1", "healthy"),
        ("key-2", "healthy"),
    ]
    assert sum(one["uses"] for one in target["credentials"]) == 1
    text = client.get("/metrics").get_data(as_text=True)
    for line in (
        'penstock_slots_capacity{provider="anthropic"} 3.0',
        'penstock_queue_capacity{provider="anthropic"} 7.0',
        'penstock_queue_depth{provider="anthropic"} 0.0',
        'penstock_breaker_state{provider="anthropic",state="closed"} 1.0',
        'penstock_breaker_state{provider="anthropic",state="open"} 0.0',
        'penstock_credential_state{credential="key-2",provider="anthropic",state="healthy"} 1.0',
    ):
        assert line in text
    assert "sk-" not in text and "sk-" not in str(told)


def test_b35_ready_says_when_no_upstream_can_be_used(
    settings: Callable[..., Settings], upstream: Upstream
) -> None:
    calm = {"BREAKER_MIN_CALLS": "2", "BREAKER_OPEN": "60"}
    client = create_app(settings(**calm)).test_client()
    upstream.answers(500, [])
    for _ in range(2):
        assert client.get("/v1/x", buffered=True).status_code == 500
    refused = client.get("/v1/x", buffered=True)
    assert (refused.status_code, refused.headers["x-penstock-error"]) == (503, "breaker_open")
    assert refused.json is not None and refused.json["error"]["type"] == "overloaded_error"
    assert 40 <= int(refused.headers["retry-after"]) <= 72
    ready = client.get("/ready")
    assert ready.status_code == 503
    assert ready.json is not None and "anthropic: the breaker is open" in ready.json["reasons"]


def test_b41_prometheus_counts_exchanges_and_events(app: Flask, assembly: Assembly, upstream: Upstream) -> None:
    assembly.bridge().events.append({"event": "loop_exception", "error": "x"})
    assembly.bridge().events.append({"event": "connection_opened"})
    app.test_client().get("/v1/models", buffered=True)
    text = app.test_client().get("/metrics").get_data(as_text=True)
    assert 'penstock_requests_total{model="",route="models",slug="",status="200"}' in text
    assert 'penstock_events_total{event="loop_exception"}' in text


def test_b5_metrics_can_be_switched_off(settings: Callable[..., Settings], upstream: Upstream) -> None:
    client = create_app(settings(ENABLE_METRICS_ENDPOINT="false")).test_client()
    assert client.get("/metrics").status_code == 404


def test_a_silent_loop_has_no_statistics(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(assembly.bridge(), "call", silent)
    assert assembly.health.traffic().targets == ()
