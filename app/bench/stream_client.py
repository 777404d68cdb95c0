"""A client for many event streams: little CPU per event, so that two cores have some left for what is measured.

The simulator writes ``@T:<ns>;`` into each delta, the monotonic clock just before it was written; what is found
here is how long ago that was when the bytes were read. Both processes are on one machine and read one clock.
Events are counted by their stamps, however the transport, or a chunk's frame, cuts them.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from app.bench.client import Answer, Client, Connection
from app.bench.load import HEADERS, PATH

_STAMPS = re.compile(rb"@T:(\d+);").findall
_STAMP_BYTES = 32  # @T: and ; around a number of 64 bits
_END_BYTES = 160
_STOP = b"event: message_stop\n"
STREAM_HEADERS: Final = {**HEADERS, "accept": "text/event-stream"}


def stream_body(model: str, text: str) -> bytes:
    """A messages request that asks for events; a different ``text`` is a different conversation."""
    asked = {"model": model, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": text}]}
    return json.dumps(asked, separators=(",", ":")).encode()


class Scanner:
    """Finds the stamps in a body that comes in pieces, and what it ended with.

    Attributes:
        delays_ns: For each stamp, how old it was when its last byte was read.
        size_bytes: Of the body so far.
    """

    __slots__ = ("_cut", "_end", "delays_ns", "size_bytes")

    def __init__(self) -> None:
        self.delays_ns: list[int] = []
        self.size_bytes = 0
        self._cut = b""
        self._end = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Takes the next piece, read at ``now_ns``."""
        self.size_bytes += len(data)
        self._end = (data if len(data) >= _END_BYTES else self._end + data)[-_END_BYTES:]
        if self._cut:
            data = self._cut + data
        for stamp in _STAMPS(data):
            self.delays_ns.append(now_ns - int(stamp))
        begin = data.rfind(b"@", -_STAMP_BYTES)
        self._cut = data[begin:] if begin >= 0 and b";" not in data[begin:] else b""

    @property
    def stopped(self) -> bool:
        """Whether the last event so far is a whole message_stop."""
        return self._end.endswith(b"\n\n") and _STOP in self._end


@dataclass(frozen=True, slots=True)
class Streamed(Answer):
    """What came back as a stream.

    Attributes:
        body_s: When the first byte of its body was there; 0 if none came.
        delays_ns: Per event, from just before it was written upstream until it was read.
        size_bytes: Of the body.
        stopped: The last event was message_stop.
    """

    body_s: float = 0.0
    delays_ns: tuple[int, ...] | list[int] = ()
    size_bytes: int = 0
    stopped: bool = False


class StreamConnection(Connection):
    """A kept-alive connection that looks for stamps in what it reads.

    Args:
        begun: Called when the first byte of an answer's body is there.
    """

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        self._begun = begun
        super().__init__()

    def _begin(self) -> None:
        super()._begin()
        self._scanner = Scanner()
        self._now_ns = self._body_ns = 0

    async def exchange(self, request: bytes, timeout_s: float) -> Streamed:
        """The same, with what was found in the body, also of an answer that did not become whole."""
        answer = await super().exchange(request, timeout_s)
        seen = self._scanner
        return _streamed(answer, self._body_ns / 1e9, seen.delays_ns, seen.size_bytes, stopped=seen.stopped)

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.monotonic_ns()
        super().data_received(data)

    def on_body(self, data: bytes) -> None:
        """A piece of the body, without its frame."""
        if not self._body_ns:
            self._body_ns = self._now_ns
            self._begun()
        self._scanner.feed(data, self._now_ns)


def _streamed(
    answer: Answer, body_s: float = 0.0, delays_ns: list[int] | None = None, size_bytes: int = 0, *, stopped: bool
) -> Streamed:
    return Streamed(
        answer.status,
        answer.sent_s,
        answer.done_s,
        answer.headers,
        fault=answer.fault,
        first_s=answer.first_s,
        body_s=body_s,
        delays_ns=delays_ns or [],
        size_bytes=size_bytes,
        stopped=stopped,
    )


class Streams(Client):
    """Connections to one server on which streams are read.

    Args:
        url: ``http://`` or ``https://`` with host and port, and what stands before the path.
        ca_path: PEM file of the authority to trust, for https.
        timeout_s: Longest stream.

    Attributes:
        begun: Streams whose body has begun so far.
    """

    def __init__(self, url: str, ca_path: str = "", timeout_s: float = 60.0) -> None:
        super().__init__(url, ca_path, timeout_s)
        self._path = urlsplit(url).path + PATH
        self.begun = 0

    async def connect(self) -> Connection:
        """A new connection, not among the idle ones.

        Raises:
            OSError: There is none to be had.
        """
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: StreamConnection(self._count), self._host, self._port, ssl=self._context
        )
        self._all.add(connection)
        return connection

    async def stream(self, body: bytes, headers: Mapping[str, str]) -> Streamed:
        """One stream on an idle connection, or on a new one."""
        answer = await self.request("POST", self._path, {**STREAM_HEADERS, **headers}, body)
        return answer if isinstance(answer, Streamed) else _streamed(answer, stopped=False)

    def _count(self) -> None:
        self.begun += 1
