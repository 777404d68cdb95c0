"""``penstock bench streaming`` and ``concurrent``: small runs; what is asserted are counts, never times."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.bench import profiles, servers
from app.bench.latency import Target
from app.bench.load import on_a_loop
from app.bench.profiles_figures import Plan, Sweep
from app.cli import main
from app.simulator.running import Running
from tests.e2e.test_bench import bench


def test_a_few_streams(tmp_path: Path) -> None:
    sizes = ["--streams", "20", "--events", "5", "--rounds", "1", "--requests", "64"]
    flat = ["--burst-streams", "4", "--burst-events", "6", "--burst-s", "0.05"]
    code, out, err, results, left = bench(tmp_path, "streaming", *sizes, *flat)
    assert (code, left) == (0, []), f"{out}\n{err}"
    assert "20 streams x 5 events x 20 ms" in out
    assert [results[name] for name in ("bench", "faults")] == ["streaming", []]
    rounds = {name: variant["rounds"] for name, variant in results["variants"].items()}
    assert {name: len(all_of_it) for name, all_of_it in rounds.items()} == dict.fromkeys(
        ("direct", "floor", "gateway", "burst"), 1
    )
    for one in rounds["direct"] + rounds["gateway"]:
        assert (one["streams"], one["events"], one["error_pct"]) == (20, 100, 0)
        assert 0 < one["delay_p50_ms"] <= one["delay_p95_ms"] <= one["delay_p99_ms"]
        assert 0 < one["ttfb_p50_ms"] <= one["full_p50_ms"]
        assert one["full_p50_ms"] >= 100  # 5 events 20 ms apart take that long: it was not a buffered answer
    for one in rounds["burst"]:
        assert one["events"] == 6 * one["streams"] >= 24
        assert one["events_per_core_s"] > 0
    for one in rounds["gateway"]:
        assert one["cpu_ms_per_event"] > 0
        assert {"added_ttfb_p50_ms", "added_ttfb_p99_ms", "added_delay_p99_ms", "pss_kib_per_stream"} <= set(one)
    assert all(one.keys() == {"cpu_ms_per_request"} and one["cpu_ms_per_request"] > 0 for one in rounds["floor"])


def test_a_little_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start, opened = servers.gateway, contextlib.ExitStack()
    asked: list[object] = []
    shared: list[servers.Gateway] = []

    @contextlib.contextmanager
    def once(upstream: Running, folder: Path, settings: dict[str, object], name: str) -> Iterator[servers.Gateway]:
        """One gateway for all that want one: five take too long to start."""
        asked.append(settings["WEB_CONCURRENCY"])
        if not shared:
            shared.append(opened.enter_context(start(upstream, tmp_path, settings, name)))
        yield shared[0]

    monkeypatch.setattr(servers, "gateway", once)
    sizes = ["--streams", "10", "--hold-ms", "200", "--slow-requests", "20", "--answer-ms", "200"]
    quick = ["--spread-s", "0.05", "--starts", "1", "--idle-s", "0", "--requests", "40", "--rounds", "1"]
    output = tmp_path / "results.json"
    with opened:
        result = CliRunner().invoke(main, ["bench", "concurrent", *sizes, *quick, "--output", str(output)])
    assert result.exit_code == 0, result.output
    results = json.loads(output.read_text(encoding="utf-8"))
    assert [results[name] for name in ("bench", "faults")] == ["concurrent", []]
    assert asked == [1, 1, 1, 2]
    found = {name: variant["rounds"] for name, variant in results["variants"].items()}
    assert {name: len(rounds) for name, rounds in found.items()} == dict.fromkeys(
        ("idle_streams", "slow_requests", "cold_start", "one_worker", "two_workers"), 1
    )
    assert (found["idle_streams"][0]["streams"], found["idle_streams"][0]["error_pct"]) == (10, 0)
    assert (found["slow_requests"][0]["requests"], found["slow_requests"][0]["most_upstream"]) == (20, 20)
    assert found["slow_requests"][0]["full_p50_ms"] >= 200
    assert found["cold_start"][0]["first_answer_s"] > 0
    assert found["cold_start"][0]["rss_mib"] > 10
    assert [found[name][0]["requests"] for name in ("one_worker", "two_workers")] == [40, 40]
    assert found["two_workers"][0]["cpu_ratio"] > 0


def test_downloads_are_counted_to_the_last_byte(tmp_path: Path) -> None:
    plan = Plan(downloads=3, downloads_at_once=2, download_kib=256)
    with servers.simulator() as simulator:
        bench = profiles.Bench(plan, Sweep("chunk", "words", ("downloads",), []), simulator, tmp_path, print)
        target = Target("gateway", "gateway", simulator.plain_url, lambda: [simulator.pid])
        figures, lacks = on_a_loop(bench._downloads(target, "test"))
    assert lacks == []
    assert (figures["mib_per_s"] or 0) > 0
    assert (figures["download_p50_ms"] or 0) > 0
