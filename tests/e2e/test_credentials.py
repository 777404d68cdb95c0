"""Several upstream keys, end to end: which one is asked when, by the simulator's record of each (B33, B34)."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import USUAL, Answer, ask, message

A, B, C = "sk-ant-alpha-0a0a0a0a", "sk-ant-bravo-0b0b0b0b", "sk-ant-gamma-0c0c0c0c"
CALLER = "gateway-key-of-a-caller-9f9f"
NAMES = {A: "alpha", B: "bravo", C: "gamma"}
SETTINGS: dict[str, Any] = {
    "RETRY_MAX_ATTEMPTS": 3,
    "RETRY_429_INTERVAL": 0.05,
    "RETRY_BUDGET_FLOOR": 10_000,
    "GATEWAY_API_KEYS": CALLER,
}
HEADERS = (*USUAL[:3], ("x-api-key", CALLER))

Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def start(farm: Farm, simulator: Running, tmp_path: Path) -> Start:
    """A gateway of one's own with these keys. At its end: no key has been said anywhere."""

    @contextmanager
    def started(*keys: str | dict[str, Any], kind: str = "gevent", **settings: Any) -> Iterator[Server]:
        rows = [{"name": NAMES[key], "value": key} if isinstance(key, str) else key for key in keys]
        path = tmp_path / "penstock.json"
        path.write_text(json.dumps({"providers": {"anthropic": {"keys": rows}}}), encoding="utf-8")
        server = farm.shared(kind, PENSTOCK_CONFIG=str(path), **(SETTINGS | settings))
        try:
            yield server
            pages = [ask(server.port, page) for page in ("/ready", "/metrics", "/anthropic/metrics")]
            said = server.output + "".join(str(page.headers) + page.body.decode() for page in pages)
        finally:
            server.process.send_signal(signal.SIGTERM)  # the farm waits for it
        for secret in (A, B, C, CALLER):
            assert secret not in said

    return started


def send(server: Server, scenario: str = "json-0ms", **more: Any) -> Answer:
    """A message of the caller's, of no conversation unless it names one; no key of ours is in its answer."""
    headers = (*HEADERS, *more.pop("headers", ()))
    answer = ask(server.port, "/v1/messages", message(scenario, **({"messages": None} | more)), headers)
    assert not any(secret in str(answer) for secret in (A, B, C, CALLER))
    return answer


def states(server: Server) -> dict[str, str]:
    """State of each key."""
    found = ask(server.port, "/anthropic/metrics").json()["traffic"]["targets"][0]["credentials"]
    return {one["label"]: one["state"] for one in found}


def used(simulator: Running) -> Counter[str]:
    """How often each key was heard."""
    return Counter(row["x-api-key"] for row in simulator.requests())


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_b34_a_rejected_key_is_tried_once(start: Start, simulator: Running, kind: str) -> None:
    with start(A, B, C, kind=kind) as server:
        simulator.set_keys({A: [{"status": 401}]})
        assert {send(server).status for _ in range(30)} == {200}
        assert used(simulator)[A] == 1 and sum(used(simulator).values()) == 31
        assert states(server) == {"alpha": "benched", "bravo": "healthy", "gamma": "healthy"}
        until(lambda: server.lines("credential_benched"), what="the alert")
        (alert,) = server.lines("credential_benched")
        assert (alert["credential"], alert["status"], alert["level"]) == ("alpha", 401, "warning")
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.json()["status"]) == (200, "degraded")
        assert any("alpha is benched" in reason for reason in ready.json()["reasons"])
        page = ask(server.port, "/metrics").body.decode()
        assert 'penstock_credential_state{credential="alpha",provider="anthropic",state="benched"} 1.0' in page
        rotated = next(row for row in server.lines() if len(row["attempts"]) == 2)
        assert [(one["outcome"], one["credential"] == "alpha") for one in rotated["attempts"]] == [
            ("401", True),
            ("200", False),
        ]


def test_b33_an_exhausted_key_rests_as_long_as_it_says(start: Start, simulator: Running) -> None:
    """No attempt in vain meanwhile; then one at a time until it has proved itself."""
    with start(A, B) as server:
        simulator.set_keys({A: [{"status": 429, "retry_after": "1", "times": 1}]})

        def is_back() -> bool:
            assert send(server).status == 200
            return len(simulator.keys().get(A, ())) == 3

        until(is_back, what="its return")
        (at_s, status), (again_s, good), *_ = simulator.keys()[A]
        assert (status, good) == (429, 200) and again_s - at_s >= 1.0
        assert not [1 for t_s, _ in simulator.keys()[A] if at_s < t_s < at_s + 1.0]
        assert len(simulator.keys()[B]) > 5
        assert states(server) == {"alpha": "healthy", "bravo": "healthy"}
        until(lambda: server.lines("credential_restored"), what="the log line")


def test_b33_all_of_them_exhausted(start: Start, simulator: Running) -> None:
    """A short rest is waited for, by all who come meanwhile; a long one is said, and nobody is asked."""
    with start(A, B) as server:
        simulator.set_keys({key: [{"status": 429, "retry_after": "1", "times": 1}] for key in (A, B)})
        with anthropic.Anthropic(base_url=server.url, api_key=CALLER, max_retries=0) as sdk:
            asked = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
            began = time.monotonic()
            assert sdk.messages.create(model="claude-sim-json-0ms", **asked).type == "message"  # type: ignore[call-overload]
            assert time.monotonic() - began >= 1.0
        simulator.set_keys({key: [{"status": 429, "retry_after": "90"}] for key in (A, B)})
        first = send(server)
        assert (first.status, first.get("retry-after")) == (429, "90"), "the provider's own answer, as it came"
        heard = sum(used(simulator).values())
        later = send(server)
        assert (later.status, later.error, later.get("x-penstock-error")) == (
            503,
            "overloaded_error",
            "no_credential",
        )
        assert 85 <= int(later.get("retry-after")) <= 91
        assert sum(used(simulator).values()) == heard


def test_b34_steered_away_before_the_429(start: Start, simulator: Running) -> None:
    """Six requests in twenty seconds is all that one key may do; the other has no limit."""
    with start(A, B) as server:
        simulator.set_keys({A: [{"rate": {"limit": 6, "window_s": 20.0}}]})
        assert {send(server, "json-60ms").status for _ in range(18)} == {200}
        record = simulator.keys()
        assert [status for _, status in record[A]] == [200] * 6 and len(record[B]) == 12


def test_b34_a_conversation_keeps_its_key(start: Start, simulator: Running) -> None:
    """By the client's session header, by its user id, or by how the conversation begins; others spread."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    with start(A, B, C) as server:

        def keys_of(count: int, **more: Any) -> list[str]:
            before = len(simulator.requests())
            for _ in range(count):
                assert send(server, **({"messages": turns} | more)).status == 200
            return [row["x-api-key"] for row in simulator.requests()[before:]]

        chosen = Counter[str]()
        for number in range(12):
            session = keys_of(3, headers=(("x-claude-code-session-id", f"session-{number}"),))
            user = keys_of(3, metadata={"user_id": f"user_{number}"})
            assert len(set(session)) == len(set(user)) == 1
            chosen.update((session[0], user[0]))
        assert set(chosen) == {A, B, C}, "different ones have different keys"
        system = [{"type": "text", "text": "You are terse."}]
        seen = set()
        for turn in range(5):
            marked = json.loads(json.dumps(turns))
            marked[-1]["content"] = [
                {"type": "text", "text": marked[-1]["content"], "cache_control": {"type": "ephemeral"}}
            ]
            seen.update(keys_of(1, system=system, messages=marked))
            turns += [{"role": "assistant", "content": f"a{turn}"}, {"role": "user", "content": f"q{turn}"}]
        assert len(seen) == 1
        (mine,) = seen
        simulator.set_keys({mine: [{"status": 429, "retry_after": "60"}]})
        moved = keys_of(4, system=system, messages=turns)
        assert moved[0] == mine and mine not in moved[1:], "given up while that one rests"
        assert len(set(moved[1:])) == 1, "and the next one is kept as well"


def test_b34_models_on_keys_and_weights(start: Start, simulator: Running) -> None:
    keys = (
        {"name": "alpha", "value": A, "weight": 3},
        {"name": "bravo", "value": B, "weight": 1},
        {"name": "gamma", "value": C, "models": ["claude-*-preview"]},
    )
    with start(*keys) as server:
        for number in range(40):
            assert send(server, metadata={"user_id": f"one-time-{number}"}).status == 200
        assert used(simulator)[C] == 0 and 20 <= used(simulator)[A] <= 38, "as the lot falls"
        simulator.reset()
        assert {send(server).status for _ in range(40)} == {200}
        assert used(simulator) == {A: 30, B: 10}
        simulator.reset()
        for _ in range(3):
            assert send(server, "claude-new-preview").status == 200
        assert used(simulator) == {C: 3}
        simulator.set_keys({C: [{"status": 529, "times": 2}]})
        assert send(server, "claude-new-preview").status == 200
        assert used(simulator) == {C: 6}, "no other key serves that model"


def test_b34_a_403_of_every_key_is_the_requests_own(start: Start, simulator: Running) -> None:
    """Two say so; the third is not asked, and none is put out."""
    with start(A, B, C) as server:
        simulator.set_keys({key: [{"status": 403, "times": 1}] for key in (A, B, C)})
        answer = send(server)
        assert (answer.status, answer.error) == (403, "permission_error")
        assert list(used(simulator).values()) == [1, 1]
        simulator.set_keys({})
        assert "benched" not in states(server).values()
        assert {send(server).status for _ in range(4)} == {200}


def test_b35_a_failing_key_does_not_bring_the_provider_down(start: Start, simulator: Running) -> None:
    """Its own breaker, and the others' good answers."""
    with start(A, B, BREAKER_MIN_CALLS=5, BREAKER_OPEN=30) as server:
        simulator.set_keys({A: [{"status": 500}]})
        assert {send(server).status for _ in range(40)} == {200}
        assert len(simulator.keys()[A]) <= 5
        page = ask(server.port, "/anthropic/metrics").json()["traffic"]["targets"][0]
        assert page["breaker"]["state"] == "closed"


def test_b34_an_only_key_that_is_wrong_is_not_hammered(start: Start, simulator: Running) -> None:
    """The client hears the provider's own words once; who comes then is told at once when to come again."""
    with start(A) as server:
        simulator.set_keys({A: [{"status": 401, "times": 1}, {"status": 403, "times": 3}]})
        assert send(server, "json-0ms").status == 401
        began = time.monotonic()
        for _ in range(3):
            answer = send(server)
            assert (answer.status, answer.get("x-penstock-error")) == (503, "no_credential")
            assert 4 <= int(answer.get("retry-after")) <= 5
        assert time.monotonic() - began < 2
        assert used(simulator) == {A: 1}
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.json()["status"]) == (503, "unavailable")
