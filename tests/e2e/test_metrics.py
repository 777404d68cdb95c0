"""Prometheus' page of a whole gunicorn: clean, complete, right after reloads and deaths; its directory (B41)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.observe.exposition import exposition
from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from tests.e2e.servers import ROOT, Farm, Server, environment, until
from tests.e2e.wire import USUAL, Raw, ask, message, post, request
from tests.unit.observe.test_metrics import COUNTERS, GAUGES, HISTOGRAMS

SECRET = "sk-ant-metrics-secret-1"
CALLER = "caller-of-the-metrics-tests"
PRICED = "claude-sonnet-4-5"
SEARCHED = {
    "type": "message",
    "model": PRICED,
    "content": [],
    "usage": {
        "input_tokens": 7,
        "output_tokens": 5,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        "cache_read_input_tokens": 40,
        "server_tool_use": {"web_search_requests": 3},
    },
}


def promtool() -> str:
    """Path of promtool."""
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; under CI it has to be")
        pytest.skip(reason)
    return found


def samples(server: Server) -> dict[str, float]:
    """All workers' samples as ``name{label values}``."""
    answer = ask(server.port, "/metrics")
    assert answer.status == 200, answer
    return {
        f"{sample.name}{{{','.join(sample.labels[name] for name in sorted(sample.labels))}}}": sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Running]:
    """A simulator that also serves an answer with all kinds of usage."""
    row = {
        "status": 200,
        "response_headers": [["content-type", "application/json"]],
        "response_body_b64": base64.b64encode(json.dumps(SEARCHED).encode()).decode(),
    }
    file = tmp_path / "recorded.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with running(Options(replay=str(file))) as simulator:
        yield simulator


def test_promtool_finds_nothing_and_every_metric_is_there(farm: Farm, recorded: Running) -> None:
    tool = promtool()
    with farm.own(
        "gevent",
        upstream=recorded.tls_url,
        SSL_CERT_FILE=recorded.ca_path,
        WEB_CONCURRENCY=2,
        ANTHROPIC_API_KEYS=SECRET,
        GATEWAY_API_KEYS=CALLER,
        RETRY_MAX_ATTEMPTS=2,
        RETRY_429_INTERVAL=0.01,
        LOG_LEVEL="debug",  # connections are told, so that there are events
    ) as server:
        until(lambda: len(server.lines("worker_started")) == 2, 10, "two workers")
        all_kinds_of_traffic(server)
        until(lambda: samples(server).get("penstock_client_departures_total{messages}") == 1, 10, "a departure")
        until(lambda: samples(server)["penstock_workers{}"] == 2, 10, "both workers' gauges")
        until(lambda: "penstock_events_total{connection_opened}" in samples(server), 10, "an event")
        text = ask(server.port, "/metrics").body
    names = {f"{name}_total" for name in COUNTERS} | set(HISTOGRAMS) | set(GAUGES)
    names.add("penstock_worker_restarts_total")
    shown = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE ")}
    assert names - shown == set()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert [name for name, family in families.items() if not family.samples] == []
    assert SECRET.encode() not in text and CALLER.encode() not in text
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    kinds = {sample.labels["kind"]: sample.value for sample in families["penstock_tokens"].samples}
    assert set(kinds) == {"input", "output", "cache_write_5m", "cache_write_1h", "cache_read"}


def all_kinds_of_traffic(server: Server) -> None:
    """So that every metric has something to show."""
    usual = tuple((name, CALLER if name == "x-api-key" else value) for name, value in USUAL)

    def send(scenario: str, headers: tuple[tuple[str, str], ...] = (), *, stream: bool = False) -> int:
        body = message(scenario, stream=stream)
        return ask(server.port, "/v1/messages", body, (*usual, *headers)).status

    assert send("stream-20x1ms", stream=True) == 200
    assert send("flaky-1-529") == 200
    assert send("status-500") == 500
    assert send("json-0ms") == 200
    assert send(PRICED, (("x-sim-replay", "0"),)) == 200
    with Raw(server.port) as raw:  # and leaves
        raw.send(request("/v1/messages", message("stall-2", stream=True), usual))
        assert raw.head().status == 200


def test_a_reload_keeps_counters_and_counts_no_restart(farm: Farm, simulator: Running) -> None:
    with farm.own("gevent", WEB_CONCURRENCY=2) as server:
        until(lambda: len(server.lines("worker_started")) == 2, 10, "two workers")
        assert post(server.port, "json-0ms").status == 200
        counted = "penstock_requests_total{claude-sim-json-0ms,messages,,200}"
        until(lambda: samples(server).get(counted) == 1, 10, "the request, counted")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(server.lines("worker_stopped")) == 2, 20, "the end of the old workers")
        until(lambda: samples(server)["penstock_workers{}"] == 2, 10, "the new workers alone")
        assert post(server.port, "json-0ms").status == 200
        until(lambda: samples(server).get(counted) == 2, 10, "both requests")
        connected = simulator.stats()["h2_sessions"]
        opened = "penstock_upstream_connections_opened_total{anthropic}"
        until(lambda: samples(server)[opened] == connected, 10, "the old workers' connections and the new ones'")
        assert samples(server)["penstock_worker_restarts_total{}"] == 0


def test_a_worker_that_was_killed_is_replaced_by_one_like_it(
    farm: Farm, simulator: Running, tmp_path: Path
) -> None:
    """The arbiter has no metrics of its own, which its later workers would inherit."""
    with farm.own("gevent", PROMETHEUS_MULTIPROC_DIR=tmp_path) as server:
        for count in range(2):
            assert samples(server)["penstock_worker_restarts_total{}"] == count
            (worker,) = server.workers()
            os.kill(worker, signal.SIGKILL)
            until(lambda: server.workers() not in ([worker], []), 10, "another worker")  # noqa: B023 - at once
            assert post(server.port, "json-0ms").status == 200
        until(lambda: samples(server)["penstock_workers{}"] == 1, 10, "the worker that is there")
        assert samples(server)["penstock_worker_restarts_total{}"] == 2
        assert not list(tmp_path.glob(f"*_{server.process.pid}.db"))


def test_a_directory_that_was_given_is_emptied_of_metrics_alone(
    farm: Farm, simulator: Running, tmp_path: Path
) -> None:
    stale = ("counter_1.db", "gauge_livesum_1.db", "histogram_1.db")
    for name in (*stale, "customers.db"):
        (tmp_path / name).write_bytes(b"rubbish")
    with farm.own("gevent", PROMETHEUS_MULTIPROC_DIR=tmp_path) as server:
        assert post(server.port, "json-0ms").status == 200
        found = samples(server)
        assert found["penstock_bridge_crossings_total{}"] == 1
        assert not any((tmp_path / name).exists() for name in stale)
    assert (tmp_path / "customers.db").read_bytes() == b"rubbish"


def test_what_was_counted_last_is_in_the_files_at_the_end(farm: Farm, simulator: Running, tmp_path: Path) -> None:
    """The end comes right after an answer: no keeper has looked in between (B50)."""
    with farm.own("gevent", PROMETHEUS_MULTIPROC_DIR=tmp_path) as server:
        for _ in range(3):
            assert post(server.port, "json-0ms").status == 200
        assert server.end(signal.SIGQUIT) == 0
    lines = exposition(str(tmp_path)).decode().splitlines()
    assert (
        'penstock_requests_total{model="claude-sim-json-0ms",route="messages",slug="",status="200"} 3.0' in lines
    )
    assert 'penstock_upstream_requests_reused_total{provider="anthropic"} 2.0' in lines
    assert 'penstock_upstream_tls_handshakes_total{provider="anthropic"} 1.0' in lines
    assert "penstock_bridge_crossings_total 3.0" in lines
    assert not any(line.startswith("penstock_workers") for line in lines), "gauges of the dead"


def test_a_directory_that_cannot_be_used_is_told_before_anything_starts(
    simulator: Running, tmp_path: Path
) -> None:
    given = tmp_path / "file"
    given.write_text("x", encoding="ascii")
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "wsgi:app"],
        cwd=ROOT,
        env=environment(simulator, PROMETHEUS_MULTIPROC_DIR=given),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"PROMETHEUS_MULTIPROC_DIR: File exists: {given}.\n"
