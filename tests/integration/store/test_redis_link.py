"""The link between nodes against a real Redis: shared in time, gone and back, TLS as platforms offer it."""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.store.facts import Fact, Kind
from app.store.redis import KEPT, STREAM, RedisLink, Verify
from tests.integration.store.conftest import RedisServer, Serve, binary

ROOT = Path(__file__).resolve().parents[3]
PUMP_S = 0.2
SHARED_S = 1.0
LONGEST_PUMP_S = 1.5
"""Two tries of a few time limits of 0.25 s each, on a busy machine."""


class Node:
    """One worker somewhere, pumped by hand."""

    def __init__(
        self, url: str, verify: Verify = "auto", ca_file: str | None = None, ahead_s: float = 0.0
    ) -> None:
        self.outbox: deque[Fact] = deque()
        self.heard: list[Fact] = []
        self.events: list[dict[str, object]] = []
        self.longest_s = 0.0
        self.clock: Callable[[], float] = lambda: time.monotonic() + ahead_s
        self.link = RedisLink(
            url, verify, ca_file, self.outbox, self.heard.extend, self.events.append, clock=self.clock
        )

    def pump(self) -> None:
        began = time.monotonic()
        self.link.pump()
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def pump_until(self, condition: Callable[[], object], limit_s: float = 5.0) -> None:
        """As the keeper does."""
        deadline = time.monotonic() + limit_s
        while True:
            self.pump()
            if condition():
                return
            assert time.monotonic() < deadline, (self.link, self.events, self.heard)
            time.sleep(PUMP_S)

    def say(self, credential: str = "key-1", left_s: float = 60.0, kind: Kind = "cooling") -> Fact:
        fact = Fact(kind, "anthropic", credential, self.clock() + left_s)
        self.outbox.append(fact)
        return fact

    def names(self) -> list[str]:
        return [str(event["event"]) for event in self.events]


Start = Callable[..., Node]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers; each has reached Redis if it can be reached."""
    made: list[Node] = []

    def one(server: RedisServer | str, *args: Any, **options: Any) -> Node:
        made.append(Node(server if isinstance(server, str) else server.url, *args, **options))
        made[-1].pump()
        return made[-1]

    yield one
    for node in made:
        node.link.close()


def words(facts: list[Fact]) -> list[tuple[str, str]]:
    return [(fact.kind, fact.credential) for fact in facts]


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_redis_is_skipped_and_under_ci_a_failure(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="redis-server is not installed"):
        binary()


# sharing


def test_two_nodes_share_a_fact_within_a_second(
    server: RedisServer, start: Start, record_property: Callable[[str, object], None]
) -> None:
    one, two, three = start(server), start(server), start(server, ahead_s=10_000.0)
    assert one.link.degraded == two.link.degraded == ""
    fact = one.say()
    said_at = time.monotonic()
    one.pump()
    two.pump_until(lambda: two.heard, SHARED_S)
    record_property("seconds", time.monotonic() - said_at)
    three.pump_until(lambda: three.heard, SHARED_S)
    assert [(each.kind, each.provider, each.credential) for each in two.heard] == [
        ("cooling", "anthropic", "key-1")
    ]
    assert 0.0 <= two.heard[0].until_at - fact.until_at < 0.1, "never earlier than it was said"
    assert 0.0 <= three.heard[0].until_at - 10_000.0 - fact.until_at < 0.1, "on that machine's own clock"
    for credential, left_s in (("key-2", 60.0), ("key-3", 0.05), ("key-4", 60.0)):
        one.say(credential, left_s)
        one.pump()
    time.sleep(0.06)
    for _ in range(3):
        one.pump()
        two.pump()
    assert one.heard == [], "its own words"
    assert [fact.credential for fact in two.heard] == ["key-1", "key-2", "key-4"], "once, and what still holds"
    assert one.events == two.events == []


def test_facts_keep_their_order_and_names(server: RedisServer, start: Start) -> None:
    one = start(server)
    one.say("long ago", 0.0, "restored")
    one.pump()
    two = start(server)
    one.say("", kind="open")
    one.say("ключ\udcff ß", kind="benched")
    one.pump()
    one.say("key-1")
    one.say("ключ\udcff ß", 0.0, kind="restored")
    one.pump()
    one.say("", 0.0, kind="closed")
    one.pump()
    two.pump()
    assert words(two.heard) == [
        ("open", ""),
        ("benched", "ключ\udcff ß"),
        ("cooling", "key-1"),
        ("restored", "ключ\udcff ß"),
        ("closed", ""),
    ]


def test_a_newcomer_hears_what_still_holds(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    one.say("short", 0.15)
    one.say("restored")
    one.say("long", 300.0, "benched")
    one.pump()
    two.say("restored", 0.0, "restored")
    two.pump()
    time.sleep(0.2)
    assert words(start(server).heard) == [("benched", "long")]


def test_nothing_is_sent_twice_and_the_stream_stays_short(server: RedisServer, start: Start) -> None:
    node = start(server)
    for n in range(3 * KEPT):
        node.say(f"key-{n}", 3e9)
        if n % 500 == 499:
            node.pump()
    node.pump()
    with redis.Redis(port=server.port) as client:
        assert KEPT <= client.xlen(STREAM) < KEPT + 200
        assert 0 < int(client.ttl(STREAM)) <= 86_400
        assert STREAM.startswith("penstock:")
        before = client.xlen(STREAM)
        node.pump()
        assert client.xlen(STREAM) == before
    heard = start(server).heard
    assert heard[-1].credential == f"key-{3 * KEPT - 1}"
    assert max(fact.until_at for fact in heard) <= node.clock() + 86_400.1, "no fact outlives a day"


def test_what_others_write_there_is_skipped(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    good = {"kind": "cooling", "provider": "p", "credential": "good", "left_ms": "5000", "author": "x"}
    with redis.Redis(port=server.port) as client:
        for bad in (
            {"kind": "shouting"},
            {"left_ms": "-5"},
            {"left_ms": "9" * 30},
            {"left_ms": "soon"},
            {"provider": "p" * 1000},
        ):
            client.xadd(STREAM, {**good, **bad})
        client.xadd(STREAM, {"hello": "world"})
        client.xadd(STREAM, {**good})
        client.xadd(STREAM, {**good, "credential": "long", "left_ms": "999999999"})
    for node in (one, two, start(server)):
        node.pump()
        assert words(node.heard) == [("cooling", "good"), ("cooling", "long")]
        assert node.heard[1].until_at < node.clock() + 86_401, "nobody can keep a key away for ever"
        assert node.link.degraded == ""


def test_the_client_serves_others(server: RedisServer, start: Start) -> None:
    """As ``limits`` uses it."""
    from limits import parse
    from limits.storage import RedisStorage
    from limits.strategies import MovingWindowRateLimiter

    node = start(server)
    client = node.link.client()
    limiter = MovingWindowRateLimiter(RedisStorage("redis://", connection_pool=client.connection_pool))
    assert [limiter.hit(parse("2/minute"), "caller") for _ in range(3)] == [True, True, False]
    node.link.close()
    node.link.pump()
    assert node.link.client() is None


# gone, and back


def test_killed_in_the_middle_and_back(
    server: RedisServer, start: Start, record_property: Callable[[str, object], None]
) -> None:
    one, two = start(server), start(server)
    one.say("before")
    one.pump()
    two.pump_until(lambda: two.heard)
    assert one.link.client().ping()
    server.kill()
    one.pump_until(lambda: one.link.degraded)
    two.pump_until(lambda: two.link.degraded)
    assert one.link.degraded == "redis_unreachable"
    assert one.link.client() is None
    assert one.names() == ["shared_state_degraded"]
    one.say("too short", 0.3)
    one.say("held back")
    for _ in range(8):
        one.pump()
        two.pump()
        time.sleep(PUMP_S)
    assert one.names() == ["shared_state_degraded"], "said once, not at every try"
    assert max(one.longest_s, two.longest_s) < LONGEST_PUMP_S
    server.start()
    back_at = time.monotonic()
    one.pump_until(lambda: not one.link.degraded, 2.0)
    record_property("healed after s", time.monotonic() - back_at)
    two.pump_until(lambda: len(two.heard) > 1, 2.0)
    assert words(two.heard) == [("cooling", "before"), ("cooling", "held back")]
    assert one.names() == ["shared_state_degraded", "shared_state_recovered"]
    assert one.link.client().ping()
    one.say("after")
    one.pump()
    two.pump_until(lambda: len(two.heard) > 2, SHARED_S)
    assert words(two.heard)[2:] == [("cooling", "after")]


def test_a_restart_between_two_pumps_is_no_outage(server: RedisServer, start: Start) -> None:
    node = start(server)
    server.kill()
    server.start()
    node.say()
    node.pump()
    assert node.link.degraded == ""
    assert node.events == []
    assert words(start(server).heard) == [("cooling", "key-1")]


def test_a_redis_that_comes_back_with_a_late_clock_is_heard(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    with redis.Redis(port=server.port) as client:
        client.xadd(STREAM, {"of": "a clock ahead"}, id=f"{int(time.time() + 600) * 1000}-0")
    two.pump()
    server.kill()
    server.start()
    one.say()
    one.pump()
    two.pump_until(lambda: two.heard)


def test_what_is_taken_back_is_heard_though_the_stream_was_lost(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    one.say("key-1", 3600.0, "benched")
    two.say("key-2", 3600.0, "benched")
    for node in (one, two, one):
        node.pump()
    assert words(one.heard) == [("benched", "key-2")]
    assert words(two.heard) == [("benched", "key-1")]
    server.kill()
    server.start()
    two.pump()
    one.say("key-1", 0.0, "restored")
    one.say("key-2", 0.0, "restored")
    one.pump()
    two.say("key-2", 60.0)
    two.pump_until(lambda: ("restored", "key-1") in words(two.heard))
    assert words(two.heard)[1:] == [("restored", "key-1"), ("restored", "key-2"), ("cooling", "key-2")], (
        "our own word comes after the one it came after"
    )


def test_a_redis_that_hangs_holds_nobody_up(server: RedisServer, start: Start) -> None:
    node = start(server)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(6):
            node.pump()
            time.sleep(PUMP_S)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert node.link.degraded == "redis_timeout"
    assert node.longest_s < LONGEST_PUMP_S
    node.pump_until(lambda: not node.link.degraded)


def test_not_there_at_the_start(server: RedisServer, start: Start) -> None:
    server.kill()
    node = start(server)
    assert node.link.degraded == "redis_unreachable"
    server.start()
    node.pump_until(lambda: not node.link.degraded)
    assert node.names() == ["shared_state_degraded", "shared_state_recovered"]


def test_a_long_outage_costs_bounded_memory(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    server.kill()
    for n in range(3 * KEPT):
        one.say(f"key-{n}")
    one.pump()
    assert not one.outbox
    server.start()
    one.pump_until(lambda: not one.link.degraded)
    two.pump_until(lambda: two.heard)
    assert words(two.heard) == [("cooling", f"key-{n}") for n in range(2 * KEPT, 3 * KEPT)], "the newest"


def test_a_redis_that_takes_no_writes_is_still_read(server: RedisServer, start: Start) -> None:
    one, two = start(server), start(server)
    with redis.Redis(port=server.port) as client:
        two.say("from two")
        two.pump()
        client.config_set("maxmemory", 1)
        one.say("from one")
        one.pump()
        assert words(one.heard) == [("cooling", "from two")]
        assert one.link.degraded == "redis_refused"
        assert one.link.client() is None
        client.config_set("maxmemory", 0)
    one.pump_until(lambda: not one.link.degraded)
    two.pump_until(lambda: two.heard)
    assert words(two.heard) == [("cooling", "from one")]


def test_over_a_socket_file(serve: Serve, start: Start, tmp_path: Path) -> None:
    serve(socket_file=tmp_path / "redis.sock")
    one, two = (start(f"unix://{tmp_path}/redis.sock?db=3") for _ in range(2))
    one.say()
    one.pump()
    two.pump()
    assert words(two.heard) == [("cooling", "key-1")]
    assert "redis.sock" in repr(one.link)


def test_something_else_under_its_name(server: RedisServer, start: Start) -> None:
    with redis.Redis(port=server.port) as client:
        client.set(STREAM, "taken")
    assert start(server).link.degraded == "redis_refused"


def test_a_wrong_password_is_said_without_it(serve: Serve, start: Start) -> None:
    server = serve(password="right-horse")
    good = start(server)
    assert good.link.degraded == ""
    bad = start(server.url.replace("right-horse", "wr%6Fng-horse"))
    assert bad.link.degraded == "redis_login"
    none = start(server.url.replace(":right-horse@", ""))
    assert none.link.degraded == "redis_login"
    said = repr([bad.link, bad.events, bad.link.client(), good.link, good.link.client(), vars(bad.link)["_own"]])
    for secret in ("right-horse", "wrong-horse", "wr%6Fng-horse"):
        assert secret not in said


def test_under_gevent_a_redis_that_hangs_holds_no_request_up(server: RedisServer) -> None:
    """The keeper's greenlet waits, the others run: in a process of its own, where gevent patches first."""
    assert server.process is not None
    script = """
import gevent.monkey; gevent.monkey.patch_all()
import gevent, os, signal, sys, time
from collections import deque
from app.store.redis import RedisLink
link = RedisLink(sys.argv[1], "auto", None, deque(), print, lambda event: None)
link.pump()
assert link.degraded == "", link.degraded
gaps = []
def tick():
    while True:
        began = time.monotonic(); gevent.sleep(0.005); gaps.append(time.monotonic() - began)
gevent.spawn(tick)
gevent.sleep(0)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
began = time.monotonic()
link.pump()
waited = time.monotonic() - began
os.kill(int(sys.argv[2]), signal.SIGCONT)
assert link.degraded == "redis_timeout", link.degraded
assert waited > 0.2, waited
assert len(gaps) > 20, len(gaps)
assert max(gaps) < waited / 2, (max(gaps), waited)
"""
    try:
        subprocess.run(
            [sys.executable, "-c", script, server.url, str(server.process.pid)], cwd=ROOT, check=True, timeout=30
        )
    finally:
        server.process.send_signal(signal.SIGCONT)


# certificates


def days(count: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=count)


def written(folder: Path, name: str, chain: bytes, key: bytes) -> tuple[Path, Path]:
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(chain)
    files[1].write_bytes(key)
    return files


@pytest.fixture
def self_signed(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    import ipaddress

    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), days(-1), days(1))
    certificate = made.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return written(tmp_path, "self", certificate.public_bytes(serialization.Encoding.PEM), pem)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.cert_pem.bytes())
    return str(file)


Issue = Callable[..., tuple[Path, Path]]


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Issue:
    """Issues certificates of an authority."""

    def one(host: str = "127.0.0.1", until: float = 1.0, with_root: bool = False) -> tuple[Path, Path]:
        made = authority.issue_cert(host, not_before=days(-10), not_after=days(until))
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        chain += authority.cert_pem.bytes() if with_root else b""
        return written(tmp_path, f"{host}{until}", chain, made.private_key_pem.bytes())

    return one


def test_self_signed_is_taken_by_auto_and_said_once(
    serve: Serve, start: Start, self_signed: tuple[Path, Path]
) -> None:
    server = serve(self_signed)
    one, two = start(server), start(server)
    one.say()
    one.pump()
    two.pump_until(lambda: two.heard, SHARED_S)
    one.link.client().ping()
    server.kill()
    server.start()
    one.pump_until(lambda: not one.link.degraded)
    assert one.names().count("redis_certificate_unverified") == 1
    event = next(each for each in one.events if each["event"] == "redis_certificate_unverified")
    assert event["server"] == f"127.0.0.1:{server.port}"
    assert len(str(event["sha256"])) == 64


def test_self_signed_is_refused_by_true(serve: Serve, start: Start, self_signed: tuple[Path, Path]) -> None:
    node = start(serve(self_signed), "true")
    assert node.link.degraded == "redis_certificate"
    assert "self" in str(node.events[0]["error"])


def test_self_signed_that_is_known_is_verified(serve: Serve, start: Start, self_signed: tuple[Path, Path]) -> None:
    server = serve(self_signed)
    for verify in ("true", "auto"):
        node = start(server, verify, str(self_signed[0]))
        assert node.link.degraded == ""
        assert node.events == []


@pytest.mark.parametrize(
    ("query", "verify"), [("", "false"), ("?ssl_cert_reqs=none", "true"), ("?ssl_cert_reqs=CERT_NONE", "auto")]
)
def test_verification_that_was_switched_off(
    serve: Serve, start: Start, issue: Issue, query: str, verify: Verify
) -> None:
    node = start(serve(issue(host="elsewhere.example", until=-1)).url + query, verify)
    assert node.link.degraded == ""
    assert node.events == []


def test_the_url_can_ask_for_verification(serve: Serve, start: Start, self_signed: tuple[Path, Path]) -> None:
    node = start(serve(self_signed).url + "?ssl_cert_reqs=required", "auto")
    assert node.link.degraded == "redis_certificate"


def test_a_chain_that_ends_in_its_own_root_is_self_signed(serve: Serve, start: Start, issue: Issue) -> None:
    """As on Heroku."""
    node = start(serve(issue(with_root=True)))
    assert node.link.degraded == ""
    assert node.names() == ["redis_certificate_unverified"]


@pytest.mark.parametrize("verify", ["auto", "true"])
def test_a_known_authority_is_enough(
    serve: Serve, start: Start, issue: Issue, ca_file: str, verify: Verify
) -> None:
    node = start(serve(issue()), verify, ca_file)
    assert node.link.degraded == ""
    assert node.events == []


@pytest.mark.parametrize(
    ("known", "host", "until"),
    [(True, "127.0.0.1", -1), (True, "elsewhere.example", 1), (False, "127.0.0.1", 1)],
    ids=["expired", "another host", "unknown authority"],
)
def test_every_other_fault_is_refused_by_auto(
    serve: Serve, start: Start, issue: Issue, ca_file: str, known: bool, host: str, until: float
) -> None:
    node = start(serve(issue(host=host, until=until)), "auto", ca_file if known else None)
    assert node.link.degraded == "redis_certificate"
    assert node.names() == ["shared_state_degraded"]


def test_what_was_taken_once_is_verified_the_next_time(
    serve: Serve, start: Start, issue: Issue, ca_file: str, self_signed: tuple[Path, Path]
) -> None:
    server = serve(self_signed)
    node = start(server, "auto", ca_file)
    assert node.link.degraded == ""
    server.kill()
    server.certificate = issue(until=-1)
    server.start()
    node.pump()
    assert node.link.degraded == "redis_certificate"


def test_tls_to_a_port_that_speaks_none(server: RedisServer, start: Start) -> None:
    assert start(server.url.replace("redis:", "rediss:")).link.degraded in ("redis_certificate", "redis_timeout")
