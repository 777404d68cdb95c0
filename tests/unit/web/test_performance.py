"""web/ops, web/health, factory: the performance monitor as operators see it (B5, B44).

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from app.assembly import Assembly
from app.factory import _without_effect, create_app
from app.observe.monitor import get_current_metrics, get_performance_monitor
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

HOOK = "https://hooks.example/T0/secret-of-the-hook"


def performance(app: Flask) -> dict[str, Any]:
    told = app.test_client().get("/anthropic/metrics").json
    assert told is not None
    found: dict[str, Any] = told["performance"]
    return found


def test_b44_an_exchange_is_in_every_window(settings: Callable[..., Settings], upstream: Upstream) -> None:
    app = create_app(settings())
    client = app.test_client()
    upstream.answers(500, [])
    assert client.get("/v1/models", buffered=True).status_code == 500
    assert client.get("/v1/nowhere", headers={"x-y": "z"}, buffered=True).status_code == 500
    assembly: Assembly = app.extensions["penstock"]
    assert assembly.monitor is get_performance_monitor()
    found = performance(app)
    assert (found["enabled"], found["scope"]) == (True, "process")
    for window in found["windows"].values():
        assert (window["requests"], window["errors"]) == (2, 2)
        assert window["by_endpoint"]["models"]["requests"] == 1
        assert window["by_type"] == {"upstream_5xx": {"errors": 2, "error_rate": 1.0}}
        assert window["latency_ms"]["p50"] > 0
    assert get_current_metrics()["windows"]["1h"]["requests"] == 2


def test_b44_the_thresholds_are_the_settings(settings: Callable[..., Settings], upstream: Upstream) -> None:
    given = {"ALERT_P95_LATENCY_MS": "250", "ALERT_MEMORY_GROWTH_MB": "0", "ALERT_ERROR_RATE": "0.2"}
    found = performance(create_app(settings(**given)))
    assert [(one["rule"], one["threshold"]) for one in found["alerts"]] == [
        ("p95_latency_ms", 250.0),
        ("p99_latency_ms", 1000.0),
        ("error_rate", 0.2),
        ("requests_per_second_min", 1.0),
    ]


def test_b44_switched_off_it_says_so(settings: Callable[..., Settings], upstream: Upstream) -> None:
    given = settings(ENABLE_PERFORMANCE_MONITOR="false", ALERT_WEBHOOK_URL=HOOK)
    (said,) = _without_effect(given)
    assert said.startswith("ALERT_WEBHOOK_URL: ") and HOOK not in said
    app = create_app(given)
    assert app.test_client().get("/v1/models", buffered=True).status_code == 200
    assert performance(app) == {"enabled": False}
    assembly: Assembly = app.extensions["penstock"]
    assert assembly.monitor.observe not in assembly._counters()
    assert assembly.monitor.pump not in assembly._pumps()
    assert not assembly.monitor._found


def test_b44_what_does_not_work_degrades(
    settings: Callable[..., Settings], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings())
    monkeypatch.setattr(type(get_performance_monitor()), "troubles", ["alerts: oh"])
    ready = app.test_client().get("/ready")
    assert ready.json is not None
    assert (ready.status_code, ready.json["status"], ready.json["reasons"]) == (200, "degraded", ["alerts: oh"])


def test_b44_the_webhooks_address_is_never_shown(settings: Callable[..., Settings], upstream: Upstream) -> None:
    app = create_app(settings(ALERT_WEBHOOK_URL=HOOK))
    client = app.test_client()
    pages = [client.get(path).get_data(as_text=True) for path in ("/ready", "/metrics", "/anthropic/metrics")]
    assembly: Assembly = app.extensions["penstock"]
    texts = [*pages, repr(vars(assembly)), repr(vars(assembly.monitor)), repr(vars(assembly.monitor._watch))]
    assert not [text for text in texts if "secret-of-the-hook" in text]
