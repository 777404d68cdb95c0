"""How gateways take their turns, and what is counted of a slice, with measurements made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner

from app.bench import machine, observed, procs, servers
from app.bench.cli import command
from app.bench.client import Answer
from app.bench.load import closed
from app.bench.observed_figures import BASE, BLIND, CONTROL, Plan, Served, cells, order
from app.bench.report import Report, Row, Variant
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Round
from app.simulator.running import Running

PLAN = Plan(turns=2, requests=3, concurrency=2, streams=2, events=2)
NAMES = [cell.name for cell in cells()]
STREAM = Streamed(200, 1.0, 2.0, {}, body_s=1.5, delays_ns=[9, 9], stopped=True)


class Script:
    """Stands for servers and slices.

    Attributes:
        pid: The simulator's.
        started: Settings of the gateways, by name.
        starts: Their names as they were started.
        up: Gateways that are up.
        together: How many were up when slices began.
        slices: Name and turn of each slice of requests, in their order.
        carried: Of each slice of streams.
        cpu_s: Of a slice of requests, by its text; otherwise 3 ms.
        wrong: Statuses of a slice of requests, by its text; otherwise they are good.
        stream: Every one of all slices.
        workers: Pids of any gateway's.
        cores: Those that gateways and others were put on.
    """

    pid = 5

    def __init__(self) -> None:
        self.started: dict[str, Mapping[str, object]] = {}
        self.starts: list[str] = []
        self.up: set[str] = set()
        self.together: set[int] = set()
        self.slices: list[str] = []
        self.carried: list[str] = []
        self.cpu_s: dict[str, float | None] = {}
        self.wrong: dict[str, list[int]] = {}
        self.stream = STREAM
        self.workers: Callable[[], list[int]] = lambda: [7]
        self.cores: list[observed.Cores | None] = []

    @contextlib.contextmanager
    def simulator(self) -> Iterator[Any]:
        yield self

    @contextlib.contextmanager
    def gateway(self, upstream: Any, folder: Path, settings: Mapping[str, object], name: str) -> Iterator[Any]:
        self.started[name] = settings
        self.starts.append(name)
        self.up.add(name)
        yield SimpleNamespace(url=f"http://{name}", workers=lambda: self.workers(), pids=lambda: [7])
        self.up.remove(name)

    @contextlib.contextmanager
    def apart(self, gateways: Any, simulator: Any, cores: observed.Cores | None) -> Iterator[None]:
        assert len(list(gateways)) == len(self.up)
        self.cores.append(cores)
        yield

    async def requests(self, gateway: Any, simulator: Any, plan: Plan, text: str) -> Served:
        assert gateway.url == f"http://{text.partition(', ')[0]}"
        self.together.add(len(self.up))
        self.slices.append(text)
        statuses = self.wrong.get(text, [200] * plan.requests)
        return Served(statuses, self.cpu_s.get(text, 0.003), len(statuses))

    async def streams(self, gateway: Any, simulator: Any, plan: Plan, text: str) -> Round:
        self.carried.append(text)
        return Round([self.stream] * plan.streams, plan.events, 1.0, cpu_s=0.004, met=4)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    for name in ("requests", "streams", "apart"):
        monkeypatch.setattr(observed, name, getattr(made, name))
    for name in ("simulator", "gateway"):
        monkeypatch.setattr(servers, name, getattr(made, name))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 6, 5})
    return made


def _run(plan: Plan = PLAN) -> Report:
    told: list[str] = []
    found = observed.run(plan, told.append)
    assert len(told) == observed.steps(plan)
    return found


def _rounds(report: Report, name: str, figure: str) -> list[float | None]:
    (variant,) = [one for one in report.variants if one.name == name]
    return [one[figure] for one in variant.rounds]


def test_all_gateways_are_up_at_once_with_a_worker_each_and_a_control_among_them(script: Script) -> None:
    report = _run()
    assert script.together == {len(NAMES)}
    assert list(script.started) == NAMES == [one.name for one in report.variants]
    assert script.started[BASE] == script.started[CONTROL]
    assert {name: script.started[BASE][name] for name in BLIND} == BLIND
    assert {one["WEB_CONCURRENCY"] for one in script.started.values()} == {1}
    assert {one["GUNICORN_CMD_ARGS"] for one in script.started.values()} == {"--log-level info"}
    assert script.started["everything"]["RECENT_RECORDS"] == 1000
    assert not report.faults
    assert report.reached


def test_every_gateway_serves_once_in_a_turn_in_the_order_of_that_turn(script: Script) -> None:
    report = _run()
    expected = [f"{name}, warm-up" for name in NAMES]
    expected += [f"{name}, turn {turn}" for turn in (1, 2) for name in order(NAMES, turn)]
    assert script.slices == script.carried == expected
    assert {len(one.rounds) for one in report.variants} == {2}, "warming up is no turn"


def test_new_gateways_take_their_place_every_few_turns(script: Script) -> None:
    """Two equal processes differ by where their objects lie: no variant may be lucky for a whole run."""
    plan = Plan(turns=5, fresh=2, only=("log",), requests=3, streams=0)
    report = _run(plan)
    names = [BASE, CONTROL, "log"]
    shifts = [["warm-up", "turn 1", "turn 2"], ["warm-up", "turn 3", "turn 4"], ["warm-up", "turn 5"]]
    assert [sorted(script.slices[i : i + 3]) for i in range(0, len(script.slices), 3)] == [
        sorted(f"{name}, {text}" for name in names) for shift in shifts for text in shift
    ]
    assert script.starts == names * 3
    assert script.together == {3}
    assert {len(one.rounds) for one in report.variants} == {5}


def test_a_ratio_is_of_the_same_turn(script: Script) -> None:
    script.cpu_s = {"nothing, warm-up": 9.0, "nothing, turn 1": 0.003, "nothing, turn 2": 0.03}
    script.cpu_s |= {"log, turn 1": 0.006, "log, turn 2": 0.09}
    report = _run()
    assert _rounds(report, "log", "cpu_ms_per_request") == [2.0, 30.0]
    assert _rounds(report, "log", "request_cpu_ratio") == [2.0, 3.0]
    assert _rounds(report, BASE, "request_cpu_ratio") == [1.0, 1.0]
    assert _rounds(report, "log", "event_cpu_ratio") == [1.0, 1.0]
    missed = [one for one in report.judged if not one.met]
    assert [(one.aim.variant, one.aim.figure, one.value) for one in missed] == [("log", "request_cpu_ratio", 2.5)]


def test_a_request_that_failed_spoils_the_report(script: Script) -> None:
    script.wrong = {"monitor, turn 2": [200, 503, 200], "log, warm-up": [0, 0, 0]}
    report = _run()
    assert report.faults == ["turn 2, monitor: 2 of 3 requests succeeded (other statuses: [503])"]
    assert _rounds(report, "monitor", "request_cpu_ratio") == [1.0, None]
    assert not report.reached


def test_a_stream_that_broke_spoils_the_report(script: Script) -> None:
    script.stream = Streamed(200, 1.0, 2.0, {}, body_s=1.5, delays_ns=[9, 9], stopped=False)
    faults = _run().faults
    assert len(faults) == 2 * len(NAMES)
    assert "2 of 2 streams failed: no message_stop at its end" in faults[0]


def test_a_worker_that_died_spoils_the_report(script: Script) -> None:
    script.cpu_s = {"log, turn 1": None}
    assert _run().faults == ["turn 1, log: cpu_ms_per_request could not be measured"]
    pids = itertools.count()
    script.cpu_s, script.workers = {}, lambda: [next(pids)]
    faults = _run().faults
    assert len(faults) == 2 * len(NAMES)
    assert "one was replaced between turns" in faults[0]


def test_without_streams_none_are_measured(script: Script) -> None:
    report = _run(Plan(turns=1, requests=3, streams=0))
    assert script.carried == []
    assert set(report.variants[0].rounds[0]) == {"request_cpu_ratio", "cpu_ms_per_request"}
    assert {one.aim.figure for one in report.judged} == {"request_cpu_ratio"}
    assert not report.faults


def test_the_report_says_whether_the_gateways_had_a_core_of_their_own(
    monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    report = _run()
    assert (report.settings["pin"], report.settings["pinned"]) == (True, True)
    assert report.settings["cells"][CONTROL] == BLIND
    assert "one core only" not in report.text()
    assert _run(Plan(turns=1, requests=3, streams=2, events=2, pin=False)).settings["pinned"] is False
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4})
    report = _run()
    assert (report.settings["pin"], report.settings["pinned"]) == (True, False)
    assert "one core only" in report.text()
    assert script.cores == [({4}, {5, 6}), None, None]


class Slice:
    """Stands for a gateway, its upstream and the connections to it: tells what happened, in which order.

    Attributes:
        told: What happened.
        bodies: Of all requests.
        headers: Of the last request.
        pids: Of the workers, one reading after the other, the last again and again.
    """

    url = "http://127.0.0.1:2"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: Mapping[str, str] = {}
        self.pids = [[7]]
        self.clock_s: list[float | None] = [1.0, 1.25]

    # ---- of the gateway and the simulator

    def workers(self) -> list[int]:
        return self.pids.pop(0) if len(self.pids) > 1 else self.pids[0]

    def reset(self) -> None:
        self.told.append("reset")

    def stats(self) -> dict[str, Any]:
        self.told.append("stats")
        return {"requests": {"json": 2, "demo": 1}, "events_sent": 4}

    def read(self, pids: Collection[int]) -> float | None:
        self.told.append(f"cpu of {pids}")
        return self.clock_s.pop(0)

    async def rest(self, seconds: float) -> None:
        self.told.append(f"rest {seconds:g}")

    # ---- of the connections

    def connected(self, url: str, ca_path: str = "", timeout_s: float = 0.0) -> Self:
        assert url == self.url
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.told.append("closed")

    async def open(self, count: int) -> None:
        self.told.append(f"open {count}")

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.told.append("request")
        self.bodies.append(body)
        self.headers = headers
        return Answer(200 if len(self.bodies) < 5 else 503, 1.0, 2.0, {})

    async def stream(self, body: bytes, headers: Mapping[str, str]) -> Streamed:
        self.told.append(headers["x-sim-scenario"])
        self.bodies.append(body)
        self.headers = headers
        return STREAM

    @property
    def itself(self) -> Any:
        """As whatever it is asked for."""
        return self


@pytest.fixture
def slice_(monkeypatch: pytest.MonkeyPatch) -> Slice:
    made = Slice()
    for name in ("Client", "Streams"):
        monkeypatch.setattr(observed, name, made.connected)
    monkeypatch.setattr(observed, "cpu_s", made.read)
    monkeypatch.setattr(asyncio, "sleep", made.rest)
    return made


def test_what_was_put_off_belongs_to_what_was_served_and_warming_up_does_not(slice_: Slice) -> None:
    found = asyncio.run(observed.requests(slice_.itself, slice_.itself, PLAN, "log, turn 1"))
    assert found == Served([200, 200, 503], 0.25, 3)
    rest = f"rest {observed.REST_S:g}"
    before = ["open 2", "request", "request", rest, "reset", "cpu of [7]"]
    assert slice_.told == [*before, *["request"] * 3, rest, "cpu of [7]", "stats", "closed"]
    assert observed.REST_S > 0.25, "the tick that work is put off to"
    assert len(set(slice_.bodies)) == 5
    assert all(json.loads(body)["model"] == "claude-sonnet-5" for body in slice_.bodies), "it has a price"
    assert slice_.headers["x-api-key"]


def test_streams_are_counted_as_requests_are(slice_: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "spread", lambda count, over_s, send: closed(count, count, send))
    found = asyncio.run(observed.streams(slice_.itself, slice_.itself, PLAN, "log, turn 1"))
    assert (found.samples, found.events, found.cpu_s, found.met) == ([STREAM] * 2, 2, 0.25, 4)
    assert found.duration_s == 1.0
    rest = f"rest {observed.REST_S:g}"
    before = ["open 2", "stream-3x1ms", "stream-3x1ms", rest, "reset", "cpu of [7]"]
    assert slice_.told == [*before, "stream-2x10ms", "stream-2x10ms", rest, "cpu of [7]", "stats", "closed"]
    assert len(set(slice_.bodies)) == 4
    assert all(json.loads(body)["stream"] for body in slice_.bodies)


@pytest.mark.parametrize(
    ("pids", "clock_s"), [([[7], [8]], [1.0, 1.25]), ([[7]], [None, 1.25]), ([[7]], [1.0, None])]
)
def test_a_worker_that_changed_has_no_cpu_time(
    slice_: Slice, pids: list[list[int]], clock_s: list[float | None]
) -> None:
    slice_.pids, slice_.clock_s = pids, clock_s
    assert asyncio.run(observed.requests(slice_.itself, slice_.itself, PLAN, "text")).cpu_s is None


def test_every_thread_is_put_on_its_cores() -> None:
    before, ended = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        observed.hold([os.getpid()], {max(before)})
        assert os.sched_getaffinity(thread.native_id or 0) == os.sched_getaffinity(0) == {max(before)}
    finally:
        observed.hold([os.getpid()], before)
        ended.set()
        thread.join()
    assert os.sched_getaffinity(0) == before


def test_threads_that_come_meanwhile_are_held_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for pid, thread in ((7, 7), (7, 8), (9, 9)):
        (tmp_path / str(pid) / "task" / str(thread)).mkdir(parents=True)
    held: dict[int, Collection[int]] = {}

    def hold(thread: int, cores: Collection[int]) -> None:
        if thread == 8:
            (tmp_path / "9" / "task" / "10").mkdir(exist_ok=True)
            raise ProcessLookupError
        held[thread] = cores

    monkeypatch.setattr(os, "sched_setaffinity", hold)
    observed.hold(iter([7, 9]), {3}, tmp_path)
    assert held == {7: {3}, 9: {3}, 10: {3}}


def test_gateways_stand_apart_from_whoever_asks_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[list[int], Collection[int]]] = []

    def hold(pids: Iterable[int], cores: Collection[int]) -> None:
        held.append((list(pids), cores))

    monkeypatch.setattr(observed, "hold", hold)
    monkeypatch.setattr(procs, "tree", lambda pid: [pid, pid + 1])
    gateways: Any = [SimpleNamespace(pids=lambda: [1, 2]), SimpleNamespace(pids=lambda: [3])]
    simulator, me = Running("http://a", "https://a", "", 5), os.getpid()
    with observed.apart(gateways, simulator, ({4}, {6})):
        assert held == [([1, 2, 3], {4}), ([me, 5, 6], {6})]
    assert held[2:] == [([me], os.sched_getaffinity(0))]
    with observed.apart(gateways, simulator, None):
        assert len(held) == 3


def test_options_of_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []

    def run(plan: Plan, tell: Any) -> Report:
        seen.append(plan)
        return Report("demo", "demo: title", {}, [Row("a", "figure")], [Variant("v", "words", [{"a": 1}])], [])

    monkeypatch.setattr(machine, "facts", lambda: {"load_1m": 0.0, "cores": 2})
    monkeypatch.setattr(observed, "run", run)
    sizes = [
        "--turns",
        "1",
        "--fresh",
        "7",
        "--only",
        "log",
        "--requests",
        "2",
        "--concurrency",
        "3",
        "--streams",
        "0",
        "--events",
        "5",
    ]
    for arguments in ([], [*sizes, "--gap", "6", "--no-pin"]):
        result = CliRunner().invoke(command, ["observed", *arguments])
        assert result.exit_code == 0, result.output
    assert seen == [Plan(), Plan(1, 7, ("log",), 2, 3, 0, 5, 6, False)]
    assert "everything" in CliRunner().invoke(command, ["observed", "--only", "nonsense"]).output
    assert "observed" in CliRunner().invoke(command, ["--help"]).output
    assert CliRunner().invoke(command, ["profiles", "--what", "observed"]).exit_code == 2
