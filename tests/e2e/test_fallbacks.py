"""Fallbacks, end to end: another provider, a simulator of its own, serves what the first one does not."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, free_port, until
from tests.e2e.wire import USUAL, Answer, Raw, ask, message, post, request, terminal_error

ONE, TWO, SCARCE = "sk-ant-first-1a1a1a", "sk-ant-second-2b2b2b", "sk-ant-scarce-3c3c3c"
ASKED = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
CALLS = 5


@pytest.fixture(scope="module")
def standby() -> Iterator[Running]:
    """The provider that stands in, with an authority of its own."""
    with running(Options()) as simulator:
        yield simulator


@pytest.fixture
def second(standby: Running) -> Running:
    """The same, its counters at zero."""
    standby.reset()
    return standby


@pytest.fixture(scope="module")
def trust(standby: Running, upstream: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both authorities in one file."""
    path = tmp_path_factory.mktemp("trust") / "both.pem"
    path.write_bytes(Path(upstream.ca_path).read_bytes() + Path(standby.ca_path).read_bytes())
    return str(path)


def config(folder: Path, first: str, second: str, second_keys: list[Any], **slots: int) -> str:
    """A settings file in which ``anthropic-eu`` stands in for ``anthropic``."""
    sizes = {"concurrency": slots.get("concurrency", 10), "buffer_size": slots.get("buffer_size", 50)}
    data = {
        "providers": {
            "anthropic": {
                "keys": [{"name": "first", "value": ONE}],
                "network_config": {"base_url": first},
                "concurrency_and_buffer_size": sizes,
                "fallbacks": ["anthropic-eu"],
            },
            "anthropic-eu": {"keys": second_keys, "network_config": {"base_url": second}},
        },
        "config": {"drop_excess_requests": True},
    }
    path = folder / "penstock.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


SETTINGS: dict[str, Any] = {
    "RETRY_MAX_ATTEMPTS": 3,
    "RETRY_429_INTERVAL": 0.02,
    "RETRY_BUDGET_FLOOR": 10_000,
    "BREAKER_OPEN": 0.5,
}


@pytest.fixture(scope="module")
def settings_file(upstream: Running, standby: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("config")
    keys = [{"name": "second", "value": TWO}]
    return config(folder, upstream.tls_url, f"{standby.tls_url}/eu", keys, concurrency=2, buffer_size=2)


@pytest.fixture
def gateway(farm: Farm, simulator: Running, second: Running, settings_file: str, trust: str) -> Iterator[Server]:
    """Two providers, two slots at the first one. What it says never holds a key."""
    server = farm.shared("gevent", PENSTOCK_CONFIG=settings_file, SSL_CERT_FILE=trust, **SETTINGS)
    yield server
    for secret in (ONE, TWO):
        assert secret not in server.output
    assert TWO not in json.dumps([simulator.requests(), simulator.last()])
    assert ONE not in json.dumps([second.requests(), second.last()])


@contextmanager
def ending(server: Server) -> Iterator[Server]:
    """A server for one test: told to end after it; the farm waits for it."""
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)


def heard(simulator: Running) -> int:
    """Requests that reached a simulator."""
    return sum(simulator.stats()["by_path"].values())


def by_second(answer: Answer, second: Running) -> None:
    """The answer came from the provider that stands in, asked with its own key, below its own path."""
    assert (answer.status, answer.get("x-penstock-provider")) == (200, "anthropic-eu")
    last = second.last()
    assert last is not None and last["target"] == "/eu/v1/messages"
    sent = [(name, value) for name, value in last["headers"] if name in ("x-api-key", "authorization")]
    assert sent == [("x-api-key", TWO)]


@pytest.mark.parametrize("status", [503, 529])
def test_no_room_goes_to_the_other_at_once(
    gateway: Server, simulator: Running, second: Running, status: int
) -> None:
    answer = post(gateway.port, f"flaky-1-{status}")  # to the other it is the first time, too
    assert heard(simulator) == 1
    assert answer.get("x-penstock-provider") == "anthropic-eu" and answer.status == 200
    assert [row["x-api-key"] for row in second.requests()] == [TWO] * 2
    until(lambda: [1 for row in gateway.lines()[-1:] if row["request_id"] == answer.get("x-request-id")])
    tries = gateway.lines()[-1]["attempts"]
    assert [(one["provider"], one["outcome"], one["credential"]) for one in tries] == [
        ("anthropic", str(status), "first"),
        ("anthropic-eu", str(status), "second"),
        ("anthropic-eu", "200", "second"),
    ]


def test_the_first_serves_what_it_can(gateway: Server, simulator: Running, second: Running) -> None:
    answer = post(gateway.port, "json-0ms")
    assert (answer.status, answer.get("x-penstock-provider")) == (200, "anthropic")
    for status in (400, 404, 413):
        answer = post(gateway.port, f"status-{status}")
        assert (answer.status, answer.get("x-penstock-provider")) == (status, "anthropic")
    assert (heard(simulator), heard(second)) == (4, 0)


def test_a_stream_that_begins_overloaded(gateway: Server, simulator: Running, second: Running) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key="caller", max_retries=0) as sdk,
        sdk.messages.stream(model="claude-sim-overloaded-1", **ASKED) as stream,  # type: ignore[arg-type]
    ):
        assert stream.response.headers["x-penstock-provider"] == "anthropic-eu"
        assert stream.get_final_message().stop_reason == "end_turn"
    assert (heard(simulator), heard(second)) == (1, 2), "there, too, it is the first time"
    both = post(gateway.port, "overloaded", stream=True)
    assert terminal_error(both.body)["error"]["type"] == "overloaded_error"
    assert (heard(simulator), heard(second)) == (1 + 1, 2 + 2)


def test_a_failing_provider_gets_all_tries_but_the_last(
    gateway: Server, simulator: Running, second: Running
) -> None:
    simulator.set_keys({ONE: [{"status": 500}]})
    by_second(post(gateway.port, "json-0ms"), second)
    assert (heard(simulator), heard(second)) == (2, 1)


def test_a_full_first_provider(gateway: Server, simulator: Running, second: Running) -> None:
    raws = [Raw(gateway.port) for _ in range(2)]
    for raw in raws:
        raw.send(request("/v1/messages", message("hang"), USUAL))
    until(lambda: simulator.stats()["open_streams"] == 2)
    by_second(post(gateway.port, "json-0ms"), second)
    for raw in raws:
        raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0)


def test_an_exhausted_key(farm: Farm, simulator: Running, second: Running, settings_file: str, trust: str) -> None:
    """429 goes to the other at once, and while the only key rests the first provider is not asked at all."""
    with ending(farm.shared("gthread", PENSTOCK_CONFIG=settings_file, SSL_CERT_FILE=trust, **SETTINGS)) as server:
        simulator.set_keys({ONE: [{"status": 429, "retry_after": "60"}]})
        for _ in range(4):
            by_second(post(server.port, "json-0ms"), second)
        assert simulator.keys()[ONE][0][1] == 429 and len(simulator.keys()[ONE]) == 1
        ready = ask(server.port, "/ready")
        assert ready.status == 200


def test_both_fail(farm: Farm, simulator: Running, second: Running, settings_file: str, trust: str) -> None:
    """While the other one's breaker is open the first one's answer is the client's; then both refuse."""
    settings = SETTINGS | {"PENSTOCK_CONFIG": settings_file, "BREAKER_MIN_CALLS": CALLS, "BREAKER_OPEN": 30}
    with ending(farm.shared("gevent", SSL_CERT_FILE=trust, **settings)) as server:
        simulator.set_keys({ONE: [{"status": 529, "body": {"from": "first"}}]})
        second.set_keys({TWO: [{"status": 500, "body": {"from": "second"}}]})
        for _ in range(3):
            answer = post(server.port, "json-0ms")
            assert (answer.status, answer.get("x-penstock-provider")) == (500, "anthropic-eu")
            assert answer.json() == {"from": "second"}
        assert (heard(simulator), heard(second)) == (3, CALLS), "its breaker has cut the last try short"
        answer = post(server.port, "json-0ms")
        assert (answer.status, answer.json()) == (529, {"from": "first"})
        assert answer.get("x-penstock-provider") == "anthropic"
        assert post(server.port, "json-0ms").status == 529
        answer = post(server.port, "json-0ms")
        assert (answer.status, answer.get("x-penstock-error")) == (503, "breaker_open")
        assert answer.get("x-penstock-provider") == "anthropic"
        assert (heard(simulator), heard(second)) == (CALLS, CALLS)
        assert ask(server.port, "/ready").status == 503


def _targets(server: Server) -> list[dict[str, Any]]:
    found = ask(server.port, "/anthropic/metrics").json()["traffic"]["targets"]
    return [{"provider": one["provider"], "status": one["breaker"]["state"]} for one in found]


def test_connections_that_are_refused(farm: Farm, second: Running, trust: str, tmp_path: Path) -> None:
    """Nobody listens at the first one. Uploads go over too, since nothing of them was sent."""
    nobody = f"https://localhost:{free_port()}"
    keys = [
        {"name": "second", "value": TWO},
        {"name": "scarce", "value": SCARCE, "models": ["claude-*-preview"]},
    ]
    path = config(tmp_path, nobody, f"{second.tls_url}/eu", keys)
    settings = SETTINGS | {"PENSTOCK_CONFIG": path, "SSL_CERT_FILE": trust, "BREAKER_MIN_CALLS": CALLS}
    with ending(farm.shared("gevent", upstream=nobody, **settings)) as server:
        for _ in range(2):
            by_second(post(server.port, "json-0ms"), second)
        answer = ask(server.port, "/v1/files", b"x" * 2_000_000, USUAL)
        assert (answer.status, answer.get("x-penstock-provider")) == (200, "anthropic-eu")
        for _ in range(CALLS):
            by_second(post(server.port, "json-0ms"), second)
        assert _targets(server)[0] == {"provider": "anthropic", "status": "open"}
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.json()["status"]) == (200, "degraded")
        until(lambda: server.lines()[-1]["attempts"][0]["provider"] == "anthropic-eu", what="one not asked")
        assert second.stats()["by_path"]["/eu/v1/files"] == 1
        post(server.port, "claude-new-preview")
        assert second.requests()[-1]["x-api-key"] == SCARCE
        for secret in (ONE, TWO, SCARCE):
            assert secret not in server.output
