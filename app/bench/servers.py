"""Starts what a bench measures: the simulator, gunicorn with this checkout's application, redis-server.

Everything listens on 127.0.0.1 on a port of its own, writes its output to a file, and is ended by its own pid.

Runs on: start-up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gunicorn.config import KNOWN_SETTINGS

from app.bench import procs
from app.settings import environment, rows
from app.settings_rules import OWN_PREFIXES
from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running

ROOT: Final = Path(__file__).resolve().parents[2]
_START_S = 30.0
_ASK_AGAIN_S = 3.0
_STOP_S = 12.0
_POLL_S = 0.05
_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")


class BenchError(Exception):
    """Something needed did not come up or went away; nothing was measured."""


class Upstream(Running):
    """A simulator that says who it is when it does not answer."""

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        """As a simulator does.

        Raises:
            BenchError: Nobody answers.
        """
        try:
            return Running._ask(self, method, path, body)
        except (OSError, http.client.HTTPException) as fault:
            raise BenchError(
                f"the simulator at {self.plain_url} (process {self.pid}) went away: {fault}"
            ) from fault


@contextlib.contextmanager
def named(words: str, url: str) -> Iterator[None]:
    """Connections are opened in the block.

    Raises:
        BenchError: One could not be; it says whose.
    """
    try:
        yield
    except OSError as fault:
        raise BenchError(f"{words} at {url} does not take connections: {fault}") from fault


class Process:
    """A server process.

    Attributes:
        pid: Its process; under gunicorn the arbiter.
        port: On 127.0.0.1; 0 until it is known.
    """

    def __init__(self, name: str, command: list[str], environ: dict[str, str], log: Path) -> None:
        self._name = name
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(  # noqa: S603 - fixed commands
                command, cwd=ROOT, env=environ, stdout=sink, stderr=sink
            )
        self.pid = self._process.pid
        self.port = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        """Its process and all that descend from it."""
        return procs.tree(self.pid)

    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once ``condition`` holds.

        Raises:
            BenchError: The process ended, or took too long.
        """
        deadline = time.monotonic() + _START_S
        while not condition():
            code = self._process.poll()
            if code is not None:
                raise BenchError(f"{self._name} ended with exit code {code}:\n{self.output()[-2000:]}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self._name} was not ready within {_START_S:g} s:\n{self.output()[-2000:]}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ends it and what it started, by force if that takes too long."""
        self._process.terminate()
        for limit_s, number in ((_ASK_AGAIN_S, signal.SIGTERM), (_STOP_S, signal.SIGKILL)):
            try:
                self._process.wait(limit_s)
                return
            except subprocess.TimeoutExpired:
                for pid in procs.children(self.pid):  # one that was still starting has not heard the signal
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
        self._process.kill()
        self._process.wait()


class Gateway(Process):
    """A gunicorn that serves ``wsgi:app``, or another application of ours."""

    ready_path = "/ready"

    def workers(self) -> list[int]:
        """Pids of the arbiter's children."""
        return procs.children(self.pid)

    def rss_bytes(self) -> int:
        """Resident memory of all workers.

        Raises:
            BenchError: There is none.
        """
        try:
            sizes = [procs.rss_bytes(pid) for pid in self.workers()]
        except OSError as fault:
            raise BenchError("a worker went away while it was looked at") from fault
        if not sizes:
            raise BenchError(f"{self._name} has no worker:\n{self.output()[-2000:]}")
        return sum(sizes)

    def is_ready(self) -> bool:
        """Whether it listens and answers 200, for a gateway: its upstream is connected."""
        found = _LISTENING.search(self.output())
        if found is None:
            return False
        self.port = int(found.group(1))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.ready_path, headers={"connection": "close"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Floor(Gateway):
    """A gunicorn that serves ``app.bench.floor:app``."""

    ready_path = "/"


def plain_environment() -> dict[str, str]:
    """The process environment without settings of ours or of gunicorn's."""
    own = {name for row in rows() for name in row.env} | {"GUNICORN_CMD_ARGS", "PROMETHEUS_MULTIPROC_DIR"}
    return {
        name: value
        for name, value in environment().items()
        if name not in own and not name.startswith(OWN_PREFIXES)
    }


def gateway_environment(upstream: Running, settings: Mapping[str, object]) -> dict[str, str]:
    """The process environment with these settings and none of the operator's own."""
    given = {
        "HOST": "127.0.0.1",
        "PORT": 0,
        "WEB_CONCURRENCY": 1,
        "ANTHROPIC_UPSTREAM_URL": upstream.tls_url,
        "SSL_CERT_FILE": upstream.ca_path,
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    return plain_environment() | {name: str(value) for name, value in given.items()}


@contextlib.contextmanager
def gateway(
    upstream: Running, folder: Path, settings: Mapping[str, object], name: str = "gateway"
) -> Iterator[Gateway]:
    """A gunicorn with ``settings`` in front of ``upstream``, from ready until the block is left.

    Raises:
        BenchError: It did not come up.
    """
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    process = Gateway(name, command, gateway_environment(upstream, settings), folder / f"{name}.log")
    try:
        process.wait_for(process.is_ready)
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def floor(folder: Path, workers: int = 1, name: str = "floor") -> Iterator[Floor]:
    """gunicorn + gevent + Flask with a route that returns a constant, from ready until the block is left.

    Raises:
        BenchError: It did not come up.
    """
    options = ["-k", "gevent", "-w", str(workers), "--keep-alive", "100", "-b", "127.0.0.1:0", "-c", os.devnull]
    if any(one.name == "control_socket_disable" for one in KNOWN_SETTINGS):  # since gunicorn 25
        options.append("--no-control-socket")
    command = [sys.executable, "-m", "gunicorn", *options, "app.bench.floor:app"]
    process = Floor(name, command, plain_environment() | {"PYTHONUNBUFFERED": "1"}, folder / f"{name}.log")
    try:
        process.wait_for(process.is_ready)
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def simulator() -> Iterator[Running]:
    """The pretended provider until the block is left.

    Raises:
        BenchError: It did not come up.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(running(Options()))
        except (RuntimeError, OSError) as fault:
            raise BenchError(f"the simulator did not come up: {fault}") from fault
        yield Upstream(found.plain_url, found.tls_url, found.ca_path, found.pid)


def told(path: Path) -> Running:
    """The simulator that runs already and whose first line of output is in the file ``path``.

    Raises:
        BenchError: No such line is there, or nobody answers where it says.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
        found = Upstream(facts["plain"], facts["tls"], facts["ca"], int(facts["pid"]))
        found.stats()
    except (BenchError, OSError, ValueError, KeyError, TypeError) as fault:
        raise BenchError(f"{path} leads to no simulator: {fault!r}") from fault
    return found


def redis_binary() -> str | None:
    """Path of redis-server, if there is one."""
    return shutil.which("redis-server")


@contextlib.contextmanager
def redis(binary: str, folder: Path) -> Iterator[Process]:
    """A redis-server that keeps nothing, until the block is left.

    Raises:
        BenchError: It did not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = Process("redis-server", [binary, *options], environment(), folder / "redis.log")
    process.port = port
    try:
        process.wait_for(lambda: _pongs(port))
        yield process
    finally:
        process.stop()


def _pongs(port: int) -> bool:
    """Whether a Redis answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
