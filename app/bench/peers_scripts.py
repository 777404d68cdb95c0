"""Installs, starts and ends the peers: each is a script in deploy/peers that becomes the server.

    NAME.sh setup DIR                            once: a virtual environment with pinned majors, or nothing
    NAME.sh version DIR                          one line: what it is made of
    NAME.sh run DIR PORT UPSTREAM_URL CA_FILE    on 127.0.0.1:PORT, one worker, production mode; its callers will
                                                 present PEER_KEY

Runs on: start-up.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.bench import servers
from app.bench.peers_probe import Place, serves
from app.simulator.running import Running

SCRIPTS: Final = servers.ROOT / "deploy" / "peers"
PEERS: Final = {
    "nginx": "nginx",
    "starlette": "Starlette + httpx",
    "starlette_h1": "the same, HTTP/1.1",
    "flask": "Flask + requests",
    "litellm": "LiteLLM",
    "portkey": "Portkey",
}
"""Name of the script -> words."""
KEY: Final = "sk-bench"
_SETUP_S, _READY_S = 900.0, 90.0
_POLL_S = 0.1
_KEPT = 600


class PeerError(Exception):
    """A peer that cannot be measured; the message is for people."""


@dataclass(slots=True)
class Found:
    """What is known of a peer before it is measured.

    Attributes:
        version: Its own and those of what it is made of.
        fault: Why it is not measured.
    """

    version: str = ""
    fault: str = ""


def headers(name: str, upstream: Running) -> dict[str, str]:
    """What a peer's callers send besides: their key, and, for Portkey, where to."""
    found = {"x-api-key": KEY}
    if name == "portkey":
        found |= {"x-portkey-provider": "anthropic", "x-portkey-custom-host": f"{upstream.tls_url}/v1"}
    return found


class Server(servers.Process):
    """A peer's script, which has become the server."""

    def wait_until_it_serves(self, place: Place) -> None:
        """Returns once a request to ``place`` is answered.

        Raises:
            PeerError: It ended, or took too long.
        """
        deadline_s = time.monotonic() + _READY_S
        while not serves(place):
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline_s:
                happened = f"ended with exit code {code}" if code is not None else f"not ready in {_READY_S:g} s"
                raise PeerError(f"{happened}: {_end(self.output())}")
            time.sleep(_POLL_S)


def _end(text: str) -> str:
    """The last of what a program said, in one line."""
    return " ".join(text.split())[-_KEPT:] or "it said nothing"


def prepare(name: str, cache: Path) -> Found:
    """Sets a peer up, if that has not been done before."""
    try:
        _script(name, "setup", cache)
        return Found(_script(name, "version", cache).strip())
    except PeerError as fault:
        return Found(fault=f"it cannot be set up: {fault}")


def _script(name: str, verb: str, cache: Path) -> str:
    """What a peer's script prints.

    Raises:
        PeerError: It failed.
    """
    command = [str(SCRIPTS / f"{name}.sh"), verb, str(cache / name)]
    try:
        done = subprocess.run(  # noqa: S603 - scripts of this checkout
            command, env=servers.plain_environment(), capture_output=True, text=True, timeout=_SETUP_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise PeerError(str(fault)) from fault
    if done.returncode:
        raise PeerError(_end(done.stderr))
    return done.stdout


@contextlib.contextmanager
def started(name: str, cache: Path, upstream: Running, folder: Path) -> Iterator[Server]:
    """A peer, from its first answer until the block is left.

    Raises:
        PeerError: It did not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [
        str(SCRIPTS / f"{name}.sh"),
        "run",
        str(cache / name),
        str(port),
        upstream.tls_url,
        upstream.ca_path,
    ]
    server = Server(name, command, servers.plain_environment() | {"PEER_KEY": KEY}, folder / f"{name}.log")
    server.port = port
    try:
        server.wait_until_it_serves(Place(server.url, headers(name, upstream)))
        yield server
    finally:
        server.stop()
