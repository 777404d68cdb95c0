"""What is accounted around a load of streams: CPU, memory, what the upstream met, whether it was quiet before."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from app.bench import procs, stream_rounds
from app.bench.latency import Target
from app.bench.stream_client import Streamed
from app.bench.stream_rounds import Others, calm, cpu_s, pss_bytes, timed, watched
from app.bench.streaming_figures import Round
from app.simulator.running import Running

STREAM = Streamed(200, 1.0, 2.0, {}, body_s=1.5, delays_ns=[1], stopped=True)


class Upstream:
    """A simulator that met a number of events since it was reset."""

    pid = 5

    def __init__(self, events: int) -> None:
        self.events = events
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def stats(self) -> dict[str, int]:
        return {"events_sent": self.events}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(stream_rounds, "_IDLE_S", 0)
    monkeypatch.setattr(stream_rounds, "_AFTER_S", 0)


def _clock(monkeypatch: pytest.MonkeyPatch, *readings: float | None) -> list[float | None]:
    """The CPU seconds that are read one after the other, the last again and again; what is left of them."""
    left = list(readings)

    def read(pids: Any) -> float:
        value = left.pop(0) if len(left) > 1 else left[0]
        if value is None:
            raise ProcessLookupError
        return value

    monkeypatch.setattr(procs, "cpu_s", read)
    return left


def _round(upstream: Upstream, pids: Callable[[], list[int]] | None, kind: str = "ours") -> Round:
    async def load() -> list[Streamed]:
        assert upstream.resets == 1
        return [STREAM]

    target = Target("gateway", "gateway", "http://127.0.0.1:1", pids, upstream=kind)
    return asyncio.run(timed(target, cast("Running", upstream), 1, load))


def test_a_quiet_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    left = _clock(monkeypatch, 1.0, 1.5, 1.5, 1.6, 1.7, 1.705, 9.0)
    assert asyncio.run(calm([5]))
    assert left == [9.0]
    _clock(monkeypatch, 1.0, None)
    assert not asyncio.run(calm([5]))
    monkeypatch.setattr(stream_rounds, "_IDLE_LIMIT_S", 0)
    _clock(monkeypatch, 1.0)
    assert not asyncio.run(calm([5]))


def test_cpu_time_is_what_was_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, 1.0, 1.0, 9.0, 1.0, 9.0, 1.25)
    one = _round(Upstream(1), lambda: [7])
    assert (one.cpu_s, one.met, one.calm, one.events, len(one.samples)) == (0.25, 1, True, 1, 1)


def test_a_worker_that_was_replaced_has_no_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, 1.0, 1.0, 9.0, 1.0, 9.0, 1.25)
    left = [[7, 8], [7, 9]]
    assert _round(Upstream(1), lambda: left.pop(0)).cpu_s is None


def test_a_worker_that_is_gone_has_no_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, 1.0, 1.0, 9.0, 1.0, 9.0, None)
    assert _round(Upstream(1), lambda: [7]).cpu_s is None
    _clock(monkeypatch, 1.0, 1.0, 9.0, None, 9.0, 1.25)
    assert _round(Upstream(1), lambda: [7]).cpu_s is None


def test_processes_that_are_not_known_have_no_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, 1.0)
    assert _round(Upstream(1), None).cpu_s is None


@pytest.mark.parametrize(("kind", "events", "met"), [("ours", 0, 0), ("any", 0, None), ("any", 3, 3)])
def test_only_ours_must_have_met_the_events(
    monkeypatch: pytest.MonkeyPatch, kind: str, events: int, met: int | None
) -> None:
    _clock(monkeypatch, 1.0)
    assert _round(Upstream(events), None, kind).met == met


def test_what_cannot_be_read_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pids: Any) -> int:
        raise ProcessLookupError

    assert pss_bytes([]) is None
    monkeypatch.setattr(procs, "cpu_s", fail)
    monkeypatch.setattr(procs, "pss_bytes", fail)
    assert (cpu_s([5]), pss_bytes([5])) == (None, None)


def _stat(path: Path, busy_s: float, cores: int = 2) -> Path:
    """A /proc/stat: as much as that, spread over what counts, and hours of idling."""
    ticks = round(busy_s * os.sysconf("SC_CLK_TCK"))
    lines = [
        f"cpu  {ticks} 0 0 999999 999 0 0 0 0 0",
        *(f"cpu{number} 1 2 3" for number in range(cores)),
        "intr 1",
    ]
    path.write_text("\n".join(lines), encoding="ascii")
    return path


def test_what_others_take_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now_s, own_s = iter([10.0, 14.0]), iter([3.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now_s))
    monkeypatch.setattr(time, "process_time", lambda: next(own_s))
    _clock(monkeypatch, 20.0, 21.0)
    others = Others([7], _stat(tmp_path / "stat", 100))
    _stat(tmp_path / "stat", 106)
    assert others.pct() == pytest.approx(50)  # 6 s in all, 1 s of the client and 1 s of the servers, of 2 x 4 s


@pytest.mark.parametrize("text", ["", "cpu x", "cpu 1 2 3 4 5 6 7 8"])
def test_a_machine_that_does_not_tell_has_no_others(text: str, tmp_path: Path) -> None:
    path = tmp_path / "stat"
    assert Others([], path).pct() is None
    path.write_text(text, encoding="ascii")
    assert Others([], path).pct() is None


def test_a_server_that_is_gone_hides_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _clock(monkeypatch, 1.0, None)
    assert Others([7], _stat(tmp_path / "stat", 100)).pct() is None


@pytest.mark.parametrize(
    ("pids", "kind", "known"), [(None, "any", False), (None, "ours", True), (lambda: [7], "any", True)]
)
def test_whoever_is_not_known_cannot_be_told_from_others(
    monkeypatch: pytest.MonkeyPatch, pids: Callable[[], list[int]] | None, kind: str, known: bool
) -> None:
    _clock(monkeypatch, 1.0)
    monkeypatch.setattr(Others, "pct", lambda self: 5.0)
    assert (_round(Upstream(1), pids, kind).others_pct == 5.0) is known


def test_memory_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[int | None]:
        loop, looked = asyncio.get_running_loop(), asyncio.Event()
        sizes = iter([3, 5])

        def read(pids: Any) -> int:
            size = next(sizes, 4)
            if size == 4:
                loop.call_soon_threadsafe(looked.set)
            return size

        monkeypatch.setattr(procs, "pss_bytes", read)
        async with watched([7], 0) as found:
            await looked.wait()
        return found[:2]

    assert asyncio.run(main()) == [3, 5]
