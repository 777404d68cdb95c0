"""What one worker learns of a key or a provider, the others of its node know at their next request (B33-B35)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from app.bench import procs
from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import VERSION, Answer, Raw, message

CALLER = "caller-of-the-sharing-tests"
KEYS = {f"key-{name}": f"sk-ant-sharing-secret-{name}" for name in "abcde"}
"""Label and secret. Each test spoils one of them; the last one stays well."""
SETTINGS: dict[str, Any] = {
    "WEB_CONCURRENCY": 2,
    "GATEWAY_API_KEYS": CALLER,
    "BREAKER_MIN_CALLS": 5,
    "BREAKER_OPEN": 60,
}
ENOUGH = 40
"""Requests in a row, of which every usable key gets its share."""
_numbers = itertools.count()


def another(scenario: str = "json-0ms", **more: Any) -> bytes:
    """A message that begins a conversation of its own: one conversation would keep to one key."""
    return message(scenario, messages=[{"role": "user", "content": f"x {next(_numbers)}"}], **more)


class Side:
    """Connections that one worker holds.

    Attributes:
        raw: For one request after the other.
        more: For what goes on meanwhile.
    """

    def __init__(self, pid: int, raws: list[Raw]) -> None:
        self.pid = pid
        self.raw, *self.more = raws

    def ask(self, target: str, body: bytes | None = None, key: str = CALLER) -> Answer:
        """One request to this worker."""
        return self.raw.ask(target, body, (("x-api-key", key), ("content-type", "application/json"), VERSION))

    def post(self, scenario: str = "json-0ms", key: str = CALLER) -> Answer:
        """One message from this worker."""
        return self.ask("/v1/messages", another(scenario), key)

    def metrics(self) -> Any:
        """What this worker knows."""
        return self.ask("/anthropic/metrics").json()["traffic"]["targets"][0]

    def state(self, label: str) -> str:
        """The state of a key as this worker knows it."""
        (found,) = [str(one["state"]) for one in self.metrics()["credentials"] if one["label"] == label]
        return found


@contextlib.contextmanager
def sides(server: Server, each: int = 1) -> Iterator[list[Side]]:
    """Every worker of ``server`` with ``each`` kept connections to it."""
    pids = server.workers()
    held: dict[int, list[Raw]] = {pid: [] for pid in pids}
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            raw = stack.enter_context(Raw(server.port))
            raw.ask("/health")
            pid = procs.holder(pids, server.port, raw.sock.getsockname()[1])
            if pid is None or len(held[pid]) == each:
                raw.close()
            else:
                held[pid].append(raw)
            if all(len(raws) == each for raws in held.values()):
                break
        assert all(held.values()), held
        yield [Side(pid, raws) for pid, raws in held.items()]


def both_up(server: Server) -> list[int]:
    """The pids of two workers that serve."""
    until(lambda: len(server.lines("worker_started")) >= 2, 15, "two workers")
    return server.workers()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The keys; one of them is kept for the model that is answered 500, and so gets nothing else."""
    keys = [{"name": label, "value": secret} for label, secret in KEYS.items()]
    keys[2] |= {"models": ["*-status-500"]}  # type: ignore[dict-item]
    path = tmp_path_factory.mktemp("config") / "penstock.json"
    path.write_text(json.dumps({"providers": {"anthropic": {"keys": keys}}}))
    return str(path)


@pytest.fixture(scope="module")
def crew(farm: Farm, config: str) -> Iterator[Server]:
    """Two workers with five keys, for all tests that spoil one each."""
    with farm.own("gevent", PENSTOCK_CONFIG=config, **SETTINGS) as server:
        both_up(server)
        yield server


def used(simulator: Running) -> dict[str, int]:
    """How often each key was sent since the programs were set."""
    seen = simulator.keys()
    return {label: len(seen[secret]) for label, secret in KEYS.items() if secret in seen}


def spoil(side: Side, simulator: Running, label: str, status: int, key: str = CALLER, **rule: object) -> None:
    """Have ``side`` send that key until it has been answered ``status``."""
    simulator.set_keys({KEYS[label]: [{"status": status, "times": 1, **rule}]})
    for _ in range(ENOUGH):
        if side.post(key=key).status == status:
            return
    pytest.fail(f"{label} was not answered {status}: {used(simulator)}")


def left_alone(side: Side, simulator: Running, label: str, key: str = CALLER) -> None:
    """``side`` does not send that key, not once, though it sends others."""
    simulator.set_keys({})
    assert {side.post(key=key).status for _ in range(ENOUGH)} == {200}
    found = used(simulator)
    assert label not in found
    assert sum(found.values()) == ENOUGH


def test_both_use_every_key_that_is_well(crew: Server, simulator: Running) -> None:
    """Otherwise the others prove nothing."""
    with sides(crew) as both:
        for side in both:
            simulator.set_keys({})
            well = {label for label in KEYS if side.state(label) == "healthy"} - {"key-c"}
            assert {side.post().status for _ in range(ENOUGH)} == {200}
            assert set(used(simulator)) == well


@pytest.mark.parametrize(
    ("label", "status", "rule", "state"),
    [("key-a", 429, {"retry_after": "30"}, "cooling"), ("key-b", 401, {}, "benched")],
    ids=["cooling", "benched"],
)
def test_the_other_worker_knows_at_its_next_request(
    crew: Server, simulator: Running, label: str, status: int, rule: dict[str, Any], state: str
) -> None:
    with sides(crew) as (one, two):
        spoil(one, simulator, label, status, **rule)
        left_alone(two, simulator, label)
        assert one.state(label) == two.state(label) == state
        ready = two.ask("/ready")
        assert ready.status == 200
        assert (f"anthropic: credential {label} is benched" in ready.json()["reasons"]) == (state == "benched")
        assert f'penstock_credential_state{{credential="{label}",provider="anthropic",state="{state}"}}' in (
            two.ask("/metrics").body.decode()
        )


def test_a_keys_breaker_is_open_for_the_other_worker(crew: Server, simulator: Running) -> None:
    with sides(crew) as (one, two):
        simulator.set_keys({})
        for _ in range(5):
            assert [one.post().status for _ in range(3)] == [200] * 3  # or the provider's would open too
            assert one.post("status-500").status == 500
        refused = two.post("status-500")
        assert (refused.status, refused.get("x-penstock-error"), refused.error) == (
            503,
            "no_credential",
            "overloaded_error",
        )
        assert 40 <= int(refused.get("retry-after")) <= 75
        assert used(simulator)["key-c"] == 5
        assert one.state("key-c") == two.state("key-c") == "open"
        assert two.metrics()["breaker"]["state"] == "closed"


def test_a_worker_that_is_killed_leaves_its_knowledge_to_the_next(crew: Server, simulator: Running) -> None:
    with sides(crew) as (one, _):
        spoil(one, simulator, "key-d", 429, retry_after="60")
        before = set(crew.workers())
        os.kill(one.pid, signal.SIGKILL)
        until(lambda: set(crew.workers()) - before and len(crew.workers()) == 2, 10, "another worker")
        (new,) = set(crew.workers()) - before
        until(lambda: any(row["pid"] == new for row in crew.lines("worker_started")), 15, "its start")
    with sides(crew) as both:
        (fresh,) = [side for side in both if side.pid == new]
        left_alone(fresh, simulator, "key-d")
        assert fresh.state("key-d") == "cooling"


def test_a_providers_breaker_opens_and_closes_for_both(farm: Farm, simulator: Running) -> None:
    with farm.own("gevent", WEB_CONCURRENCY=2, BREAKER_MIN_CALLS=5, BREAKER_OPEN=1) as server:
        both_up(server)
        with sides(server) as (one, two):
            simulator.reset()
            for _ in range(5):
                assert one.post("status-500").status == 500
            refused = two.post()
            assert (refused.status, refused.get("x-penstock-error")) == (503, "breaker_open")
            assert refused.error == "overloaded_error"
            assert 1 <= int(refused.get("retry-after")) <= 2
            assert len(simulator.requests()) == 5
            assert two.metrics()["breaker"]["state"] == "open"
            ready = two.ask("/ready")
            assert (ready.status, ready.json()["status"]) == (503, "unavailable")
            assert "anthropic: the breaker is open" in ready.json()["reasons"]
            until(lambda: one.post().status == 200, 5, "a good probe")
            assert two.metrics()["breaker"]["state"] == "closed"
            assert two.post().status == 200


def test_without_our_hooks_each_knows_what_it_learns_itself(farm: Farm, config: str, simulator: Running) -> None:
    """Another configuration than ours: no file to share, but requests are served, and limits hold per worker."""
    args = "-c /dev/null --bind 127.0.0.1:0 --workers 2 --threads 4 --keep-alive 30"
    settings = {**SETTINGS, "PENSTOCK_CONFIG": config, "GATEWAY_REQUESTS_PER_MINUTE": 1000}
    with farm.own("gthread", args=args, **settings) as server:
        until(lambda: len(server.workers()) == 2, 15)
        with sides(server) as (one, two):
            spoil(one, simulator, "key-a", 429, retry_after="30")
            left_alone(one, simulator, "key-a")
            simulator.set_keys({})
            answers = [two.post() for _ in range(ENOUGH)]
            assert {answer.status for answer in answers} == {200}
            assert used(simulator)["key-a"] > 0
            assert answers[-1].get("x-penstock-ratelimit-requests-remaining") == str(1000 - ENOUGH)
            assert one.ask("/ready").json()["status"] == "ready"


def test_no_secret_was_written(crew: Server) -> None:
    text = crew.output
    assert len(crew.lines()) > 5 * ENOUGH
    assert not any(secret in text for secret in (*KEYS.values(), CALLER))
