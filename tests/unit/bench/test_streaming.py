"""How the streaming bench takes its turns and what it makes of them, with measurements made by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.bench import procs, servers, streaming
from app.bench.against import Against
from app.bench.figures import Figures
from app.bench.latency import Target
from app.bench.report import Report
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import NOTE, Plan, Round
from app.simulator.running import Running

PLAN = Plan(streams=4, events=10, rounds=2, workers=3, worker_class="gthread")
STREAM = Streamed(200, 1.0, 2.0, {}, first_s=1.2, body_s=1.2, delays_ns=[10**6] * 10, size_bytes=9, stopped=True)
WHOLE = Round([STREAM] * 4, 10, 2.0, 0.1, cpu_s=0.4, pss_bytes=(2**20, 2 * 2**20), met=40)


class Script:
    """Stands for servers and loads.

    Attributes:
        turns: What was measured, in order.
        started: Settings of the gateways.
        found: By target and load, what a measurement finds instead of ``WHOLE``.
        floor: What the floor costs.
    """

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.started: list[dict[str, object]] = []
        self.found: dict[str, Round] = {}
        self.floor: float | None = 0.2

    @contextlib.contextmanager
    def gateway(self, upstream: Running, folder: Path, settings: dict[str, object]) -> Iterator[Any]:
        self.started.append(settings)
        yield SimpleNamespace(url="http://127.0.0.1:2", pids=lambda: [7])

    @contextlib.contextmanager
    def simulator(self) -> Iterator[Running]:
        yield Running("http://127.0.0.1:1", "https://localhost:1", "ca", 5)

    @contextlib.contextmanager
    def floor_server(self, folder: Path, workers: int) -> Iterator[Any]:
        assert workers == 3
        yield SimpleNamespace(url="http://127.0.0.1:3", pids=lambda: [8])

    async def paced(self, target: Target, simulator: Running, plan: Plan, text: str) -> Round:
        self.turns.append(target.name)
        return self.found.get(target.name, WHOLE)

    async def burst(self, target: Target, simulator: Running, plan: Plan, text: str) -> Round:
        self.turns.append("burst")
        return self.found.get("burst", WHOLE)

    async def floor_cost(self, floor: Any, simulator: Running, plan: Plan) -> Figures:
        self.turns.append("floor")
        return {"cpu_ms_per_request": self.floor}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    for name in ("paced", "burst", "floor_cost"):
        monkeypatch.setattr(streaming, name, getattr(made, name))
    monkeypatch.setattr(servers, "gateway", made.gateway)
    monkeypatch.setattr(servers, "simulator", made.simulator)
    monkeypatch.setattr(servers, "floor", made.floor_server)
    monkeypatch.setattr(Against, "reach", lambda self: None)
    return made


def _run(against: list[Against] | None = None, say: Callable[[str], None] = lambda text: None) -> Report:
    return streaming.run(PLAN, say, against or [])


def _medians(report: Report) -> dict[str, Any]:
    return {name: one["median"] for name, one in report.json({})["variants"].items()}


def test_each_round_has_all_variants_there_and_back(script: Script) -> None:
    told: list[str] = []
    report = _run(say=told.append)
    assert script.turns == ["floor", "direct", "gateway", "burst", "gateway", "burst", "direct", "floor"]
    assert [len(variant.rounds) for variant in report.variants] == [2] * 4
    assert len(told) == streaming.steps(PLAN)
    assert (report.faults, list(report.notes)) == ([], [NOTE])


def test_every_gateway_is_a_fresh_one_with_what_was_asked_for(script: Script) -> None:
    report = _run()
    assert len(script.started) == 2
    assert script.started[0]["WEB_CONCURRENCY"] == 3
    assert script.started[0]["GUNICORN_CMD_ARGS"] == "--worker-class gthread"
    assert script.started[0]["THREADS"] == 54
    assert "ANTHROPIC_API_KEYS" in script.started[0]
    assert report.settings["gateway"] == {
        name: value for name, value in script.started[0].items() if "KEY" not in name
    }


def test_what_is_compared_is_of_one_round(script: Script) -> None:
    slower = replace(STREAM, body_s=1.5, delays_ns=[3 * 10**6] * 10)
    script.found["gateway"] = replace(WHOLE, samples=[slower] * 4)
    found = _medians(_run())
    assert found["gateway"]["added_ttfb_p50_ms"] == pytest.approx(300)
    assert found["gateway"]["added_delay_p99_ms"] == pytest.approx(2)
    assert found["gateway"]["cpu_ms_per_event"] == pytest.approx(10)
    assert found["gateway"]["floor_ratio"] == pytest.approx(50)
    assert found["gateway"]["pss_kib_per_stream"] == 256
    assert found["burst"]["floor_ratio"] == pytest.approx(50)
    assert "cpu_ms_per_event" not in found["direct"]
    assert found["floor"] == {"cpu_ms_per_request": 0.2}


@pytest.mark.parametrize("name", ["direct", "gateway", "burst"])
def test_a_stream_that_failed_spoils_the_run(script: Script, name: str) -> None:
    script.found[name] = replace(WHOLE, samples=[STREAM] * 3 + [replace(STREAM, stopped=False)])
    report = _run()
    assert [text.split(":")[0] for text in report.faults] == [f"round {number}, {name}" for number in (1, 2)]


@pytest.mark.parametrize(
    ("name", "change"), [("gateway", {"cpu_s": None}), ("gateway", {"pss_bytes": None}), ("burst", {"cpu_s": 0.0})]
)
def test_what_the_processes_took_must_be_known(script: Script, name: str, change: dict[str, Any]) -> None:
    script.found[name] = replace(WHOLE, **change)
    assert any("could not be measured" in text for text in _run().faults)


def test_a_floor_that_was_not_measured_is_said(script: Script) -> None:
    script.floor = None
    faults = _run().faults
    assert "round 1, floor: cpu_ms_per_request could not be measured" in faults
    assert "round 1, gateway: floor_ratio could not be measured" in faults


def test_gateways_that_run_already_are_measured_beside_ours(script: Script) -> None:
    script.found["against_2"] = replace(WHOLE, met=None)
    report = _run([Against("http://127.0.0.1:4", 99), Against("http://127.0.0.1:5")])
    assert script.turns[:6] == ["floor", "direct", "gateway", "burst", "against", "against_2"]
    found = _medians(report)
    assert found["against"]["floor_ratio"] == pytest.approx(50)
    assert found["against"]["added_ttfb_p50_ms"] == 0
    assert not {"cpu_ms_per_event", "added_ttfb_p50_ms", "pss_kib_per_stream"} & set(found["against_2"])
    assert report.faults == []
    assert report.settings["against"] == ["http://127.0.0.1:4", "http://127.0.0.1:5"]


def test_too_few_files_are_said_before_anything_starts(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procs, "allow_files", cast("Any", lambda wanted: False))
    with pytest.raises(servers.BenchError, match="higher limit of open files"):
        _run()
    assert script.turns == []


def test_a_worker_that_was_replaced_between_turns_is_a_fault(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = iter([[7, 8], [7, 9]])
    monkeypatch.setattr(procs, "tree", lambda pid: next(trees))
    report = _run([Against("http://127.0.0.1:4", 7)])
    text = "the processes were [7, 8] at first and are [7, 9]: one was replaced between turns"
    assert report.faults == [f"round 2, against: {text}"]
