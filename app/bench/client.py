"""A client for load: HTTP/1.1 over kept-alive connections, one request at a time on each, little CPU.

    idle --request--> busy --whole answer--> idle
                        \\ broken, silent for too long, cancelled --> closed

It sends nothing twice: a request whose connection breaks is a sample with status 0.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

_KEPT_BYTES = 4096
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: 0 if no whole answer came.
        sent_s: When the request was written; monotonic seconds.
        done_s: When its last byte, or its failure, was there.
        headers: Names in lower case.
        body: The first 4 KiB.
        fault: Why status is 0.
        first_s: When the first byte of the answer was there; 0 if none came.
    """

    status: int
    sent_s: float
    done_s: float
    headers: Mapping[str, str]
    body: bytes = b""
    fault: str = ""
    first_s: float = 0.0

    @property
    def latency_s(self) -> float:
        """From writing to the end."""
        return self.done_s - self.sent_s


class Connection(asyncio.Protocol):
    """One kept-alive connection.

    Attributes:
        usable: The next request may be written.
        port: Its local port.
    """

    def __init__(self) -> None:
        self.usable = True
        self.port = 0
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._begin()

    def _begin(self) -> None:
        """Forgets the last answer."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self._first_s = 0.0
        self._sent_s = time.monotonic()

    async def exchange(self, request: bytes, timeout_s: float) -> Answer:
        """Sends ``request``, a whole HTTP/1.1 message, and waits for the answer."""
        if not self.usable or self._transport is None:
            return self._failed("the connection is closed")
        self._begin()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._done
        except TimeoutError:
            return self._failed(f"silent for {timeout_s:g} s")
        finally:
            if not self._done.done() or self._done.cancelled():
                self.close()
            self._done = None

    def close(self) -> None:
        """No more requests."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _failed(self, fault: str) -> Answer:
        return Answer(0, self._sent_s, time.monotonic(), {}, fault=fault, first_s=self._first_s)

    def _settle(self, answer: Answer) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(answer)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.port = int(transport.get_extra_info("sockname")[1])

    def data_received(self, data: bytes) -> None:
        self._first_s = self._first_s or time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self._settle(self._failed(f"not HTTP: {fault}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._settle(self._failed(f"the connection broke: {exc!r}" if exc else "closed before the whole answer"))

    # ---- httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; of repeats the last is kept."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if len(self._body) < _KEPT_BYTES:
            self._body += data[: _KEPT_BYTES - len(self._body)]

    def on_message_complete(self) -> None:
        """The answer is whole."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        if not self._parser.should_keep_alive():
            self.usable = False
        done_s = time.monotonic()
        self._settle(Answer(status, self._sent_s, done_s, self._headers, self._body, first_s=self._first_s))


class Client:
    """Connections to one server, opened as they are needed and kept; the one that is idle longest is taken next.

    Args:
        url: ``http://`` or ``https://`` with host and port.
        ca_path: PEM file of the authority to trust, for https.
        timeout_s: Silence after which an exchange counts as failed.
    """

    def __init__(self, url: str, ca_path: str = "", timeout_s: float = _TIMEOUT_S) -> None:
        where = urlsplit(url)
        self._host, self._port = (
            where.hostname or "127.0.0.1",
            where.port or (443 if where.scheme == "https" else 80),
        )
        self._authority = where.netloc
        self._context = ssl.create_default_context(cafile=ca_path) if where.scheme == "https" else None
        self._timeout_s = timeout_s
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            connection.close()
        await asyncio.sleep(0)

    async def connect(self) -> Connection:
        """A new connection, not among the idle ones.

        Raises:
            OSError: There is none to be had.
        """
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._host, self._port, ssl=self._context
        )
        self._all.add(connection)
        return connection

    async def open(self, count: int) -> None:
        """Opens ``count`` idle connections ahead, one after the other: an accept queue is not what is measured.

        Raises:
            OSError: One could not be opened.
        """
        while len(self._idle) < count:
            self._idle.append(await self.connect())

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """One exchange on an idle connection, or on a new one."""
        began_s = time.monotonic()
        connection = self._take()
        if connection is None:
            try:
                connection = await self.connect()
            except OSError as fault:
                return Answer(0, began_s, time.monotonic(), {}, fault=f"no connection: {fault!r}")
        answer = await self.exchange(connection, method, path, headers, body)
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)
        return answer

    async def exchange(
        self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """One exchange on a connection of the caller's choice."""
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {self._authority}\r\ncontent-length: {len(body)}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        return await connection.exchange("".join(lines).encode("latin-1") + b"\r\n" + body, self._timeout_s)

    def _take(self) -> Connection | None:
        """An idle connection that is still open."""
        while self._idle:
            connection = self._idle.popleft()
            if connection.usable:
                return connection
            self._all.discard(connection)
        return None
