"""The latency bench's accounts of processes; the runs themselves are in tests/e2e."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence

import pytest

from app.bench import latency, procs
from app.bench.against import Against
from app.bench.latency import Bench, Target
from app.bench.latency_figures import Plan, Round, Sample, Usage, faults, figures
from app.simulator.running import Running

GONE = 4_194_305  # above the highest pid_max
SIMULATOR = Running("http://a", "https://a", "", GONE)


def _target(*pids: int) -> Target:
    return Target("gateway", "gateway", "http://a", lambda: list(pids))


def test_processes_that_are_gone_have_no_figures_and_that_is_a_fault() -> None:
    usage = latency._usage(_target(GONE), [GONE], 1.0)
    assert usage == Usage([GONE], [GONE], None, None)
    one = Round([Sample(200, 0.1, 0.2)], 1.0, 0.1, usage, None)
    assert {"cpu_ms_per_request": None, "pss_mib": None}.items() <= figures(one).items()
    assert len(faults(one, Plan(requests=1))) == 2


def test_a_worker_that_was_replaced_is_a_fault() -> None:
    me = os.getpid()
    usage = latency._usage(_target(me), [me, GONE], 1.0)
    assert usage
    assert (usage.cpu_s, usage.before, usage.after) == (None, [me, GONE], [me])
    one = Round([Sample(200, 0.1, 0.2)], 1.0, 0.1, usage, None)
    assert "one died, or came" in faults(one, Plan(requests=1))[0]


def test_cpu_time_is_what_was_used_since() -> None:
    me = os.getpid()
    usage = latency._usage(_target(me), [me], procs.cpu_s([me]) - 5.0)
    assert usage
    assert usage.cpu_s == pytest.approx(5.0, abs=0.5)
    assert (usage.pss_bytes or 0) > 2**20
    assert latency._usage(Target("direct", "direct", "http://a"), [], 0.0) is None


@pytest.mark.parametrize(("step_s", "calm"), [(0.0, True), (0.01, True), (0.02, False)])
def test_a_round_begins_when_all_servers_are_idle(
    monkeypatch: pytest.MonkeyPatch, step_s: float, calm: bool
) -> None:
    looked: list[Sequence[int]] = []
    taken_s = itertools.count(0.0, step_s)

    def cpu_s(pids: Sequence[int]) -> float:
        looked.append(pids)
        return next(taken_s)

    monkeypatch.setattr(procs, "cpu_s", cpu_s)
    monkeypatch.setattr(latency, "_IDLE_S", 0.0)
    monkeypatch.setattr(latency, "_IDLE_LIMIT_S", 0.0)
    direct, other = Target("direct", "direct", "http://a"), Target("floor", "floor", "http://a", lambda: [3])
    bench = Bench(Plan(), SIMULATOR, [direct, other, _target(5, 6)], lambda _: None)
    assert asyncio.run(bench._idle()) is calm
    assert set(map(tuple, looked)) == {(GONE, 3, 5, 6)}


def test_servers_that_are_gone_are_never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_IDLE_S", 0.0)
    monkeypatch.setattr(latency, "_IDLE_LIMIT_S", 0.0)
    assert asyncio.run(Bench(Plan(), SIMULATOR, [_target()], lambda _: None)._idle()) is False


def test_a_worker_that_was_replaced_between_turns_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    usages = {name: Usage([1, 2], [1, 2], 0.5, 2**20) for name in ("floor", "gateway")}
    targets = [Target(name, name, "http://a", lambda: [1, 2]) for name in ("floor", "gateway")]
    targets.append(Target("direct", "direct", "http://a"))

    async def load(self: Bench, target: Target, client: object, count: int, text: str) -> list[Sample]:
        return [Sample(200, 0.1, 0.2)] * count

    async def one_round(self: Bench, target: Target, number: int) -> Round:
        if number == 2:
            usages["gateway"] = Usage([1, 3], [1, 3], 0.5, 2**20)
        return Round([Sample(200, 0.1, 0.2)], 1.0, 0.1, usages.get(target.name), None)

    monkeypatch.setattr(Bench, "_load", load)
    monkeypatch.setattr(Bench, "_round", one_round)
    bench = Bench(Plan(requests=1, rounds=2), SIMULATOR, targets, lambda _: None)
    asyncio.run(bench.measure())
    text = "the processes were [1, 2] at first and are [1, 3]: one was replaced between turns"
    assert bench.faults == [f"round 2, gateway: {text}"]


def test_gateways_of_others_have_names_of_their_own() -> None:
    mine = os.getpid()
    one, two = latency._others([Against("http://a:1", mine, {"x-api-key": "k"}), Against("http://b/x")])
    assert (one.name, one.words, one.headers, one.upstream) == ("against", "a:1", {"x-api-key": "k"}, "any")
    assert one.pids
    assert mine in one.pids()
    assert (two.name, two.url, two.pids) == ("against_2", "http://b/x", None)
