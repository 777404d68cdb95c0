"""Connections as an operator counts them, and the pages that show them (B5, B41)."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, free_port, until
from tests.e2e.wire import Answer, ask, opened, post

SHAPE = {
    "timestamp": None,
    "adapter_metrics": {
        "status": None,
        "initialized": None,
        "request_count": None,
        "connection_stats": {"hits": None, "misses": None, "timeouts": None},
        "configuration": {"max_connections": None, "max_keepalive": None, "chunk_size": None},
    },
    "router_metrics": {"router_status": None, "thread_pool_active": None, "thread_pool_size": None},
}


def _shape(data: object) -> object:
    return {key: _shape(value) for key, value in data.items()} if isinstance(data, dict) else None


def _samples(server: Server) -> dict[str, float]:
    """Prometheus samples as ``name{label values}``."""
    answer = ask(server.port, "/metrics")
    assert answer.status == 200
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = ",".join(sample.labels[name] for name in sorted(sample.labels))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_two_requests_one_handshake(farm: Farm, kind: str, simulator: Running) -> None:
    """After more than the keepalive's silence there is a second one."""
    with farm.own(kind, ANTHROPIC_KEEPALIVE_EXPIRY=1) as server:
        for stream in (False, True):
            assert post(server.port, "json-0ms", stream=stream).status == 200
        assert simulator.stats()["tls_handshakes"] == 1
        time.sleep(2.2)
        assert post(server.port, "json-0ms").status == 200
        assert simulator.stats()["tls_handshakes"] == 2
        stats = ask(server.port, "/anthropic/metrics").json()["adapter_metrics"]["connection_stats"]
        assert stats == {"hits": 1, "misses": 2, "timeouts": 0}


def test_the_first_request_finds_a_warm_connection(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind, PRODUCTION_WARMUP_CONNECTIONS="true") as server:
        until(lambda: simulator.stats()["tls_handshakes"] == 1, 10, "the warm connection")
        assert post(server.port, "json-0ms").status == 200
        assert simulator.stats()["tls_handshakes"] == 1


def test_a_cold_burst_opens_a_handful(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind) as server:
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(post(server.port, "json-50ms"))) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200] * 30
        assert simulator.stats()["tls_handshakes"] <= 4


def test_the_adapters_page(farm: Farm, kind: str, simulator: Running) -> None:
    """Its keys exactly, its values true."""
    with farm.own(
        kind, ANTHROPIC_MAX_CONNECTIONS=7, ANTHROPIC_CHUNK_SIZE=5000, ROUTER_THREAD_POOL_SIZE=3
    ) as server:
        for _ in range(5):
            post(server.port, "json-0ms")
        data = ask(server.port, "/anthropic/metrics").json()
        assert _shape({name: data[name] for name in SHAPE}) == SHAPE
        datetime.fromisoformat(data["timestamp"])
        stats = simulator.stats()
        assert data["adapter_metrics"] | {"timestamp": 0} == {
            "timestamp": 0,
            "status": "ready",
            "initialized": True,
            "request_count": 5,
            "connection_stats": {
                "hits": 5 - stats["tls_handshakes"],
                "misses": stats["tls_handshakes"],
                "timeouts": 0,
            },
            "configuration": {"max_connections": 7, "max_keepalive": 100, "chunk_size": 5000},
        }
        assert data["router_metrics"] == {
            "router_status": "active",
            "thread_pool_active": 0,
            "thread_pool_size": 3,
        }


def test_the_prometheus_page(farm: Farm, kind: str, simulator: Running) -> None:
    with farm.own(kind) as server:
        for scenario in ("json-0ms", "json-0ms", "status-529"):
            post(server.port, scenario)
        ask(server.port, "/v1/../x")
        raw, _ = opened(server.port, "stall-1")
        assert _samples(server)["penstock_in_flight{}"] == 1
        raw.close()
        until(lambda: _samples(server)["penstock_in_flight{}"] == 0)
        found = _samples(server)
        assert found["penstock_requests_total{claude-sim-json-0ms,messages,,200}"] == 2
        assert found["penstock_requests_total{claude-sim-status-529,messages,,529}"] == 1
        assert found["penstock_requests_total{,other,invalid_request,400}"] == 1
        assert found["penstock_client_departures_total{messages}"] == 1
        assert found["penstock_upstream_tls_handshakes_total{anthropic}"] == simulator.stats()["tls_handshakes"]
        assert found["penstock_degraded{}"] == 0


def test_the_pages_can_be_switched_off(farm: Farm, simulator: Running) -> None:
    with farm.own("gevent", ENABLE_METRICS_ENDPOINT="false") as server:
        assert ask(server.port, "/metrics").status == 404
        assert ask(server.port, "/health").json() == {"status": "ok"}
        assert ask(server.port, "/ready").status == 200


def test_ready_knows_of_a_failed_warm_up(farm: Farm, kind: str) -> None:
    """Before any request: a deploy with a wrong upstream does not pass its readiness check."""
    with farm.own(
        kind, upstream=f"https://localhost:{free_port()}", PRODUCTION_WARMUP_CONNECTIONS="true"
    ) as server:
        until(lambda: ask(server.port, "/ready").status == 503, 10, "not ready")


def test_ready_follows_the_upstream(farm: Farm, kind: str, tmp_path: Path) -> None:
    """503 while it cannot be reached, 200 when it is back; requests get a 502 that says to try again."""
    port = free_port()
    with farm.own(kind, upstream=f"http://127.0.0.1:{port}") as server:
        answer = post(server.port, "json-0ms")
        assert (answer.status, answer.error) == (502, "api_error")
        assert answer.get("x-penstock-error") == "connect_failed"
        assert answer.get("x-should-retry") == "true"
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.json()["status"]) == (503, "unavailable")
        assert ask(server.port, "/health").status == 200
        with running(Options(plain_port=port)):
            until(lambda: ask(server.port, "/ready").status == 200, 10, "ready")
            assert post(server.port, "json-0ms").status == 200
