"""Show the gateway at work: ``penstock demo`` needs no key and no network.

    simulator (subprocess) <--TLS, HTTP/2-- gunicorn wsgi:app (subprocess) <--HTTP/1.1-- this process

It sends one JSON and one streaming request as the official SDK does, prints the answers as they come and what the
gateway's own log says about each, and leaves a line to copy. Everything listens on 127.0.0.1 and is ended at exit.

Runs on: start-up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from app.settings import environment, rows
from app.settings_rules import OWN_PREFIXES
from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running

ROOT: Final = Path(__file__).resolve().parents[1]
MODEL: Final = "claude-sonnet-5"
SERVE_PORT: Final = 8000
_START_S = 20.0
_STOP_S = 10.0
_ANSWER_S = 30.0
_LOG_S = 3.0
_POLL_S = 0.05
_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")
_HEADERS: Final = {
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "Anthropic/Python 2.11.0",
    "x-stainless-lang": "python",
    "x-stainless-retry-count": "0",
    "x-api-key": "sk-ant-demo-needs-no-real-key",
    "anthropic-version": "2023-06-01",
}


class Gateway:
    """One running gunicorn.

    Attributes:
        port: On 127.0.0.1; 0 until it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._seen = 0
        self.port = 0

    @property
    def url(self) -> str:
        """What an SDK takes as its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_up(self) -> None:
        """Return once it answers.

        Raises:
            click.ClickException: It ended, or did not answer in time.
        """
        deadline = time.monotonic() + _START_S
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise click.ClickException(f"the gateway did not come up within {_START_S:g} s:\n{self._tail()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises ClickException if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise click.ClickException(f"the gateway ended with exit code {code}:\n{self._tail()}")

    def stop(self) -> None:
        """End it, by force if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def exchanges(self) -> list[dict[str, Any]]:
        """Log lines of exchanges that were written since the last call."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        new, self._seen = whole[self._seen :], len(whole)
        found = [json.loads(line) for line in new if line.startswith("{")]
        return [row for row in found if row.get("event") == "exchange"]

    def connections(self) -> dict[str, int]:
        """``hits`` and ``misses`` of the upstream pool."""
        client = self.client()
        try:
            client.request("GET", "/anthropic/metrics")
            stats: dict[str, int] = json.load(client.getresponse())["adapter_metrics"]["connection_stats"]
        finally:
            client.close()
        return stats

    def client(self) -> http.client.HTTPConnection:
        """A new connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_S)

    def _answers(self) -> bool:
        found = _LISTENING.search(self._log.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            return False
        self.port = int(found.group(1))
        client = self.client()
        try:
            client.request("GET", "/health")
            return client.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def _tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _settings(simulator: Running, port: int) -> dict[str, str]:
    """The process environment with the demo's settings and none of the operator's own."""
    own = {name for row in rows() for name in row.env} | {"GUNICORN_CMD_ARGS", "PROMETHEUS_MULTIPROC_DIR"}
    environ = {
        name: value
        for name, value in environment().items()
        if name not in own and not name.startswith(OWN_PREFIXES)
    }
    return environ | {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WEB_CONCURRENCY": "1",
        "ANTHROPIC_UPSTREAM_URL": simulator.tls_url,
        "SSL_CERT_FILE": simulator.ca_path,
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def _gateway(simulator: Running, port: int, folder: Path) -> Iterator[Gateway]:
    """A gunicorn in front of ``simulator`` until the block is left."""
    log = folder / "gateway.log"
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 - fixed command
            command, cwd=ROOT, env=_settings(simulator, port), stdout=sink, stderr=sink
        )
    gateway = Gateway(process, log)
    try:
        gateway.wait_until_up()
        yield gateway
    finally:
        gateway.stop()


@contextlib.contextmanager
def _simulator(folder: Path) -> Iterator[Running]:
    """The fake provider until the block is left."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(running(Options(ca_dir=str(folder))))
        except (RuntimeError, OSError) as error:
            raise click.ClickException(f"the simulator did not come up: {error}") from error
        yield found


def _ask(gateway: Gateway, prompt: str, *, stream: bool) -> None:
    """One request, its answer as it comes, and its trace."""
    request_id = f"demo-{uuid.uuid4().hex}"
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 256,
        "messages": [{"role": "user", "content": prompt}],
    }
    if stream:
        body["stream"] = True
    click.echo(f"\nPOST /v1/messages  {'stream' if stream else 'JSON'}: {prompt}\n  ", nl=False)
    before = gateway.connections()
    client = gateway.client()
    try:
        headers = _HEADERS | {"x-request-id": request_id}
        client.request("POST", "/v1/messages", json.dumps(body, separators=(",", ":")), headers)
        response = client.getresponse()
        if response.status != 200:
            detail = response.read(2000).decode("utf-8", "replace")
            raise click.ClickException(f"status {response.status}: {detail}")
        for text in _streamed(response) if stream else _whole(response):
            click.echo(text, nl=False)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise click.ClickException(f"the request failed: {error!r}") from error
    finally:
        client.close()
    click.echo(f"\n  {_traced(gateway, request_id, before)}")


def _whole(response: http.client.HTTPResponse) -> Iterator[str]:
    """The texts of a JSON answer."""
    for block in json.load(response)["content"]:
        yield block.get("text", "")


def _streamed(response: http.client.HTTPResponse) -> Iterator[str]:
    """The text deltas of an event stream, each as it comes."""
    ended = False
    while line := response.readline():
        if not line.startswith(b"data:"):
            continue
        event = json.loads(line[5:])
        if event["type"] == "content_block_delta":
            yield event["delta"].get("text", "")
        elif event["type"] == "error":
            raise ValueError(event["error"]["message"])
        ended = ended or event["type"] == "message_stop"
    if not ended:
        raise ValueError("the stream ended without message_stop")


def _traced(gateway: Gateway, request_id: str, before: dict[str, int]) -> str:
    """What the gateway's log says about that request."""
    deadline = time.monotonic() + _LOG_S
    while time.monotonic() < deadline:
        for row in gateway.exchanges():
            if row["request_id"] == request_id:
                new = gateway.connections()["misses"] > before["misses"]
                return trace(row, "new" if new else "reused")
        time.sleep(_POLL_S)
    raise click.ClickException(f"the gateway logged no line for request {request_id}")


def trace(row: dict[str, Any], connection: str) -> str:
    """One line about one exchange: tries, connection, milliseconds.

    Args:
        row: Its log line.
        connection: ``new``, ``reused`` or an empty string, used where the line does not know.
    """
    attempts = row["attempts"]
    outcomes = ", ".join(attempt["outcome"] for attempt in attempts) or "none"
    known = next((attempt["connection"] for attempt in attempts if attempt["connection"]), connection)
    parts = [f"status {row['status']}", f"tries {len(attempts)} ({outcomes})"]
    if row["http_version"]:
        parts.append(f"{row['http_version']} connection {known}".rstrip() if known else row["http_version"])
    for label, name in (("upstream head", "upstream_head_ms"), ("gateway added", "gateway_ms")):
        if row[name] is not None:
            parts.append(f"{label} {row[name]:.1f} ms")
    parts.append(f"total {row['total_ms']:.0f} ms")
    return "[" + " · ".join(parts) + "]"


def to_copy(url: str) -> str:
    """One curl line and one Python snippet that talk to a gateway at ``url``."""
    body = json.dumps(
        {
            "model": MODEL,
            "max_tokens": 256,
            "stream": True,
            "messages": [{"role": "user", "content": "Hello"}],
        },
        separators=(",", ":"),
    )
    return f"""\
  curl -N {url}/v1/messages -H 'x-api-key: demo' -H 'anthropic-version: 2023-06-01' \
-H 'content-type: application/json' -d '{body}'

  from anthropic import Anthropic  # pip install anthropic
  client = Anthropic(base_url="{url}", api_key="demo")
  with client.messages.stream(
      model="{MODEL}", max_tokens=256, messages=[{{"role": "user", "content": "Hello"}}]
  ) as stream:
      for text in stream.text_stream:
          print(text, end="", flush=True)
"""


def _serve(gateway: Gateway) -> None:
    """Stay up and show each exchange, until Ctrl-C."""
    click.echo("Serving until Ctrl-C.")
    while True:
        for row in gateway.exchanges():
            click.echo(f"{row['method']} {row['path']}  {trace(row, '')}")
        gateway.check()
        time.sleep(0.2)


def _interrupted(signum: int, frame: object) -> NoReturn:
    """SIGTERM ends the demo as Ctrl-C does, so that nothing is left behind."""
    raise KeyboardInterrupt


def _refuse_taken(port: int) -> None:
    """Say at once that ``port`` is taken; gunicorn would try for five seconds."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise click.ClickException(f"port {port} on 127.0.0.1 cannot be used: {error.strerror}") from error


@click.command()
@click.option("--serve", is_flag=True, help="Stay up until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The gateway's port; 0 takes a free one.")
def command(serve: bool, port: int) -> None:
    """Show the gateway at work, without a key and without a network."""
    _refuse_taken(port)
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
            _run(Path(folder), serve, port)
    except KeyboardInterrupt:
        click.echo("\nStopped.")
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(folder: Path, serve: bool, port: int) -> None:
    """Start both, ask twice, leave something to copy, perhaps stay."""
    with _simulator(folder) as simulator, _gateway(simulator, port, folder) as gateway:
        click.echo(f"gateway {gateway.url} -> simulated provider {simulator.tls_url}")
        _ask(gateway, "What is a penstock?", stream=False)
        _ask(gateway, "And once more, word by word?", stream=True)
        if serve:
            click.echo(f"\nTo copy:\n\n{to_copy(gateway.url)}")
            _serve(gateway)
        else:
            url = f"http://127.0.0.1:{port or SERVE_PORT}"
            click.echo(
                f"\nTo copy, while `penstock demo --serve --port {port or SERVE_PORT}` runs:\n\n{to_copy(url)}"
            )
