"""Starts and stops a simulator: listeners, certificate authority, the command.

Runs on: simulator loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from app.simulator.accept import BACKLOG, PlainConnection, TlsListener
from app.simulator.app import Provider
from app.simulator.certs import make_context
from app.simulator.connection import Hub
from app.simulator.options import Options
from app.simulator.replay import load
from app.simulator.stats import Stats
from app.simulator.ticker import Ticker

__all__ = ["Options", "Simulator", "new_event_loop", "serve"]

_CLOSE_S = 2.0


class Simulator:
    """A fake Anthropic provider on two ports.

    Attributes:
        plain_url: ``http://127.0.0.1:PORT``, HTTP/1.1.
        tls_url: ``https://localhost:PORT``, HTTP/2 and HTTP/1.1 by ALPN.
        ca_path: PEM file of the authority to trust.
        stats: What has been seen; loop thread only.
    """

    plain_url: str
    tls_url: str
    ca_path: str
    stats: Stats

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._listeners: list[asyncio.Server | TlsListener] = []
        self._own_folder: str | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: A port is taken, or the replay file cannot be read.
        """
        options = self._options
        recordings = load(options.replay) if options.replay else []
        self._ticker = Ticker(asyncio.get_running_loop())
        provider = Provider(self._ticker, recordings)
        self.stats = provider.stats
        self._hub = Hub(provider, options)
        folder = options.ca_dir
        if not folder:
            folder = self._own_folder = tempfile.mkdtemp(prefix="simulator-")
        context, ca_path = make_context(Path(folder), options.alpn)
        self.ca_path = str(ca_path)
        loop = asyncio.get_running_loop()
        plain = await loop.create_server(
            lambda: PlainConnection(self._hub), options.host, options.plain_port, backlog=BACKLOG
        )
        self._listeners = [plain]
        tls = TlsListener(self._hub, context, options.tls_port)
        self._listeners.append(tls)
        sock: socket.socket = plain.sockets[0]
        self.plain_url = f"http://{options.host}:{sock.getsockname()[1]}"
        self.tls_url = f"https://localhost:{tls.port}"

    async def stop(self) -> None:
        """Closes all listeners and connections; removes the authority's folder if it was a temporary one."""
        for listener in self._listeners:
            listener.close()
        handshakes = list(self._hub.handshakes)
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)
        for connection in list(self._hub.connections):
            connection.abort()
        self._ticker.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hub.drained(), _CLOSE_S)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def describe(self) -> dict[str, object]:
        """What the first line of stdout says."""
        return {"pid": os.getpid(), "plain": self.plain_url, "tls": self.tls_url, "ca": self.ca_path}


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop where there is one, the standard loop otherwise."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def serve(options: Options | None = None) -> None:
    """Runs a simulator until SIGTERM or SIGINT; the first line on stdout is JSON with its addresses."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(options or Options()))


async def _serve(options: Options) -> None:
    simulator = Simulator(options)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await simulator.start()
    sys.stdout.write(json.dumps(simulator.describe()) + "\n")
    sys.stdout.flush()
    await ended.wait()
    await simulator.stop()
