"""web/figures, web/health: how a worker is goes into the metrics, to its end; nothing where they are off (B41).

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY

from app.assembly import Assembly
from app.factory import create_app, start_worker, stop_worker
from app.gateway.life import Life
from app.observe import metrics, process
from app.settings import Settings
from app.upstream.dispatch import Traffic
from app.upstream.target import TargetStats
from app.web.figures import Figures

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

PROVIDER = {"provider": "counted"}  # no keeper of another test speaks of it


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def assembly(settings: Callable[..., Settings], upstream: Upstream) -> Assembly:
    found: Assembly = create_app(settings()).extensions["penstock"]
    return found


class Source:
    """Whose traffic it is."""


def target(traffic: Traffic, **pool: Any) -> TargetStats:
    """The first target with other figures of its pool."""
    (found,) = traffic.targets
    return replace(found, name=PROVIDER["provider"], pool=replace(found.pool, **pool))


def test_b41_what_a_pool_has_counted_is_counted_once(assembly: Assembly) -> None:
    """Also with a new loop, whose pools begin at 0 again; what cannot be known is left out."""
    traffic = assembly.health.traffic()
    names = (
        "penstock_upstream_connections_opened_total",
        "penstock_upstream_tls_handshakes_total",
        "penstock_upstream_requests_reused_total",
    )
    before = [value(name, **PROVIDER) for name in names]
    old, new, figures = Source(), Source(), Figures()
    three = target(traffic, misses=3, handshakes=2, hits=50, open_connections=3)
    for _ in range(2):
        figures.traffic(old, replace(traffic, targets=(three,)))
    assert [value(name, **PROVIDER) - was for name, was in zip(names, before, strict=True)] == [3, 2, 50]
    assert value("penstock_upstream_connections", **PROVIDER) == 3
    four = target(traffic, misses=4, handshakes=4, hits=60, open_connections=4)
    figures.traffic(new, replace(traffic, targets=(four,)))
    assert [value(name, **PROVIDER) - was for name, was in zip(names, before, strict=True)] == [7, 6, 110]
    unknown = target(traffic, misses=None, handshakes=None, hits=None, open_connections=None)
    figures.traffic(new, replace(traffic, targets=(unknown,)))
    assert [value(name, **PROVIDER) - was for name, was in zip(names, before, strict=True)] == [7, 6, 110]
    assert value("penstock_upstream_connections", **PROVIDER) == 4


def test_b41_crossings_and_lags_are_counted(assembly: Assembly) -> None:
    health, figures = assembly.health, Figures()
    bridge = assembly.bridge()
    figures.bridge(bridge)
    names = (
        "penstock_bridge_crossings_total",
        "penstock_loop_lag_seconds_count",
        "penstock_hub_lag_seconds_count",
    )
    before = [value(name) for name in names]
    bridge.crossings += 5
    bridge.main.beats.extend((0.0, 0.2))
    figures.bridge(bridge)
    health.overslept(-0.001)
    found = [value(name) - was for name, was in zip(names, before, strict=True)]
    assert found[0] == 5 and found[2] == 1
    assert found[1] >= 2  # the loop beats by itself, too
    two_gateways_on_one_bridge = Figures()
    two_gateways_on_one_bridge.bridge(bridge)
    assert value(names[0]) - before[0] == 5


def test_b41_a_worker_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(1.0)
    life.in_flight = 7
    Figures().worker(life, 3, degraded=True, alone=True)
    assert value("penstock_resident_memory_bytes") > 1_000_000
    assert value("penstock_open_fds") > 2
    assert value("penstock_workers") == 1
    found = {name: value(f"penstock_{name}") for name in ("in_flight", "log_lines_lost", "degraded", "draining")}
    assert found == {"in_flight": 7, "log_lines_lost": 3, "degraded": 1, "draining": 0}
    assert value("penstock_shared_state_degraded") == 1
    metrics.OPEN_FDS.set(-1)
    metrics.RESIDENT_BYTES.set(-1)
    monkeypatch.setattr(process, "open_fds", lambda: None)
    monkeypatch.setattr(process, "resident_bytes", lambda: None)
    Figures().worker(Life(1.0), 0, degraded=False, alone=False)
    assert (value("penstock_open_fds"), value("penstock_resident_memory_bytes")) == (-1, -1)


def test_b41_a_checkout_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    Figures().worker(Life(1.0), 0, degraded=False, alone=False)
    assert value("penstock_build_info", version="") == 1


def test_b50_what_happened_last_is_counted_too(
    settings: Callable[..., Settings], upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker ends between two looks of its keeper."""
    app = create_app(settings())
    assembly: Assembly = app.extensions["penstock"]
    start_worker()
    slots = "penstock_slots_capacity"
    exchanges = {"model": "", "route": "models", "status": "200", "slug": ""}
    before = value("penstock_requests_total", **exchanges), value("penstock_bridge_crossings_total")
    happened = value("penstock_events_total", event="late_news")
    app.test_client().get("/v1/models", buffered=True)
    assembly.bridge().events.append({"event": "late_news"})
    metrics.CONCURRENCY.labels("anthropic").set(-1)
    stop_worker()
    assert value("penstock_requests_total", **exchanges) == before[0] + 1
    assert value("penstock_bridge_crossings_total") == before[1] + 1
    assert value("penstock_events_total", event="late_news") == happened + 1
    assert value(slots, provider="anthropic") > 0  # the loop was asked before it was stopped


def test_a_worker_whose_loop_is_dead_ends_all_the_same(
    settings: Callable[..., Settings], upstream: Upstream
) -> None:
    assembly: Assembly = create_app(settings()).extensions["penstock"]
    main = assembly.bridge().main
    main.alive = False
    tell = assembly.health.last_words()
    main.alive = True
    tell()


def test_b41_where_it_is_off_nothing_is_counted(settings: Callable[..., Settings], upstream: Upstream) -> None:
    app = create_app(settings(ENABLE_METRICS_ENDPOINT="false"))
    assembly: Assembly = app.extensions["penstock"]
    start_worker()
    names = {"penstock_requests_total", "penstock_events_total", "penstock_bridge_crossings_total"}
    names |= {"penstock_hub_lag_seconds_count", "penstock_loop_lag_seconds_count", "penstock_request_bytes_total"}

    def found() -> list[tuple[str, dict[str, str], float]]:
        return [(s.name, s.labels, s.value) for m in REGISTRY.collect() for s in m.samples if s.name in names]

    before = found()
    app.test_client().get("/v1/models", buffered=True)
    assembly.bridge().events.append({"event": "untold_news"})
    assembly.health.overslept(1.0)
    assembly.health.publish()
    assert not assembly.gathered._waiting
    stop_worker()
    assert found() == before


def test_b41_a_loop_that_does_not_answer_is_left_out(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(read: object) -> object:
        raise TimeoutError

    monkeypatch.setattr(assembly.bridge(), "call", call)
    assembly.health.publish()
    assert assembly.health.traffic() == Traffic((), 0)
