"""Who may come in, with which key the upstream is asked, and what may not be started at all (B12, B40)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from app.simulator.running import Running
from tests.e2e.servers import ROOT, Farm, Server, environment
from tests.e2e.wire import VERSION, Answer, ask, message

UPSTREAM = "sk-ant-upstream-77aa"
ONE, TWO = "gateway-key-one-11bb", "gateway-key-two-22cc"
ACCEPT = ("accept", "*/*")


@pytest.fixture
def guarded(farm: Farm, kind: str, simulator: Running) -> Server:
    return farm.shared(kind, ANTHROPIC_API_KEY=UPSTREAM, GATEWAY_API_KEYS=f"{ONE},{TWO}")


def call(server: Server, *headers: tuple[str, str]) -> Answer:
    return ask(server.port, "/v1/messages", message("json-0ms"), (ACCEPT, VERSION, *headers))


def credentials(simulator: Running) -> list[tuple[str, str]]:
    """Credential headers the upstream heard."""
    last = simulator.last()
    assert last is not None
    return [(name, value) for name, value in last["headers"] if name in ("x-api-key", "authorization")]


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", ONE)],
        [("X-Api-Key", TWO)],
        [("Authorization", f"Bearer {ONE}")],
        [("authorization", f"bearer {TWO}")],
        [("x-api-key", "stale"), ("authorization", f"Bearer {ONE}")],
        [("x-api-key", ONE), ("authorization", "Bearer other")],
    ],
    ids=["key", "key-two", "bearer", "bearer-two", "either", "both"],
)
def test_a_right_key(guarded: Server, simulator: Running, headers: list[tuple[str, str]]) -> None:
    """The caller's end here, whatever they are; ours is added."""
    assert call(guarded, *headers).status == 200
    assert credentials(simulator) == [("x-api-key", UPSTREAM)]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "wrong")],
        [("x-api-key", ONE[:-1])],
        [("x-api-key", ONE + "x")],
        [("x-api-key", f"{ONE},{TWO}")],
        [("x-api-key", UPSTREAM)],
        [("authorization", "Bearer wrong")],
        [("authorization", ONE)],
        [("authorization", f"Basic {ONE}")],
        [("x-api-key", f"Bearer {ONE}")],
        [("x-api-key", "\xe9\xff")],
    ],
)
def test_a_wrong_key(guarded: Server, simulator: Running, headers: list[tuple[str, str]]) -> None:
    answer = call(guarded, *headers)
    assert (answer.status, answer.error) == (401, "authentication_error")
    assert answer.get("x-penstock-error") == "unauthenticated"
    assert answer.get("x-should-retry") == "false"
    assert simulator.stats()["by_path"] == {}
    for secret in (ONE, TWO, UPSTREAM):
        assert secret not in answer.body.decode()


def test_the_operators_pages_need_no_key(guarded: Server) -> None:
    for path in ("/health", "/ready", "/metrics", "/anthropic/metrics"):
        answer = ask(guarded.port, path)
        assert answer.status == 200
        assert UPSTREAM not in answer.body.decode()


@pytest.mark.parametrize("path", ["/v1/models", "/anthropic/v1/files", "/v1/unheard-of", "/anthropic//v1/models"])
def test_every_path_is_guarded(guarded: Server, simulator: Running, path: str) -> None:
    assert ask(guarded.port, path, None, (ACCEPT,)).status in (401, 404)
    assert simulator.stats()["by_path"] == {}


@pytest.mark.parametrize("gateway_keys", ["", ONE], ids=["none", "unused"])
def test_without_credentials_of_ours_the_callers_pass(
    farm: Farm, kind: str, simulator: Running, gateway_keys: str
) -> None:
    """Gateway keys guard our credentials; where there are none, the provider judges."""
    server = farm.shared(kind, GATEWAY_API_KEYS=gateway_keys)
    own = [("x-api-key", "sk-own"), ("authorization", "Bearer sk-own-too")]
    assert call(server, *own).status == 200
    assert credentials(simulator) == own
    assert call(server).status == 200
    assert credentials(simulator) == []


def test_anonymous_callers_where_it_is_allowed(farm: Farm, kind: str, simulator: Running) -> None:
    server = farm.shared(kind, ANTHROPIC_API_KEYS=f"{UPSTREAM},sk-second", GATEWAY_ALLOW_ANONYMOUS="true")
    used = set()
    for session in range(12):  # a conversation keeps its key, so there have to be several
        presented = (("x-api-key", "whatever"), ("authorization", "Bearer x"))
        assert call(server, *presented, ("x-claude-code-session-id", str(session))).status == 200
        used.add(tuple(credentials(simulator)))
    assert used == {(("x-api-key", UPSTREAM),), (("x-api-key", "sk-second"),)}


def _start(simulator: Running, args: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    environ = environment(simulator, **settings) | {"GUNICORN_CMD_ARGS": args}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20)


def test_all_faults_at_once(simulator: Running) -> None:
    """Exit code 2 before a socket is opened; each fault names its variable, none shows a secret."""
    told = _start(
        simulator,
        HOST="0.0.0.0",
        ANTHROPIC_API_KEY=UPSTREAM,
        STREAM_TIMEOUT="soon",
        WEB_CONCURRENCY="0",
        ANTHROPIC_UPSTREAM_URL="ftp://x",
        ANTHROPIC_KEEPALIVE_EXPIRE="9",
        SSL_CERT_FILE="/nowhere.pem",
        STREAM_HEARTBEAT_KIND="song",
    )
    assert told.returncode == 2
    for name in (
        "HOST=0.0.0.0",
        "STREAM_TIMEOUT=soon",
        "WEB_CONCURRENCY=0",
        "ANTHROPIC_UPSTREAM_URL=ftp://x",
        "did you mean ANTHROPIC_KEEPALIVE_EXPIRY?",
        "SSL_CERT_FILE=/nowhere.pem",
        "STREAM_HEARTBEAT_KIND=song",
    ):
        assert told.stderr.count(name) == 1, told.stderr
    assert UPSTREAM not in told.stdout + told.stderr
    assert "Listening" not in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("args", ["", "--bind 0.0.0.0:0"])
def test_credentials_for_strangers_are_refused(simulator: Running, args: str) -> None:
    """By HOST, and also where gunicorn's own --bind opens the door."""
    told = _start(simulator, args, ANTHROPIC_API_KEY=UPSTREAM, HOST="127.0.0.1" if args else "0.0.0.0")
    assert told.returncode == 2, told.stderr
    assert "GATEWAY_ALLOW_ANONYMOUS=true" in told.stderr
    assert "Listening" not in told.stderr
