"""Two gunicorns and one Redis: what one node learns the other knows, limits hold for both, Redis may be gone."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.simulator.running import Running
from tests.e2e.servers import Farm, Measured, Server, until
from tests.e2e.test_caller_limits import PREFIX, early_in_a_minute
from tests.e2e.test_workers_share import KEYS, Side, another, left_alone, sides, spoil
from tests.e2e.wire import VERSION, Answer, Raw, ask, request
from tests.integration.store.conftest import RedisServer, binary

CALLERS = {name: f"caller-{name}-77ab" for name in ("free", "minute", "again", "places", "tokens", "wide")}
LIMITS: dict[str, dict[str, int]] = {
    "minute": {"requests_per_minute": 20},
    "again": {"requests_per_minute": 20},
    "places": {"concurrent_requests": 5},
    "tokens": {"tokens_per_day": 100},
    "wide": {"requests_per_minute": 10**6, "concurrent_requests": 1000, "tokens_per_day": 10**12},
}
PASSWORD = "redis-password-5f5f"
WRONG = "redis-wrong-6a6a"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Keys and callers of all nodes."""
    upstream = [{"name": label, "value": secret} for label, secret in KEYS.items()]
    callers = [{"name": name, "value": value, **LIMITS.get(name, {})} for name, value in CALLERS.items()]
    path = tmp_path_factory.mktemp("config") / "penstock.json"
    path.write_text(json.dumps({"providers": {"anthropic": {"keys": upstream}}, "gateway": {"keys": callers}}))
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary()
    server = RedisServer(tmp_path_factory.mktemp("redis"), password=PASSWORD)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def nodes(farm: Farm, config: str, store: RedisServer) -> Iterator[tuple[Server, Server]]:
    settings: dict[str, Any] = {"PENSTOCK_CONFIG": config, "REDIS_URL": store.url}
    with farm.own("gevent", **settings) as one, farm.own("gevent", **settings) as two:
        for node in (one, two):
            until(lambda: status(node) == "ready", 15, "Redis")  # noqa: B023 - called at once
        yield one, two


@pytest.fixture
def both(nodes: tuple[Server, Server], store: RedisServer, simulator: Running) -> Iterator[tuple[Side, Side]]:
    """Kept connections to each node."""
    with sides(nodes[0], each=7) as (one,), sides(nodes[1], each=7) as (two,):
        yield one, two
    if store.process is None:  # a test that failed in the middle
        store.start()


def status(node: Server) -> str:
    """What ``/ready`` says; it has to be 200."""
    answer = ask(node.port, "/ready")
    assert answer.status == 200, answer.body
    return str(answer.json()["status"])


def metric(node: Server, name: str) -> float:
    """A series without labels."""
    lines = ask(node.port, "/metrics").body.decode().splitlines()
    (found,) = [line.split()[1] for line in lines if line.split()[0] == name]
    return float(found)


def remaining(answer: Answer, what: str) -> int:
    return int(answer.get(f"{PREFIX}{what}-remaining"))


# --- facts


def test_the_other_node_learns_of_a_cooling_key(
    both: tuple[Side, Side], simulator: Running, measured: Measured
) -> None:
    one, two = both
    simulator.set_keys({})
    assert {two.post(key=CALLERS["free"]).status for _ in range(40)} == {200}
    assert len(simulator.keys()) == 5, "it uses all of them"
    spoil(one, simulator, "key-a", 429, key=CALLERS["free"], retry_after="60")
    took_s = until(lambda: two.state("key-a") == "cooling", 5, "the news")
    measured("until the other node knows, s", round(took_s, 3))
    left_alone(two, simulator, "key-a", key=CALLERS["free"])


# --- limits


def test_requests_per_minute_are_exact_over_both_nodes(both: tuple[Side, Side], simulator: Running) -> None:
    simulator.reset()
    assert spent([raw for side in both for raw in side.more[:4]], "minute") == {200: 20, 429: 20}
    assert len(simulator.requests()) == 20


def spent(raws: list[Raw], name: str) -> Counter[int]:
    """Forty requests of this caller, divided among connections that ask at the same time; the statuses."""

    def some(raw: Raw) -> list[Answer]:
        headers = (("x-api-key", CALLERS[name]), VERSION)
        return [raw.ask("/v1/messages", another(), headers) for _ in range(40 // len(raws))]

    with ThreadPoolExecutor(len(raws)) as pool:
        return Counter(answer.status for answers in pool.map(some, raws) for answer in answers)


def test_concurrent_requests_are_exact_over_both_nodes(
    both: tuple[Side, Side], nodes: tuple[Server, Server]
) -> None:
    raws = [raw for side in both for raw in side.more]

    def begin(raw: Raw) -> int:
        raw.send(
            request("/v1/messages", another("stream-10000x20ms", stream=True), (("x-api-key", CALLERS["places"]),))
        )
        return raw.head().status

    with ThreadPoolExecutor(len(raws)) as pool:
        found = list(pool.map(begin, raws))
    assert Counter(found) == {200: 5, 429: 7}
    for raw in raws:
        raw.close()
    for side in both:
        until(lambda: remaining(side.post(key=CALLERS["places"]), "concurrent") == 4, 5, "all places")  # noqa: B023


def test_tokens_are_those_of_both_nodes(both: tuple[Side, Side]) -> None:
    one, two = both
    assert remaining(one.post(key=CALLERS["tokens"]), "tokens") == 100
    until(lambda: remaining(two.post("status-400", key=CALLERS["tokens"]), "tokens") == 54, 3, "the booking")
    assert one.post(key=CALLERS["tokens"]).status == 200
    until(lambda: remaining(two.post("status-400", key=CALLERS["tokens"]), "tokens") == 8, 3, "the booking")
    assert two.post(key=CALLERS["tokens"]).status == 200
    until(lambda: one.post("status-400", key=CALLERS["tokens"]).status == 429, 3, "the end")


# --- Redis gone


class Load:
    """Requests of one caller over both nodes, one after the other on each connection, until the block is left."""

    def __init__(self, both: tuple[Side, Side]) -> None:
        self.statuses: Counter[int] = Counter()
        self.longest_s = 0.0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(raw,)) for side in both for raw in side.more[4:7]
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, raw: Raw) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            answer = raw.ask("/v1/messages", another(), (("x-api-key", CALLERS["wide"]), VERSION))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.statuses[answer.status] += 1
            assert answer.get(f"{PREFIX}requests-limit")
            self._over.wait(0.01)


def test_redis_is_killed_in_mid_load_and_comes_back(
    both: tuple[Side, Side],
    nodes: tuple[Server, Server],
    store: RedisServer,
    simulator: Running,
    measured: Measured,
) -> None:
    one, two = both
    with Load(both) as load:
        time.sleep(0.3)
        store.kill()
        for node in nodes:
            until(lambda: status(node) == "degraded", 5, "degraded")  # noqa: B023
            assert "redis_unreachable" in ask(node.port, "/ready").json()["reasons"]
            assert metric(node, "penstock_shared_state_degraded") == 1.0
            assert node.lines("shared_state_recovered") == []
        time.sleep(1.5)
        for node in nodes:
            until(lambda: len(node.lines("shared_state_degraded")) == 1, 3, "its line")  # noqa: B023
            assert node.lines("shared_state_degraded")[0]["level"] == "warning"
            until(lambda: len(node.lines("caller_limits_degraded")) == 1, 3, "its line")  # noqa: B023
        early_in_a_minute()  # of the clock: those that a node counts by itself
        assert spent(one.more[:4], "again") == {200: 20, 429: 20}, "the node's own limit holds"
        store.start()
        back_at = time.monotonic()
        for node in nodes:
            until(lambda: status(node) == "ready", 10, "ready")  # noqa: B023
        measured("until both nodes are ready again, s", round(time.monotonic() - back_at, 3))
    assert set(load.statuses) == {200}
    assert sum(load.statuses.values()) > 100
    measured("slowest request while it was gone, s", round(load.longest_s, 3))
    for node in nodes:
        assert metric(node, "penstock_shared_state_degraded") == 0.0
        until(lambda: len(node.lines("shared_state_recovered")) == 1, 3, "its line")  # noqa: B023
        until(lambda: len(node.lines("caller_limits_restored")) == 1, 3, "its line")  # noqa: B023
    spoil(one, simulator, "key-c", 429, key=CALLERS["free"], retry_after="60")
    until(lambda: two.state("key-c") == "cooling", 5, "the news")


def test_a_redis_that_hangs_fails_no_request(
    both: tuple[Side, Side], nodes: tuple[Server, Server], store: RedisServer, measured: Measured
) -> None:
    assert store.process is not None
    with Load(both) as load:
        time.sleep(0.2)
        store.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: status(nodes[0]) == "degraded", 5, "degraded")
            assert ask(nodes[0].port, "/ready").json()["reasons"].count("redis_timeout") == 1
            time.sleep(1.0)
        finally:
            store.process.send_signal(signal.SIGCONT)
        for node in nodes:
            until(lambda: status(node) == "ready", 10, "ready")  # noqa: B023
    assert set(load.statuses) == {200}
    measured("slowest request, s", round(load.longest_s, 3))


# --- what may be seen


def test_states_are_shown_and_secrets_are_nowhere(
    both: tuple[Side, Side], nodes: tuple[Server, Server], store: RedisServer, simulator: Running
) -> None:
    spoil(both[1], simulator, "key-b", 403, key=CALLERS["free"])
    until(lambda: both[0].state("key-b") == "benched", 5, "the news")
    assert status(nodes[0]) == "degraded"
    seen = ""
    for side, node in zip(both, nodes, strict=True):
        states = {one["label"]: one["state"] for one in side.metrics()["credentials"]}
        assert states["key-a"] == states["key-c"] == "cooling"
        assert (states["key-b"], states["key-e"]) == ("benched", "healthy")
        text = side.ask("/metrics").body.decode()
        assert 'penstock_credential_state{credential="key-a",provider="anthropic",state="cooling"} 1.0' in text
        assert 'penstock_breaker_state{provider="anthropic",state="closed"} 1.0' in text
        seen += (
            text + node.output + side.ask("/anthropic/metrics").body.decode() + side.ask("/ready").body.decode()
        )
    with redis.Redis(port=store.port, password=PASSWORD) as client:
        names = sorted(client.scan_iter())
        assert names
        seen += repr([(name, client.dump(name)) for name in names])
    for secret in (*KEYS.values(), *CALLERS.values(), PASSWORD):
        assert secret not in seen


# --- TLS and passwords


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, as platforms hand them out, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    files = folder / "redis.pem", folder / "redis.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files


def test_tls_with_a_self_signed_certificate_and_a_wrong_password(
    farm: Farm, config: str, simulator: Running, tmp_path: Path
) -> None:
    binary()
    server = RedisServer(tmp_path, certificate=self_signed(tmp_path), password=PASSWORD)
    early_in_a_minute()
    settings: dict[str, Any] = {"PENSTOCK_CONFIG": config}
    good: dict[str, Any] = settings | {"REDIS_URL": server.url}
    wrong: dict[str, Any] = settings | {"REDIS_URL": server.url.replace(PASSWORD, WRONG), "LOG_LEVEL": "debug"}
    strict: dict[str, Any] = good | {"REDIS_TLS_VERIFY": "true"}
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        right, bad, suspicious = (stack.enter_context(farm.own("gevent", **how)) for how in (good, wrong, strict))
        until(lambda: status(right) == "ready", 15, "Redis over TLS")
        until(lambda: right.lines("redis_certificate_unverified"), 3, "the warning")
        (line,) = right.lines("redis_certificate_unverified")
        assert line["level"] == "warning"
        for node, reason in ((bad, "redis_login"), (suspicious, "redis_certificate")):
            until(lambda: reason in ask(node.port, "/ready").json()["reasons"], 5, reason)  # noqa: B023
            assert status(node) == "degraded"
            headers = (("x-api-key", CALLERS["minute"]), VERSION)
            found = [ask(node.port, "/v1/messages", another(), headers).status for _ in range(21)]
            assert found == [200] * 20 + [429], "the node's own limit"
        answer = ask(right.port, "/v1/messages", another(), (("x-api-key", CALLERS["minute"]), VERSION))
        assert remaining(answer, "requests") == 19
        with redis.Redis(port=server.port, password=PASSWORD, ssl=True, ssl_cert_reqs="none") as client:
            assert list(client.scan_iter()), "it was Redis that counted"
        time.sleep(1.1)  # what the others have to say is written every second
        pages = [ask(node.port, path).body.decode() for node in (right, bad) for path in ("/ready", "/metrics")]
    for text in (*pages, right.output, bad.output, suspicious.output):
        assert PASSWORD not in text
        assert WRONG not in text
