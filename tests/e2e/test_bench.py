"""``penstock bench``: small runs of the real commands; what is asserted are counts, never times."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.bench import servers, sharing
from app.bench.latency import steps
from app.bench.latency_figures import Plan
from app.cli import main
from app.simulator.running import Running
from tests.e2e.servers import ROOT

_LIMIT_S = 60


def bench(tmp_path: Path, *arguments: str) -> tuple[int, str, str, dict[str, Any], list[str]]:
    """Exit code, stdout, stderr, results, and what the command left running."""
    output = tmp_path / "results.json"
    # An operator's own settings: none of these may find its way into a bench.
    mine = {
        "ANTHROPIC_API_KEY": "sk-ant-operators-own",
        "PORT": "1",
        "RETRY_MAX_ATTEMPTS": "none",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "app", "bench", *arguments, "--output", str(output)]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(os.environ) | mine, stdout=out, stderr=err, start_new_session=True
        )
        code = process.wait(_LIMIT_S)
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("out", "err")]
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    return code, texts[0], texts[1], results, _in_session(process.pid)


def _in_session(leader: int) -> list[str]:
    """Command lines of the processes that are still in the session of ``leader``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    return found


def test_a_small_storm(tmp_path: Path) -> None:
    small = ["--rounds", "1", "--requests", "60", "--concurrency", "10"]
    quick = ["--answer-ms", "200", "--outage-s", "0.4", "--retry-after-s", "1"]
    code, out, err, results, left = bench(tmp_path, "storm", *small, *quick)
    assert (code, left) == (0, []), f"{out}\n{err}"
    assert "60 requests, 10 at once" in out
    for words in ("no gateway", "SDK retries", "gateway", "success seen by the client", "529s met", "≤ 1.15"):
        assert words in out
    assert [results[name] for name in ("bench", "format", "faults")] == ["storm", 1, []]
    assert results["machine"]["cores"] > 0
    rounds = {name: variant["rounds"] for name, variant in results["variants"].items()}
    assert {name: len(all_of_it) for name, all_of_it in rounds.items()} == {"direct": 1, "sdk": 1, "gateway": 1}
    direct, sdk, gateway = (rounds[name][0] for name in ("direct", "sdk", "gateway"))
    for one in (direct, sdk, gateway):
        assert sum(one["statuses"].values()) == 60
        assert one["failed"] == 60 - one["statuses"]["200"]
        assert one["attempts"] == sum(sum(row.values()) for row in one["attempts_by_key"].values())
    assert (direct["attempts"], direct["statuses"]["401"], direct["statuses"]["429"]) == (60, 15, 15)
    assert direct["attempts_by_key"]["storm-429"] == {"429": 15}
    assert direct["attempts_by_key"]["storm-200"] == {"200": 15}
    assert sdk["attempts_by_key"]["storm-429"] == {"429": 45}
    assert sdk["attempts_by_key"]["storm-401"] == {"401": 15}
    assert gateway["attempts_by_key"]["storm-200"]["200"] > 0
    assert {aim["figure"] for aim in results["aims"]} == {
        "success_pct",
        "attempts_per_request",
        "attempts_while_cooling",
        "attempts_after_denial",
    }


def test_a_gateway_that_does_not_come_up_ends_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers.Gateway, "is_ready", lambda self: False)
    monkeypatch.setattr(servers, "_START_S", 0.2)
    output = tmp_path / "results.json"
    arguments = ["storm", "--rounds", "1", "--requests", "4", "--answer-ms", "10", "--retry-after-s", "1"]
    result = CliRunner().invoke(main, ["bench", *arguments, "--output", str(output)])
    assert result.exit_code == 1
    assert "gateway was not ready within 0.2 s" in result.output
    assert "success" not in result.output
    assert not output.exists()


def test_a_small_overload(tmp_path: Path) -> None:
    sizes = ["--requests", "30", "--concurrency", "10", "--buffer", "12", "--repetitions", "2"]
    code, out, err, results, left = bench(tmp_path, "overload", *sizes, "--answer-ms", "600", "--spread-s", "0.02")
    assert (code, left) == (0, []), f"{out}\n{err}"
    assert "30 requests at once, concurrency 10, buffer 12" in out
    rounds = {name: variant["rounds"] for name, variant in results["variants"].items()}
    lengths = {name: len(all_of_it) for name, all_of_it in rounds.items()}
    assert lengths == {"drop_spread": 2, "drop_burst": 3, "health": 3, "wait": 2}
    for one in (row for name in rounds for row in rounds[name]):
        assert sum(one["statuses"].values()) == one["served"] + one.get("refused", 0) + one["neither"] == 30
    assert all(one["rss_mib"] > 10 for one in rounds["drop_spread"])
    assert all(one["served"] == 30 for one in rounds["wait"] + rounds["health"])
    assert [one["served"] for one in rounds["drop_spread"] + rounds["drop_burst"]] == [12] * 5
    assert [one["refused"] for one in rounds["drop_spread"] + rounds["drop_burst"]] == [18] * 5
    assert [one["most_upstream"] for name in ("drop_spread", "drop_burst", "wait") for one in rounds[name]] == [
        10
    ] * 7


def test_a_small_latency_beside_a_gateway_that_runs_already(simulator: Running, tmp_path: Path) -> None:
    line = {"plain": simulator.plain_url, "tls": simulator.tls_url, "ca": simulator.ca_path, "pid": simulator.pid}
    (tmp_path / "simulator.json").write_text(json.dumps(line) + "\nmore\n", encoding="utf-8")
    sizes = ["--requests", "200", "--concurrency", "8", "--rounds", "2", "--page", str(tmp_path / "page.html")]
    # the simulator itself, without TLS, stands for that gateway: it answers to the same requests
    other = ["--against", simulator.plain_url, "--simulator", str(tmp_path / "simulator.json")]
    code, out, err, results, left = bench(tmp_path, "latency", *sizes, *other, "--header", "x-api-key: secret")
    assert (code, left) == (0, []), f"{out}\n{err}"
    assert "200 requests, 8 at once" in out
    told = [line for line in err.splitlines() if line.startswith(("warm-up: ", "round "))]
    assert len(told) == steps(Plan(rounds=2), 1), "the bar ends when the work does"
    assert err.index("round 2/2: gateway") < err.index("round 2/2: WSGI floor") < err.index("round 2/2: direct")
    rounds = {name: variant["rounds"] for name, variant in results["variants"].items()}
    assert {name: len(all_of_it) for name, all_of_it in rounds.items()} == dict.fromkeys(
        ("direct", "floor", "gateway", "against"), 2
    )
    for one in (row for name in rounds for row in rounds[name]):
        assert (one["requests"], one["error_pct"], one["statuses"]) == (200, 0.0, {"200": 200})
        assert 0 < one["ttfb_p50_ms"] <= one["full_p50_ms"] <= one["full_p95_ms"] <= one["full_p99_ms"]
    for one in rounds["gateway"]:
        assert all(one[name] > 0 for name in ("cpu_ms_per_request", "floor_ratio", "pss_mib", "rps"))
        assert one["added_p50_ms"] is not None
    for one in rounds["gateway"] + rounds["direct"]:
        assert (one["handshakes"], one["reuse_pct"]) == (0, 100.0)
    for one in rounds["against"]:
        assert "cpu_ms_per_request" not in one, "its processes are not known"
        assert one["added_p50_ms"] is not None
        assert one["floor_ratio"] is None
    assert set(results["variants"]["gateway"]["interval"].values()) == {None}, "of two rounds there is none"
    assert "secret" not in json.dumps(results) + out + err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg") > 10


def test_an_upstream_that_only_fails_leaves_no_figures(tmp_path: Path) -> None:
    few = [
        "--requests",
        "2",
        "--concurrency",
        "2",
        "--rounds",
        "1",
        "--model",
        "claude-sim-status-400",
    ]  # 500 would be tried again
    code, out, err, results, left = bench(tmp_path, "latency", *few)
    assert (code, left) == (1, []), f"{out}\n{err}"
    assert "incomplete, so not to be used" in err
    assert "0 of 2 requests succeeded (2 with 400)" in err
    failed = [fault.split(":")[0] for fault in results["faults"] if "succeeded" in fault]
    assert failed == ["round 1, direct", "round 1, gateway"]
    for name in ("direct", "gateway"):
        median = results["variants"][name]["median"]
        assert (median["error_pct"], median["full_p50_ms"], median["ttfb_p99_ms"]) == (100.0, None, None)
    assert results["variants"]["gateway"]["median"]["added_p50_ms"] is None


def test_a_gateway_that_does_not_answer_is_named_and_nothing_is_measured(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        output = tmp_path / "results.json"
        result = CliRunner().invoke(main, ["bench", "latency", "--against", url, "--output", str(output)])
    assert result.exit_code == 1
    assert f"{url} does not answer" in result.output
    assert not output.exists()


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"plain":"http://127.0.0.1:9","tls":"","ca":"","pid":1}'])
def test_a_simulator_that_is_not_there_ends_the_bench(tmp_path: Path, text: str) -> None:
    (tmp_path / "simulator.json").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["bench", "latency", "--simulator", str(tmp_path / "simulator.json")])
    assert result.exit_code == 1
    assert "simulator.json leads to no simulator" in result.output


@pytest.mark.skipif(servers.redis_binary() is None, reason="needs redis-server")
def test_a_small_sharing(tmp_path: Path) -> None:
    code, out, err, results, left = bench(tmp_path, "sharing", "--trials", "1", "--watch-s", "3")
    assert (code, left) == (0, []), f"{out}\n{err}"
    assert "two nodes, one Redis" in out
    for name in ("workers", "nodes", "apart"):
        (one,) = results["variants"][name]["rounds"]
        assert one["key"] == "sharing-0"
        assert one["gap_ms"] > 0
    assert results["variants"]["apart"]["rounds"][0]["attempts_after"] > 0
    assert results["variants"]["apart"]["rounds"][0]["left_alone"] == 0


def test_without_redis_two_nodes_are_missing_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servers, "redis_binary", lambda: None)
    monkeypatch.setattr(sharing.Bench, "two_workers", lambda self, variant: None)
    monkeypatch.setattr(sharing.Bench, "two_nodes", lambda self, variant: None)
    output = tmp_path / "results.json"
    result = CliRunner().invoke(main, ["bench", "sharing", "--output", str(output)])
    assert result.exit_code == 1
    assert "redis-server is not installed" in result.output
    assert "redis-server is not installed" in json.loads(output.read_text(encoding="utf-8"))["faults"][0]
