"""A real Redis: redis-server in a process of its own, on a free port, keeping nothing on disk; also over TLS.

Where the binary is missing these tests are skipped, but under CI they fail: a gate must not pass by not looking.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import free_port

START_S = 10.0


def binary() -> str:
    """Path of redis-server."""
    found = shutil.which("redis-server")
    if found is None:
        reason = "redis-server is not installed (Debian: apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; under CI it has to be")
        pytest.skip(reason)
    return found


class RedisServer:
    """One redis-server that can be killed, stopped for a while, and started again on its port.

    Args:
        folder: Where it runs.
        certificate: PEM files of its certificate chain and key; it speaks TLS then.
        password: What clients have to present.
        socket_file: Where it listens too.
    """

    def __init__(
        self,
        folder: Path,
        certificate: tuple[Path, Path] | None = None,
        password: str = "",
        socket_file: Path | None = None,
    ) -> None:
        self.folder = folder
        self.socket_file = socket_file
        self.certificate = certificate
        self.password = password
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        scheme = "rediss" if self.certificate else "redis"
        login = f":{self.password}@" if self.password else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty; returns once it listens."""
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        if self.certificate:
            chain, key = self.certificate
            options += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            options += [
                "--tls-cert-file",
                str(chain),
                "--tls-key-file",
                str(key),
                "--tls-ca-cert-file",
                str(chain),
            ]
        else:
            options += ["--port", str(self.port)]
        if self.socket_file:
            options += ["--unixsocket", str(self.socket_file)]
        if self.password:
            options += ["--requirepass", self.password]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([binary(), *options], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not listen"
            if self._listens():
                return
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            if self.socket_file is not None:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(self.socket_file))
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """As the kernel or an operator in a hurry would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


Serve = Callable[..., RedisServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers."""
    binary()
    made: list[RedisServer] = []

    def start(certificate: tuple[Path, Path] | None = None, **options: Any) -> RedisServer:
        folder = tmp_path / f"redis-{len(made)}"
        folder.mkdir()
        made.append(RedisServer(folder, certificate, **options))
        return made[-1]

    yield start
    for server in made:
        server.kill()


@pytest.fixture
def server(serve: Serve) -> RedisServer:
    """A server without TLS and password."""
    return serve()
