"""Start and end the servers under test: gunicorn with this checkout's own configuration, or another WSGI server.

Each listens on 127.0.0.1, on a port of the kernel's choice, writes its output to a file, and is ended by its pid.

Runs on: the test's thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.simulator.running import Running

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
STOP_S = 20.0
_LOWEST_PORT = 10_000
Measured = Callable[[str, object], None]
"""Notes a figure for the summary at the end of the run."""
_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")


class Server:
    """One running server.

    Attributes:
        port: On 127.0.0.1.
        process: The process that was started; under gunicorn the arbiter.
        log: File with its stdout and stderr.
        kind: Worker class, or the server's name.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path, kind: str) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.kind = kind

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """Everything written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def lines(self, event: str = "exchange") -> list[dict[str, Any]]:
        """JSON log lines of one event; the last line counts once it is whole."""
        found = []
        for line in self.output.rpartition("\n")[0].splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                if row.get("event") == event:
                    found.append(row)
        return found

    def workers(self) -> list[int]:
        """Pids of the arbiter's children."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]

    def rss_bytes(self) -> int:
        """Resident memory of the only worker."""
        (pid,) = self.workers()
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """Make sure nothing of it is left, whatever state it is in."""
        workers = self.workers() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_S)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def environment(upstream: Running | str, **settings: object) -> dict[str, str]:
    """A process environment with these settings and nothing of the surrounding one but PATH and HOME."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ |= {"HOST": "127.0.0.1", "PORT": "0", "WEB_CONCURRENCY": "1", "PYTHONUNBUFFERED": "1"}
    environ["PRODUCTION_WARMUP_CONNECTIONS"] = "false"  # it would count among the requests the simulator heard
    environ |= {"RETRY_MAX_ATTEMPTS": "1", "BREAKER_MIN_CALLS": "1000000"}  # tests of the traffic's control say so
    if isinstance(upstream, Running):
        environ |= {"ANTHROPIC_UPSTREAM_URL": upstream.tls_url, "SSL_CERT_FILE": upstream.ca_path}
    else:
        environ["ANTHROPIC_UPSTREAM_URL"] = upstream
    return environ | {name: str(value) for name, value in settings.items()}


def free_port() -> int:
    """A port that is free, and that the kernel gives to nobody who does not ask for it by number.

    One of the kernel's own choice could go to any connection on the machine until its server takes it, or while
    the server is being restarted.
    """
    kernels = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    lowest = int(kernels[0]) if int(kernels[0]) > 2 * _LOWEST_PORT else 1 << 16
    while True:
        port = _LOWEST_PORT + secrets.randbelow(lowest - _LOWEST_PORT)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], object], limit_s: float = 10.0, what: str = "it") -> float:
    """Wait for ``condition``; returns the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, f"{what} did not come about within {limit_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - began


def answers(port: int, path: str = "/health") -> bool:
    """Whether anything answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return sock.recv(12).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


@contextlib.contextmanager
def launched(
    command: list[str], environ: dict[str, str], log: Path, kind: str, port: int = 0, ready: str = "/health"
) -> Iterator[Server]:
    """A server in a process of its own, from its first answer until the block is left.

    Args:
        command: What to run.
        environ: Its whole environment.
        log: File for its output.
        kind: For messages.
        port: Where it will listen; 0 reads it from gunicorn's own log.
        ready: Path that is asked until there is an answer.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=sink, stderr=sink)
    server = Server(process, port, log, kind)
    try:
        deadline = time.monotonic() + START_S
        while not (server.port and answers(server.port, ready)):
            assert process.poll() is None, f"{kind} ended with {process.returncode}:\n{server.output}"
            assert time.monotonic() < deadline, f"{kind} did not come up:\n{server.output}"
            found = _LISTENING.search(server.output)
            if found and not server.port:
                server.port = int(found.group(1))
            time.sleep(0.03)
        yield server
    finally:
        server.kill()


class Farm:
    """Gunicorns by their settings, started once each and kept until the session is over.

    Args:
        simulator: Default upstream.
        folder: For the logs.
    """

    def __init__(self, simulator: Running, folder: Path) -> None:
        self.simulator = simulator
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._shared: dict[tuple[str, tuple[tuple[str, object], ...]], Server] = {}
        self.servers: list[Server] = []

    def shared(self, kind: str, **settings: Any) -> Server:
        """A server others may use too."""
        key = (kind, tuple(sorted(settings.items())))
        found = self._shared.get(key)
        if found is None or found.process.poll() is not None:
            found = self._shared[key] = self._stack.enter_context(self.own(kind, **settings))
        return found

    @contextlib.contextmanager
    def own(
        self,
        kind: str,
        args: str = "",
        app: str = "wsgi:app",
        upstream: str = "",
        ready: str = "/health",
        **settings: object,
    ) -> Iterator[Server]:
        """A server for one test alone; ``sync`` runs with one thread."""
        environ = environment(upstream or self.simulator, **settings)
        environ["GUNICORN_CMD_ARGS"] = f"-k {kind} {'--threads 1 ' if kind == 'sync' else ''}{args}".strip()
        log = self._folder / f"{len(self.servers)}-{kind}.log"
        command = [sys.executable, "-m", "gunicorn", app]
        with launched(command, environ, log, kind, ready=ready) as server:
            self.servers.append(server)
            yield server

    @contextlib.contextmanager
    def other(self, name: str, command: list[str], port: int, ready: str = "/health") -> Iterator[Server]:
        """A server that is not gunicorn."""
        log = self._folder / f"{len(self.servers)}-{name}.log"
        with launched(command, environment(self.simulator), log, name, port, ready) as server:
            self.servers.append(server)
            yield server

    def close(self) -> None:
        """End what is still running; all at once, for each takes its time."""
        for server in self.servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)
