"""How a sweep takes its turns, with measurements made by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.bench import profiles, servers
from app.bench.concurrent import Answered
from app.bench.latency import Target
from app.bench.latency_figures import Sample
from app.bench.profiles_figures import Plan
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Plan as StreamingPlan
from app.bench.streaming_figures import Round
from app.simulator.options import Options
from app.simulator.running import Running

PLAN = Plan(rounds=2, streams=4, events=2, requests=3, concurrency=2)
STREAM = Streamed(200, 1.0, 2.0, {}, body_s=1.5, delays_ns=[9, 9], stopped=True)


class Script:
    """Stands for servers and loads.

    Attributes:
        started: Settings of the gateways.
        options: Of the simulators.
        status: Of every short request.
        handshakes: What the simulator counts, one after the other.
    """

    pid = 5

    def __init__(self) -> None:
        self.started: list[dict[str, object]] = []
        self.options: list[Options] = []
        self.status = 200
        self.handshakes: list[int] = []
        self.calm = True
        self.cpu_s: float | None = 0.3

    @contextlib.contextmanager
    def running(self, options: Options) -> Iterator[Any]:
        self.options.append(options)
        yield self

    def reset(self) -> None:
        self.handshakes = [1, 3]

    def stats(self) -> dict[str, int]:
        return {"tls_handshakes": self.handshakes.pop(0)}

    @contextlib.contextmanager
    def gateway(self, upstream: Any, folder: Path, settings: dict[str, object]) -> Iterator[Any]:
        self.started.append(settings)
        yield SimpleNamespace(url="http://127.0.0.1:2", pids=lambda: [7])

    async def warm(self, target: Target, text: str) -> None:
        """Nothing to warm."""

    async def paced(self, target: Target, simulator: Running, plan: StreamingPlan, text: str) -> Round:
        return Round([STREAM] * 4, 2, 2.0, 0.1, cpu_s=0.4, pss_bytes=(2**20, 2 * 2**20), met=8)

    async def answered(
        self,
        target: Target,
        simulator: Running,
        connections: int,
        arrive: Callable[..., Awaitable[Any]],
        data: Any,
    ) -> Answered:
        async def send(index: int) -> Sample:
            assert b"claude-sim-json-0ms" in data(index)
            return Sample(self.status, 0.1, 0.2)

        return Answered(await arrive(send), 1.0, self.cpu_s, 2**20, {}, self.calm)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    for name in ("running", "warm", "paced", "answered"):
        monkeypatch.setattr(profiles, name, getattr(made, name))
    monkeypatch.setattr(servers, "gateway", made.gateway)
    return made


def _run(*what: str) -> Any:
    told: list[str] = []
    found = profiles.run(PLAN, what, told.append)
    assert len(told) == profiles.steps(PLAN, what)
    return found


def test_positions_take_turns_there_and_back_on_fresh_gateways(script: Script) -> None:
    found = _run("workers")
    assert [settings["WEB_CONCURRENCY"] for settings in script.started] == [1, 2, 2, 1]
    report = found.reports["workers"]
    assert [len(variant.rounds) for variant in report.variants] == [2, 2]
    assert report.variants[0].rounds[0]["cpu_ms_per_request"] == 100.0
    assert (found.faults, found.notes) == ([], ())
    assert report.settings["cells"]["web_concurrency_2"] == {"WEB_CONCURRENCY": 2}


def test_connections_are_those_of_the_gateway_since_it_started(script: Script) -> None:
    report = _run("connections").reports["connections"]
    assert [one["ANTHROPIC_MAX_CONNECTIONS"] for one in script.started] == [1, 2, 4, 4, 2, 1]
    assert {one["WEB_CONCURRENCY"] for one in script.started} == {1}
    assert {round_["connections"] for variant in report.variants for round_ in variant.rounds} == {4}
    assert script.options[0].max_concurrent_streams >= PLAN.streams


def test_what_failed_spoils_a_sweep(script: Script) -> None:
    script.status = 503
    faults = _run("workers").faults
    assert len(faults) == 4
    assert faults[0] == "workers: round 1, 1 worker(s): 3 of 3 requests failed"
    script.status, script.calm = 200, False
    assert "still busy" in _run("workers").faults[0]
    script.calm, script.cpu_s = True, None
    assert _run("workers").faults[0].endswith("cpu_ms_per_request could not be measured")


def test_what_cannot_be_swept_is_said(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    monkeypatch.setattr(profiles, "rows", lambda: [SimpleNamespace(env=("WEB_CONCURRENCY",))])
    found = _run("workers", "chunk", "switch")
    assert list(found.reports) == ["workers"]
    assert found.notes == ["not swept, for there is no such setting: chunk, switch"]


def test_without_an_upstream_nothing_is_swept(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    def fail(options: Options) -> None:
        raise RuntimeError("no port")

    monkeypatch.setattr(profiles, "running", fail)
    with pytest.raises(servers.BenchError, match="no port"):
        _run("workers")
