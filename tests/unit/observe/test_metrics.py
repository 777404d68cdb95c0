"""observe/metrics, observe/exposition: the names operators build on, and the text of all workers (B37, B41).

Runs on: worker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.multiprocess import MultiProcessCollector

from app import metrics_dir
from app.observe import exposition, metrics
from app.observe.histogram import Histogram

# Dashboards and alerts are built on these: a change breaks them.
COUNTERS = {
    "penstock_requests": ("route", "model", "status", "slug"),
    "penstock_failures": ("route", "type"),
    "penstock_client_departures": ("route",),
    "penstock_request_bytes": ("route",),
    "penstock_response_bytes": ("route",),
    "penstock_tokens": ("kind", "model"),
    "penstock_server_tool_uses": ("tool", "model"),
    "penstock_cost_usd": ("model",),
    "penstock_unpriced": ("model",),
    "penstock_usage_partial": ("route",),
    "penstock_drops": (),
    "penstock_retries": ("provider", "reason"),
    "penstock_events": ("event",),
    "penstock_bridge_fallbacks": (),
    "penstock_bridge_crossings": (),
    "penstock_upstream_connections_opened": ("provider",),
    "penstock_upstream_tls_handshakes": ("provider",),
    "penstock_upstream_requests_reused": ("provider",),
}
HISTOGRAMS = {
    "penstock_gateway_seconds": (("route",), 0.0005, 1.0),
    "penstock_upstream_head_seconds": (("route",), 0.05, 600.0),
    "penstock_time_to_first_byte_seconds": (("route",), 0.005, 600.0),
    "penstock_time_to_first_event_seconds": (("route",), 0.005, 600.0),
    "penstock_event_gap_seconds": (("route",), 0.001, 65.536),
    "penstock_request_seconds": (("route",), 0.005, 600.0),
    "penstock_queue_wait_seconds": (("provider",), 0.001, 60.0),
    "penstock_attempts": (("provider",), 1, 10),
    "penstock_connect_seconds": (("provider",), 0.001, 5.0),
    "penstock_loop_lag_seconds": ((), 0.001, 5.0),
    "penstock_hub_lag_seconds": ((), 0.001, 5.0),
}
GAUGES = {
    "penstock_in_flight": (),
    "penstock_queue_depth": ("provider",),
    "penstock_queue_capacity": ("provider",),
    "penstock_slots_running": ("provider",),
    "penstock_slots_capacity": ("provider",),
    "penstock_retry_budget_left": (),
    "penstock_breaker_state": ("provider", "state"),
    "penstock_credential_state": ("provider", "credential", "state"),
    "penstock_credential_in_flight": ("provider", "credential"),
    "penstock_upstream_connections": ("provider",),
    "penstock_fallback_pool_active": (),
    "penstock_resident_memory_bytes": (),
    "penstock_open_fds": (),
    "penstock_workers": (),
    "penstock_degraded": (),
    "penstock_draining": (),
    "penstock_shared_state_degraded": (),
    "penstock_log_lines_lost": (),
    "penstock_build_info": ("version",),
}


def _of(kind: type[Counter | Gauge | Histogram]) -> dict[str, Any]:
    return {one._name: one for one in vars(metrics).values() if isinstance(one, kind)}


def test_b41_counters_and_their_labels() -> None:
    found = {name: tuple(one._labelnames) for name, one in _of(Counter).items()}
    assert {name: found.get(name) for name in COUNTERS} == COUNTERS


def test_b41_histograms_their_labels_and_bounds() -> None:
    found = {}
    for name, one in _of(Histogram).items():
        bounds = one._kwargs["buckets"] if one._kwargs else one._upper_bounds[:-1]
        found[name] = (tuple(one._labelnames), bounds[0], bounds[-1])
    assert {name: found.get(name) for name in HISTOGRAMS} == HISTOGRAMS


def test_b41_gauges_are_those_of_the_workers_alive() -> None:
    found = {name: tuple(one._labelnames) for name, one in _of(Gauge).items()}
    assert {name: found.get(name) for name in GAUGES} == GAUGES
    assert {name for name, one in _of(Gauge).items() if not one._multiprocess_mode.startswith("live")} == set()


def test_b37_of_all_states_one_is_set() -> None:
    for state in ("open", "closed"):
        metrics.set_state(metrics.BREAKER, metrics.BREAKER_STATES, state, "q")
        found = {
            one: REGISTRY.get_sample_value("penstock_breaker_state", {"provider": "q", "state": one})
            for one in metrics.BREAKER_STATES
        }
        assert found == {one: float(one == state) for one in metrics.BREAKER_STATES}


def test_b41_a_worker_alone_shows_its_own(tmp_path: Path) -> None:
    text = exposition.exposition(None).decode()
    assert "# TYPE penstock_requests_total counter" in text
    assert "_created" not in text


def test_b41_the_workers_restarts_are_shown_with_all_workers_metrics(tmp_path: Path) -> None:
    metrics_dir.add_restart(str(tmp_path))
    text = exposition.exposition(str(tmp_path)).decode()
    assert text.endswith("# TYPE penstock_worker_restarts_total counter\npenstock_worker_restarts_total 1.0\n")


def test_b41_a_worker_that_is_just_starting_does_not_spoil_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is there and still empty for an instant."""
    file = tmp_path / "counter_1.db"
    file.touch()
    merge: Callable[[list[str]], object] = MultiProcessCollector.merge

    def and_then_it_has_started(files: list[str]) -> object:
        try:
            return merge(files)
        except struct.error:
            file.unlink()
            raise

    monkeypatch.setattr(MultiProcessCollector, "merge", and_then_it_has_started)
    assert b"penstock_worker_restarts_total 0.0" in exposition.exposition(str(tmp_path))


def test_b41_other_files_in_its_directory_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "customers.db").write_bytes(b"rubbish")
    assert b"penstock_worker_restarts_total 0.0" in exposition.exposition(str(tmp_path))


def test_a_file_that_stays_broken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()
    with pytest.raises(struct.error):
        exposition.exposition(str(tmp_path))
