"""The breaker, end to end: what opens it, what an open one answers, and how it closes again (B35, B37)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import KEY, USUAL, Answer, Raw, ask, message, opened, post, request

CALLS = 6
ASKED = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def guarded(farm: Farm, kind: str, simulator: Running) -> Server:
    """Its breaker opens after six calls, for less than a second; it is closed, and has forgotten everything."""
    server = farm.shared(kind, BREAKER_MIN_CALLS=CALLS, BREAKER_OPEN=0.8, STREAM_HEARTBEAT=1)
    break_it(server, simulator)
    until(lambda: breaker(server) == "half_open", what="half-open")
    assert post(server.port, "json-0ms").status == 200
    assert breaker(server) == "closed"
    simulator.reset()
    return server


def breaker(server: Server) -> str:
    """Its state, as this worker's page tells it."""
    return str(ask(server.port, "/anthropic/metrics").json()["traffic"]["targets"][0]["breaker"]["state"])


def heard(simulator: Running) -> int:
    """Messages requests that reached the simulator."""
    return int(simulator.stats()["by_path"].get("/v1/messages", 0))


def break_it(server: Server, simulator: Running) -> None:
    """Failing calls until it is open."""
    for _ in range(3 * CALLS):
        if post(server.port, "status-500").get("x-penstock-error") == "breaker_open":
            return
    raise AssertionError("it does not open")


def samples(server: Server, name: str) -> dict[str, float]:
    """Values of one metric by its last label."""
    lines = [
        line for line in ask(server.port, "/metrics").body.decode().splitlines() if line.startswith(name + "{")
    ]
    return {line.rpartition('="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def at_once(count: int, call: Callable[[], Answer]) -> list[Answer]:
    """So many of them at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(count)]]


def test_b35_open_half_open_closed(guarded: Server, simulator: Running) -> None:
    for _ in range(CALLS):
        assert post(guarded.port, "status-529").status == 529
    answer = post(guarded.port, "json-0ms")
    assert (answer.status, answer.error) == (503, "overloaded_error")
    assert (answer.get("x-penstock-error"), answer.get("retry-after")) == ("breaker_open", "1")
    assert answer.get("x-should-retry") == "true"
    assert heard(simulator) == CALLS, "an open breaker asks nobody"
    ready = ask(guarded.port, "/ready")
    assert (ready.status, ready.json()["status"]) == (503, "unavailable")
    assert any("breaker is open" in reason for reason in ready.json()["reasons"])
    states = samples(guarded, "penstock_breaker_state")
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    until(lambda: breaker(guarded) == "half_open", what="half-open")
    answers = at_once(6, lambda: post(guarded.port, "json-400ms"))
    assert sorted(answer.status for answer in answers) == [200] + [503] * 5
    assert heard(simulator) == CALLS + 1, "a single probe"
    assert ask(guarded.port, "/ready").status == 200
    assert [one.status for one in at_once(6, lambda: post(guarded.port, "json-50ms"))] == [200] * 6
    assert samples(guarded, "penstock_breaker_state") == {"closed": 1, "open": 0, "half_open": 0}
    until(lambda: guarded.lines("breaker_closed"), what="the log line")
    event = guarded.lines("breaker_opened")[-1]
    assert (event["provider"], event["level"]) == ("anthropic", "warning") and 0.6 < event["retry_in_s"] < 1.0


@pytest.mark.parametrize("kind", ["gevent"])
def test_b35_a_failing_probe_opens_it_for_longer(guarded: Server, simulator: Running) -> None:
    break_it(guarded, simulator)
    until(lambda: breaker(guarded) == "half_open", what="half-open")
    before = heard(simulator)
    assert post(guarded.port, "status-503").status == 503
    assert heard(simulator) == before + 1
    assert post(guarded.port, "json-0ms").get("x-penstock-error") == "breaker_open"
    assert until(lambda: breaker(guarded) == "half_open", what="half-open") > 1.0, "not 0.64 to 0.96 s as at first"
    assert post(guarded.port, "json-0ms").status == 200


@pytest.mark.parametrize("kind", ["gevent"])
def test_b35_a_probe_that_leaves_makes_room_for_the_next(guarded: Server, simulator: Running) -> None:
    break_it(guarded, simulator)
    until(lambda: breaker(guarded) == "half_open", what="half-open")
    before = heard(simulator)
    raw = Raw(guarded.port)
    raw.send(request("/v1/messages", message("hang"), USUAL))
    until(lambda: heard(simulator) == before + 1)
    assert post(guarded.port, "json-0ms").get("x-penstock-error") == "breaker_open"
    raw.close()
    until(lambda: post(guarded.port, "json-0ms").status == 200, 3, "the next probe")
    assert breaker(guarded) == "closed"


@pytest.mark.parametrize("kind", ["gevent"])
def test_b35_storms_of_4xx_open_nothing(guarded: Server, simulator: Running) -> None:
    for number, status in enumerate((400, 401, 403, 404, 408, 409, 413, 429), 1):
        for _ in range(2 * CALLS):
            assert post(guarded.port, f"status-{status}-ra0").status == status
        assert heard(simulator) == 2 * CALLS * number
    assert breaker(guarded) == "closed"


def test_b35_who_leaves_opens_nothing(guarded: Server, simulator: Running) -> None:
    """Before the head, in mid-stream, during an upload."""
    raws = []
    for _ in range(CALLS + 2):  # gthread has 32 threads
        raw = Raw(guarded.port)
        raw.send(request("/v1/messages", message("hang"), USUAL))
        raws += [raw, opened(guarded.port, "stall-1")[0]]
        upload = Raw(guarded.port)
        upload.send(b"POST /v1/files HTTP/1.1\r\nHost: g\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 100_000)
        raws.append(upload)
    until(lambda: simulator.stats()["open_streams"] == len(raws), 10)
    for raw in raws:
        raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0, 10)
    assert breaker(guarded) == "closed"
    assert post(guarded.port, "json-0ms").status == 200


@pytest.mark.parametrize("kind", ["gevent"])
def test_b35_what_is_the_upstreams_fault_without_a_5xx(guarded: Server, simulator: Running) -> None:
    for scenario in ("reset-1", "close-1", "overloaded"):
        for _ in range(2 * CALLS):
            if post(guarded.port, scenario, stream=True).get("x-penstock-error") == "breaker_open":
                break
        assert breaker(guarded) == "open", scenario
        assert heard(simulator) <= CALLS + 1
        until(lambda: breaker(guarded) == "half_open", what="half-open")
        assert post(guarded.port, "json-0ms").status == 200
        simulator.reset()


@pytest.mark.parametrize("kind", ["gevent"])
def test_b35_the_sdk_waits_and_is_served(guarded: Server, simulator: Running) -> None:
    with anthropic.Anthropic(base_url=guarded.url, api_key=KEY, max_retries=1) as sdk:
        sdk.models.list()  # what it imports late takes its time
        break_it(guarded, simulator)
        began = time.monotonic()
        assert sdk.messages.create(model="claude-sim-json-0ms", **ASKED).type == "message"  # type: ignore[call-overload]
        assert time.monotonic() - began > 0.9, "as long as retry-after says"
