"""deploy/nginx.conf at work: events reach the client at once, and what nginx knows reaches the gateway.

Runs on: the test's thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from app.simulator.running import Running
from tests.e2e.prometheus import DEPLOY
from tests.e2e.servers import Farm, Server, free_port, launched, until
from tests.e2e.wire import USUAL, Answer, Raw, message, request

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MIB = 1 << 20
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: apt-get install nginx-light)")


class Front(Raw):
    """A connection to nginx, over TLS."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        super().__init__(port)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self.sock: socket.socket = context.wrap_socket(self.sock, server_hostname="llm.example.com")


def _configured(folder: Path, gateway: Server, port: int) -> trustme.CA:
    """nginx.conf with the sample inside; of that, only addresses and paths are changed."""
    authority = trustme.CA()
    certificate = authority.issue_cert("llm.example.com")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
    sample = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for pattern, ours in (
        (r"listen 443 ", f"listen 127.0.0.1:{port} "),
        (r"server 127\.0\.0\.1:8000;", f"server 127.0.0.1:{gateway.port};"),
        (r"/etc/nginx/tls/(fullchain|privkey)\.pem", str(folder / "tls.pem")),
    ):
        sample, count = re.subn(pattern, ours, sample)
        assert count, pattern
    kept = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nworker_processes 1;\npid {folder / 'nginx.pid'};\nerror_log stderr warn;\n"
        f"events {{ worker_connections 64; }}\nhttp {{\naccess_log off;\n{kept}\n{sample}\n}}\n",
        encoding="utf-8",
    )
    return authority


@pytest.fixture(scope="module")
def front(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int, trustme.CA]]:
    """The gateway, and the port of an nginx in front of it."""
    assert NGINX is not None
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    gateway = farm.shared("gevent")
    authority = _configured(folder, gateway, port)
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    tried = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tried.returncode == 0 and "warn" not in tried.stderr, tried.stderr
    with launched(command, {}, folder / "nginx.log", "nginx", port):
        yield gateway, port, authority


@contextlib.contextmanager
def _connected(front: tuple[Server, int, trustme.CA]) -> Iterator[Front]:
    with Front(front[1], front[2]) as raw:
        yield raw


def _line(server: Server, answer: Answer) -> dict[str, object]:
    def found() -> list[dict[str, object]]:
        return [row for row in server.lines() if row["request_id"] == answer.get("x-request-id")]

    until(found, what="the log line")
    return found()[0]


def test_events_are_not_held_back(front: tuple[Server, int, trustme.CA], simulator: Running) -> None:
    sample = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for directive in ("proxy_buffering off;", "proxy_request_buffering off;"):
        assert directive in sample, "the gateway's x-accel-buffering speaks of event streams only"
    with _connected(front) as raw:
        raw.send(request("/v1/messages", message("stall-3", stream=True), USUAL))
        head = raw.head()
        assert head.status == 200
        got = b""
        for piece in raw.pieces(head):  # the rest never comes
            got += piece
            if got.count(b"content_block_delta\n") == 3:
                break
    until(lambda: simulator.stats()["open_streams"] == 0, what="the end of the stream nobody reads")


def test_ids_and_the_time_in_front_are_passed_on(
    front: tuple[Server, int, trustme.CA], simulator: Running
) -> None:
    with _connected(front) as raw:
        own = raw.ask("/v1/messages", message("json-0ms"), (*USUAL, ("x-request-id", "from-the-caller-0001")))
        made = raw.ask("/v1/messages", message("json-0ms"), USUAL)
    assert own.get("x-request-id") == "from-the-caller-0001"
    assert re.fullmatch(r"[0-9a-f]{32}", made.get("x-request-id")), "nginx's own"
    for answer in (own, made):
        assert answer.status == 200
        waited_ms = _line(front[0], answer)["router_ms"]
        assert isinstance(waited_ms, float) and 0 <= waited_ms < 60_000


def test_bodies_up_to_the_gateways_limits(front: tuple[Server, int, trustme.CA], simulator: Running) -> None:
    for target, size_mib, status in (("/v1/messages", 31, 200), ("/v1/messages", 33, 413), ("/v1/files", 33, 200)):
        with _connected(front) as raw:
            body = message("json-0ms", padding="x" * (size_mib * MIB))
            raw.send(request(target, None, (*USUAL, ("Content-Length", str(len(body)))), "POST"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                raw.send(body)  # whoever refuses it does not read it
            assert raw.head().status == status, (target, size_mib)


def test_metrics_are_for_this_host(front: tuple[Server, int, trustme.CA]) -> None:
    with _connected(front) as raw:
        assert raw.ask("/metrics").body.startswith(b"# HELP")
    sample = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    place = re.search(r"location ~ (\S+) \{\s+allow 127\.0\.0\.1;\s+deny all;", sample)
    assert place
    closed = re.compile(place[1])
    assert all(closed.match(path) for path in ("/metrics", "/anthropic/metrics", "/admin/records/x"))
    assert not any(closed.match(path) for path in ("/health", "/v1/messages", "/anthropic/v1/messages"))
