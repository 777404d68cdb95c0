"""What connections of both protocols share: writes gathered per loop turn, back-pressure, idleness, the end.

Runs on: simulator loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import cast

from app.simulator.heads import DateLine
from app.simulator.options import Options
from app.simulator.sink import Application

GATHER_BYTES = 65_536
_TRANSPORT_HIGH_WATER = 262_144


@dataclass
class Hub:
    """What the listeners give each connection."""

    app: Application
    options: Options
    dates: DateLine = field(default_factory=DateLine)
    connections: set[Connection] = field(default_factory=set)
    handshakes: set[asyncio.Task[None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def left(self, connection: Connection) -> None:
        """``connection`` is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def drained(self) -> None:
        """Waits until no connection is open."""
        while self.connections:
            self._empty.clear()
            await self._empty.wait()


class Connection(asyncio.Protocol):
    """A client connection.

    Attributes:
        congested: The transport holds enough; writes wait in the streams.
        corked: A batch is being worked on; its caller flushes.
        closing: Nothing more is read or written.
        draining: No new requests are taken.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.app = hub.app
        self.loop = asyncio.get_running_loop()
        self.congested = False
        self.corked = False
        self.closing = False
        self.draining = False
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._flushing = False
        self._active_at = self.loop.time()
        self._transport: asyncio.Transport | None = None

    # ---- to be given by the protocol

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        raise NotImplementedError

    def lost(self, *, aborted: bool) -> None:
        """The connection ends: whatever was under way is broken off, by the client when ``aborted``."""
        raise NotImplementedError

    def resumed(self) -> None:
        """The transport takes data again."""
        raise NotImplementedError

    def retire(self) -> None:
        """Closes an idle connection as the protocol wants it."""
        self.close_now()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_TRANSPORT_HIGH_WATER)
        self.hub.connections.add(self)
        self.app.stats.connections += 1
        if self.hub.options.idle_close_s:
            self._watch_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        aborted, self.closing = not self.closing, True
        self._transport = None
        self.hub.left(self)
        self.app.stats.connections -= 1
        self.lost(aborted=aborted)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if not self.closing:
            self.resumed()

    def _watch_idle(self) -> None:
        """Retires the connection after ``idle_close_s`` seconds without a request."""
        if self.closing:
            return
        idle_s = self.hub.options.idle_close_s
        now = self.loop.time()
        if self.busy:
            self._active_at = now
        elif now - self._active_at >= idle_s:
            self.retire()
            return
        self.app.ticker.at(self._active_at + idle_s, self._watch_idle)

    # ---- writing

    def send(self, data: bytes) -> None:
        """Adds ``data`` to what this loop turn writes."""
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            self.flush()
        elif not self.corked and not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        if not self._gathered:
            return
        data = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_bytes = 0
        if self._transport is not None and not self._transport.is_closing():
            self._active_at = self.loop.time()
            self._transport.write(data)

    # ---- the end

    def close_now(self) -> None:
        """Closes cleanly after what was written so far; unfinished answers are cut."""
        if self.closing:
            return
        self.flush()
        self.closing = True
        self.lost(aborted=False)
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes with a TCP RST after what was written so far."""
        if self.closing or self._transport is None:
            return
        self.flush()
        self.closing = True
        self.lost(aborted=False)
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # the transport may have lost its socket already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
