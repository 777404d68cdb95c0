"""Slots and the waiting room, end to end: the simulator counts what was open at once, and in which order (B36)."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.servers import ROOT, Farm, Server, environment, until
from tests.e2e.wire import KEY, USUAL, VERSION, Answer, Raw, ask, message, opened, post, request


@pytest.fixture
def narrow(farm: Farm, kind: str, simulator: Running) -> Iterator[Server]:
    """Two at a time; the others wait. Its slots are free again before the next test."""
    server = farm.shared(kind, ANTHROPIC_CONCURRENCY=2, ANTHROPIC_BUFFER_SIZE=50, WRITE_TIMEOUT=0.4)
    yield server
    until(lambda: (slots(server)["running"], slots(server)["waiting"]) == (0, 0), what="an empty room")


@pytest.fixture
def dropping(farm: Farm, simulator: Running) -> Iterator[Server]:
    """Two at a time, two more wait, and two seconds at most; who comes then is refused."""
    sizes = {"ANTHROPIC_CONCURRENCY": 2, "ANTHROPIC_BUFFER_SIZE": 4}
    server = farm.shared("gevent", DROP_EXCESS_REQUESTS="true", REQUEST_TIMEOUT=2, **sizes)
    yield server
    until(lambda: (slots(server)["running"], slots(server)["waiting"]) == (0, 0), what="an empty room")


def slots(server: Server) -> dict[str, int]:
    """The only target's slots, as this worker's page tells them."""
    found: dict[str, int] = ask(server.port, "/anthropic/metrics").json()["traffic"]["targets"][0]["slots"]
    return found


def gauge(server: Server, name: str) -> float:
    """One sample of the Prometheus page, by name and labels."""
    lines = ask(server.port, "/metrics").body.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), -1.0)


def by(caller: str) -> tuple[tuple[str, str], ...]:
    """Usual headers of a caller of its own."""
    return (*USUAL[:3], ("x-api-key", caller), VERSION)


def order(simulator: Running) -> list[str]:
    """Tags of the models, in the order the simulator heard them."""
    return [row["model"].rpartition("-")[2] for row in simulator.requests()]


@contextmanager
def crowd(size: int) -> Iterator[Callable[[int, str, str], Future[Answer]]]:
    """So many clients at most, each on a connection of its own."""
    with ThreadPoolExecutor(size) as pool:

        def send(port: int, scenario: str, caller: str) -> Future[Answer]:
            return pool.submit(ask, port, "/v1/messages", message(scenario), by(caller))

        yield send


@contextmanager
def occupied(server: Server, simulator: Running, count: int) -> Iterator[list[Raw]]:
    """Exchanges that never end, until the block does."""
    before = simulator.stats()["open_streams"]
    raws = [waiting(server, "hang") for _ in range(count)]
    try:
        until(lambda: simulator.stats()["open_streams"] == before + count, what="busy slots")
        yield raws
    finally:
        for raw in raws:
            raw.close()


def waiting(server: Server, scenario: str) -> Raw:
    """A request whose answer is not waited for."""
    raw = Raw(server.port)
    raw.send(request("/v1/messages", message(scenario), USUAL))
    return raw


def test_never_more_than_the_slots_and_all_are_served_in_order(narrow: Server, simulator: Running) -> None:
    with crowd(6) as send, occupied(narrow, simulator, 2) as busy:
        line = []
        for number in range(6):
            line.append(send(narrow.port, f"json-80ms-n{number}", KEY))
            until(lambda: slots(narrow)["waiting"] == number + 1, what="its place in line")  # noqa: B023
        assert gauge(narrow, 'penstock_queue_depth{provider="anthropic"}') == 6
        assert gauge(narrow, 'penstock_slots_running{provider="anthropic"}') == 2
        assert slots(narrow)["oldest_wait_s"] > 0
        for raw in busy:
            raw.close()
        answers = [one.result() for one in line]
    assert [answer.status for answer in answers] == [200] * 6
    assert order(simulator)[2:] == ["n0", "n1", "n2", "n3", "n4", "n5"]
    assert simulator.stats()["max_open_streams"] == 2
    told = answers[0].get("server-timing")
    assert float(told.partition("queue;dur=")[2].partition(",")[0]) > 0
    until(lambda: [row for row in narrow.lines()[-1:] if row["queue_ms"] > 50], what="its log line")


def test_a_batch_does_not_starve_another_caller(narrow: Server, simulator: Running) -> None:
    with crowd(22) as send, occupied(narrow, simulator, 2) as busy:
        batch = [send(narrow.port, f"json-40ms-b{number}", "batch") for number in range(20)]
        until(lambda: slots(narrow)["waiting"] == 20, what="a long line")
        web = send(narrow.port, "json-0ms-web", "web")
        until(lambda: slots(narrow)["waiting"] == 21, what="its place in line")
        for raw in busy:
            raw.close()
        assert web.result().status == 200
        assert {one.result().status for one in batch} == {200}
    assert order(simulator).index("web") <= 2 + 2, "not behind all the line"
    assert simulator.stats()["max_open_streams"] == 2


def test_who_leaves_the_line_is_never_sent(narrow: Server, simulator: Running) -> None:
    with occupied(narrow, simulator, 2) as busy:
        leaver = waiting(narrow, "json-0ms-left")
        until(lambda: slots(narrow)["waiting"] == 1)
        with crowd(1) as send:
            stays = send(narrow.port, "json-0ms-stays", KEY)
            until(lambda: slots(narrow)["waiting"] == 2)
            leaver.close()
            until(lambda: slots(narrow)["waiting"] == 1, what="the place of the one that left")
            busy[0].close()  # who is served leaves, too: the slot goes on
            assert stays.result().status == 200
    assert order(simulator) == ["hang", "hang", "stays"]
    until(lambda: [row for row in narrow.lines()[-1:] if row["slug"] in ("", "client_gone")], what="its log line")


def test_an_upload_waits_its_turn(narrow: Server, simulator: Running) -> None:
    """Longer than the upstream may take to take bytes: it has not been asked to take any."""
    made: list[object] = []
    with (
        occupied(narrow, simulator, 2) as busy,
        anthropic.Anthropic(base_url=narrow.url, api_key=KEY, max_retries=0) as sdk,
    ):
        file = ("a.bin", io.BytesIO(b"x" * 2_000_000), "application/octet-stream")
        thread = threading.Thread(target=lambda: made.append(sdk.beta.files.upload(file=file).size_bytes))
        thread.start()
        until(lambda: slots(narrow)["waiting"] == 1)
        time.sleep(1.0)
        assert thread.is_alive()
        for raw in busy:
            raw.close()
        thread.join(10)
    assert made == [2_000_000]


def test_full_is_refused_at_once(dropping: Server, simulator: Running) -> None:
    """Exactly the buffer is served. The rest hears so before the first of the others is done, and when to come."""
    ended: list[tuple[float, Answer]] = []

    def one() -> None:
        answer = post(dropping.port, "json-700ms")
        ended.append((time.monotonic(), answer))

    before = gauge(dropping, "penstock_drops_total")
    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for _, answer in ended] == [503] * 6 + [200] * 4
    for _, answer in ended[:6]:
        assert (answer.error, answer.get("x-penstock-error")) == ("overloaded_error", "queue_full")
        assert answer.json()["error"]["message"] == "request dropped: queue is full"
        assert answer.get("retry-after") == "1" and answer.get("x-should-retry") == "true"
    assert simulator.stats()["by_path"] == {"/v1/messages": 4}
    assert simulator.stats()["max_open_streams"] == 2
    until(lambda: gauge(dropping, "penstock_drops_total") == max(0, before) + 6, what="six drops")


def test_the_sdk_comes_again_after_a_drop(dropping: Server, simulator: Running) -> None:
    with occupied(dropping, simulator, 2) as busy, crowd(2) as send:
        line = [send(dropping.port, "json-0ms", KEY) for _ in range(2)]
        until(lambda: slots(dropping)["waiting"] == 2)
        leaving = threading.Timer(0.3, lambda: list(map(Raw.close, busy)))
        leaving.start()
        with anthropic.Anthropic(base_url=dropping.url, api_key=KEY, max_retries=1) as sdk:
            asked = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
            assert sdk.messages.create(model="claude-sim-json-0ms", **asked).type == "message"  # type: ignore[call-overload]
        assert {one.result().status for one in line} == {200}
        leaving.join()
    assert slots(dropping)["dropped"] >= 1


def test_the_wait_ends_with_the_deadline(dropping: Server, simulator: Running) -> None:
    """Two streams that may go on hold the slots all the while."""
    with ExitStack() as busy, crowd(2) as send:
        for _ in range(2):
            busy.enter_context(opened(dropping.port, "stall-1")[0])
        began = time.monotonic()
        for late in [send(dropping.port, "json-0ms", KEY) for _ in range(2)]:
            answer = late.result()
            assert (answer.status, answer.error) == (503, "overloaded_error")
            assert (answer.get("x-penstock-error"), answer.get("retry-after")) == ("queue_timeout", "1")
        assert 1.5 < time.monotonic() - began < 6
    assert simulator.stats()["by_path"] == {"/v1/messages": 2}


def test_the_workers_divide_the_nodes_slots(farm: Farm, simulator: Running) -> None:
    """Also after one of them was replaced."""

    def told() -> tuple[float, float]:
        """Workers that have published, and their slots together."""
        workers = gauge(server, 'penstock_breaker_state{provider="anthropic",state="closed"}')
        return workers, gauge(server, 'penstock_slots_capacity{provider="anthropic"}')

    server = farm.shared("gevent", WEB_CONCURRENCY=2, ANTHROPIC_CONCURRENCY=3, ANTHROPIC_BUFFER_SIZE=60)
    try:
        until(lambda: told() == (2, 3), 15, "both workers' shares")
        with crowd(16) as send:
            answers = [send(server.port, "json-60ms", KEY) for _ in range(16)]
            assert {one.result().status for one in answers} == {200}
        assert 1 <= simulator.stats()["max_open_streams"] <= 3
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(server.workers()) - set(before)) == 1, 10, "a new worker")
        until(lambda: told() == (2, 3), 15, "the new worker's share")
    finally:
        server.process.send_signal(signal.SIGTERM)  # the farm waits for it


def test_connections_for_the_first_requests(farm: Farm, simulator: Running) -> None:
    """250 exchanges, 100 streams a connection: three of them, before anybody has asked for anything."""
    with farm.own("gevent", INITIAL_POOL_SIZE=250, PRODUCTION_WARMUP_CONNECTIONS="true"):
        until(lambda: simulator.stats()["h2_sessions"] == 3, 10, "three connections")
        time.sleep(0.2)
        stats = simulator.stats()
        assert (stats["tls_handshakes"], stats["by_path"]) == (3, {})


@pytest.mark.parametrize(
    ("args", "settings", "names"),
    [
        (
            "-w 4",
            {"ANTHROPIC_CONCURRENCY": 3, "ANTHROPIC_BUFFER_SIZE": 9},
            ("workers=4", "ANTHROPIC_CONCURRENCY=3"),
        ),
        (
            "",
            {"ANTHROPIC_CONCURRENCY": 9, "ANTHROPIC_BUFFER_SIZE": 8},
            ("ANTHROPIC_BUFFER_SIZE=8", "ANTHROPIC_CONCURRENCY (concurrency)=9"),
        ),
    ],
    ids=["fewer-than-workers", "buffer-below"],
)
def test_sizes_that_cannot_be(
    simulator: Running, args: str, settings: dict[str, int], names: tuple[str, ...]
) -> None:
    """Exit code 2 before a socket serves anybody, and both numbers named."""
    environ = environment(simulator, **settings) | {"GUNICORN_CMD_ARGS": args}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    told = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20)
    assert told.returncode == 2, told.stderr
    for name in names:
        assert name in told.stderr
    assert "Traceback" not in told.stderr
