"""httpcore's network backend on asyncio streams.

httpcore's own backend (anyio) yields between taking bytes out of the TLS or HTTP/2 state and writing them, so a
cancel at that point loses them and breaks the connection for every other stream. Here ``write`` hands
its bytes to the transport before it waits. It also needs no thread: name resolution is the loop's own (libuv's
under uvloop, facts 4).
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from app.upstream.sockets import LOWEST

_LIMIT = 65536
_KEEPALIVE_IDLE_S = 15
_PROBES = 3
_LONGEST_PROBE_S = LOWEST - 1
"""A longer keep-alive interval would be taken for a mark of the Rust client's (``sockets``)."""


class _Reader(asyncio.StreamReader):
    """A stream reader that knows whether bytes wait in it, and whether the peer has closed."""

    def __init__(self) -> None:
        super().__init__(limit=_LIMIT)
        self.pending = 0
        self.ended = False

    def feed_eof(self) -> None:
        self.ended = True
        super().feed_eof()

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        self.pending += len(data)
        super().feed_data(data)

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.pending -= len(data)
        return data


class Stream(httpcore.AsyncNetworkStream):
    """One connection."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._handed = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Up to ``max_bytes``; empty at the end of the stream."""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Hand the bytes over at once, then wait until the peer takes more."""
        if not buffer:
            return
        try:
            if self._writer.is_closing():
                raise httpcore.WriteError("The connection is closed.")
            self._writer.write(buffer)
            self._handed += len(buffer)
            async with asyncio.timeout(timeout):
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close now; nothing that was written is waited for."""
        self._writer.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Handshake over this connection.

        Raises:
            httpcore.ConnectError: Refused, reset or untrusted.
            httpcore.ConnectTimeout: Too slow.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            await self.aclose()
            raise httpcore.ConnectTimeout(str(error) or "TLS handshake timed out") from error
        except OSError as error:  # ssl.SSLError is one
            await self.aclose()
            raise httpcore.ConnectError(str(error)) from error
        except asyncio.CancelledError:
            await self.aclose()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """What is asked of a stream: its TLS object; whether its peer closed it; bytes ``handed`` over so far."""
        if info == "ssl_object":
            return self._writer.get_extra_info("ssl_object")
        if info == "handed":
            return self._handed
        reader = self._reader
        closed = reader.ended or reader.exception() is not None or self._writer.is_closing()
        if info == "is_readable":
            return closed or reader.pending > 0
        if info == "is_closed":
            return closed
        return None


class Backend(httpcore.AsyncNetworkBackend):
    """Opens connections on the running loop.

    Args:
        probe_after_s: Silence after which the kernel probes whether the peer's host is there; 0: after 15 s, and
            the rest as the kernel's defaults have it.
        probe_for_s: How long its answer may take.
        taken_within_s: What was sent has to be acknowledged by the peer's kernel within this.
    """

    def __init__(
        self, probe_after_s: float = 0.0, probe_for_s: float = 10.0, taken_within_s: float = 25.0
    ) -> None:
        options = {"TCP_KEEPIDLE": _KEEPALIVE_IDLE_S}
        if probe_after_s:
            every_s = min(_LONGEST_PROBE_S, max(1, round(probe_for_s / _PROBES)))
            options = {
                "TCP_KEEPIDLE": max(1, round(probe_after_s)),
                "TCP_KEEPINTVL": every_s,
                "TCP_KEEPCNT": max(1, round(probe_for_s / every_s)),
                "TCP_USER_TIMEOUT": round(taken_within_s * 1000),
            }
        self._options = [
            (getattr(socket, name), value) for name, value in options.items() if hasattr(socket, name)
        ]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; every address the name resolves to is tried in turn.

        Raises:
            httpcore.ConnectError: DNS failed, refused or unreachable.
            httpcore.ConnectTimeout: Too slow.
        """
        loop = asyncio.get_running_loop()
        reader = _Reader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(timeout):
                transport, _ = await loop.create_connection(lambda: protocol, host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error) or "connect timed out") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in self._options:
                raw.setsockopt(socket.IPPROTO_TCP, option, value)
        return Stream(reader, writer)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Not used."""
        raise httpcore.ConnectError("Unix sockets are not supported.")

    async def sleep(self, seconds: float) -> None:
        """httpcore's pause between its own connect retries (there are none)."""
        await asyncio.sleep(seconds)
