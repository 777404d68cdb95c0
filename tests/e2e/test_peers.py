"""``penstock bench peers``: a small run with the cheapest peer, and scripts that fail; counts, never times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from app.bench import peers_scripts
from app.bench.peers_probe import Place, probe, serves
from app.bench.peers_scripts import PeerError, prepare, started
from app.simulator.running import Running
from tests.e2e.test_bench import bench

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
UPSTREAM = Running("http://127.0.0.1:1", "https://localhost:1", "ca.pem", 1)


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_a_small_run_with_nginx(tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--seconds", "0.1", "--concurrency", "4", "--streams", "4", "--events", "5"]
    cache = ["--cache", str(tmp_path / "cache")]
    code, out, err, results, left = bench(tmp_path, "peers", "--only", "nginx", *sizes, *cache)
    # So little CPU may not be a tick of the clock that it is counted in; that, and nothing else, may be missing.
    lacks = [fault for fault in results["faults"] if "could not be measured: cpu_ms_per_" not in fault]
    assert (results["bench"], lacks, left) == ("peers", [], []), f"{out}\n{err}"
    assert code == (1 if results["faults"] else 0)
    assert list(results["variants"]) == ["direct", "floor", "gateway", "nginx"]
    assert results["settings"]["peers"]["nginx"]["version"].startswith("nginx ")
    rounds = {name: variant["rounds"] for name, variant in results["variants"].items()}
    for name in ("direct", "gateway", "nginx"):
        (one,) = rounds[name]
        assert one["requests"] >= 16
        assert one["statuses"] == {"200": one["requests"]}
        assert (one["events"], one["error_pct"], one["stream_error_pct"]) == (20, 0, 0)
        for fact in ("request_verbatim", "json_verbatim", "sse_verbatim"):
            assert one[fact] == 1, f"{name}: {fact}"
        assert (one["cancels_mid_stream"], one["cancels_in_silence"]) == (1, 1), name
    assert rounds["direct"][0]["headers_lost"] == rounds["gateway"][0]["headers_lost"] == 0
    assert rounds["nginx"][0]["headers_lost_names"] == ["server"]
    assert {one[0]["pss_mib"] > 1 for name, one in rounds.items() if name in ("gateway", "nginx")} == {True}


def script(folder: Path, name: str, text: str) -> None:
    """A peer's script."""
    path = folder / f"{name}.sh"
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_peer_that_cannot_be_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers_scripts, "SCRIPTS", tmp_path)
    script(tmp_path, "nginx", 'echo "no such package" >&2; exit 1')
    assert prepare("nginx", tmp_path).fault == "it cannot be set up: no such package"
    script(tmp_path, "nginx", 'echo "$1 of ${2##*/}"')
    assert prepare("nginx", tmp_path) == peers_scripts.Found("version of nginx")
    assert "No such file" in prepare("flask", tmp_path).fault


def test_a_peer_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers_scripts, "SCRIPTS", tmp_path)
    script(tmp_path, "nginx", 'echo "$1 $4 $5 $PEER_KEY"; exit 3')
    with (
        pytest.raises(PeerError, match=r"ended with exit code 3: run https://localhost:1 ca\.pem sk-bench"),
        started("nginx", tmp_path, UPSTREAM, tmp_path),
    ):
        pytest.fail("it has not started")
    monkeypatch.setattr(peers_scripts, "_READY_S", 0.2)
    script(tmp_path, "nginx", "exec sleep 20")
    with pytest.raises(PeerError, match="not ready in"), started("nginx", tmp_path, UPSTREAM, tmp_path):
        pytest.fail("it has not started")


def test_facts_that_cannot_be_found_out_are_none() -> None:
    nobody = Place("http://127.0.0.1:1", {})
    assert not serves(nobody)
    figures, details = probe(nobody, nobody, UPSTREAM)
    assert set(figures.values()) == {None}
    assert "ConnectionRefusedError" in details["probe"]
