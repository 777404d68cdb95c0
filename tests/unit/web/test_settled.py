"""assembly: exchanges may wait for their Records; whoever asks, the keeper and the end wait for none.

Runs on: worker.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from app.assembly import Assembly
from app.errors import ConnectFailed
from app.factory import create_app
from app.gateway import records
from app.observe import log_stdout
from app.observe.monitor import get_current_metrics
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

KEY = "operators-own-secret"
ADMIN = {"x-api-key": KEY}
SERIES = 'penstock_requests_total{model="",route="models",slug="",status="200"}'


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Where the log goes."""
    found = io.BytesIO()
    monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=SimpleNamespace(buffer=found)))
    return found


@pytest.fixture
def app(
    sink: io.BytesIO,
    settings: Callable[..., Settings],
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
) -> Flask:
    """One whose Records all wait, and no keeper comes; its log is captured."""
    for name in ("QUIET_S", "_URGENT_S"):
        monkeypatch.setattr(records, name, 1e9)
    monkeypatch.setattr("app.web.server.KEEPER_S", 1e6)
    found = create_app(settings(GATEWAY_ADMIN_KEY=KEY, LOG_LEVEL="info"))
    assembly(found).records.pump()
    return found


def assembly(app: Flask) -> Assembly:
    found: Assembly = app.extensions["penstock"]
    return found


def serve(app: Flask, times: int = 3) -> None:
    for _ in range(times):
        app.test_client().get("/v1/models", buffered=True)
    assert len(assembly(app).records._waiting) == times, "they wait"


def counted(app: Flask) -> float:
    """As this process has it, without asking the gateway."""
    from prometheus_client import REGISTRY

    labels = {"model": "", "route": "models", "slug": "", "status": "200"}
    return REGISTRY.get_sample_value("penstock_requests_total", labels) or 0.0


def test_b41_a_scrape_finds_them_all(app: Flask) -> None:
    before = counted(app)
    serve(app)
    text = app.test_client().get("/metrics").get_data(as_text=True)
    assert f"{SERIES} {before + 3}" in text


def test_b44_the_monitor_finds_them_all(app: Flask) -> None:
    serve(app)
    assert get_current_metrics()["windows"]["1h"]["requests"] == 3


def test_b42_the_last_records_are_all_there(app: Flask) -> None:
    serve(app)
    found: Any = app.test_client().get("/admin/records", headers=ADMIN).json
    assert len(found["records"]) == 3


def test_an_upstream_that_is_out_of_reach_is_known_at_once(app: Flask, upstream: Upstream) -> None:
    upstream.fails = ConnectFailed("no")
    serve(app, 1)
    state: Any = app.test_client().get("/ready").json
    assert (state["status"], state["reasons"]) == ("unavailable", ["the upstream cannot be reached"])


def test_the_keepers_tick_has_them_all_counted_and_written(app: Flask, sink: io.BytesIO) -> None:
    before = counted(app)
    serve(app)
    for pump in assembly(app)._pumps():
        pump()
    assert counted(app) == before + 3
    told = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [row["route"] for row in told if row["event"] == "exchange"] == ["models"] * 3


def test_the_end_has_them_all_counted_and_written(app: Flask, sink: io.BytesIO) -> None:
    before = counted(app)
    serve(app)
    assembly(app).keeper.stop()
    assert counted(app) == before + 3
    assert not assembly(app).monitor._found, "the monitor, which ends before the log, has them too"
    told = [json.loads(line)["event"] for line in sink.getvalue().splitlines()]
    assert told[-4:] == ["exchange"] * 3 + ["worker_stopped"]
