"""From an accepted TCP connection to its protocol: counting, a handshake that may be slow, ALPN.

    accept -> (tls_delay_ms) -> handshake -> ALPN -> H2Connection or H1Connection

Runs on: simulator loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from typing import cast

from app.simulator.connection import Connection, Hub
from app.simulator.h1 import H1Connection
from app.simulator.h2 import H2Connection

BACKLOG = 4096
_ACCEPT_BATCH = 64
_HANDSHAKE_S = 30.0
_SHUTDOWN_S = 0.1  # a client that ignores close_notify is not waited for


class PlainConnection(H1Connection):
    """HTTP/1.1 without TLS."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub, "http/1.1-plain")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.app.stats.tcp_connections += 1
        super().connection_made(transport)


class TlsGate(asyncio.Protocol):
    """Stands behind a finished handshake and installs the protocol that ALPN chose."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stats = self._hub.app.stats
        stats.tls_handshakes += 1
        tls = cast("ssl.SSLObject", transport.get_extra_info("ssl_object"))
        if tls.session_reused:
            stats.tls_resumed += 1
        connection: Connection
        if tls.selected_alpn_protocol() == "h2":
            connection = H2Connection(self._hub)
        else:
            connection = H1Connection(self._hub, "http/1.1-tls")
        transport.set_protocol(connection)
        connection.connection_made(transport)


class TlsListener:
    """Accepts TCP connections itself, so that they count before, and whether or not, a handshake succeeds.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, hub: Hub, context: ssl.SSLContext, port: int) -> None:
        self._hub = hub
        self._context = context
        self._loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in hub.options.host else socket.AF_INET
        self._socket = socket.create_server((hub.options.host, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accepts no more; handshakes under way are left alone."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _accept(self) -> None:
        """Takes all connections that wait."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            for _ in range(_ACCEPT_BATCH):
                connection, _address = self._socket.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._hub.app.stats.tcp_connections += 1
                task = self._loop.create_task(self._shake_hands(connection))
                self._hub.handshakes.add(task)
                task.add_done_callback(functools.partial(self._shaken, connection))

    def _shaken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """A handshake is over; one that was cancelled, perhaps before it began, leaves its socket to us."""
        self._hub.handshakes.discard(task)
        if task.cancelled():
            connection.close()

    async def _shake_hands(self, connection: socket.socket) -> None:
        """Runs one handshake; a client that leaves, or does not trust the authority, is no fault of ours."""
        try:
            if self._hub.options.tls_delay_ms:
                await asyncio.sleep(self._hub.options.tls_delay_ms / 1000)
            await self._loop.connect_accepted_socket(
                lambda: TlsGate(self._hub),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except (TimeoutError, OSError):
            connection.close()
