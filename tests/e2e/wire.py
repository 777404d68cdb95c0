"""A raw HTTP/1.1 client: sends exactly the bytes it is given, shows exactly the bytes that came back.

Runs on: the test's thread.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

VERSION = ("anthropic-version", "2023-06-01")
KEY = "sk-ant-e2e-caller-5f1d"
USUAL = (
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("user-agent", "e2e/1"),
    ("x-api-key", KEY),
    VERSION,
)
"""What every SDK sends. Without ``accept`` a request may take another way upstream than most."""


class Truncated(Exception):
    """The body ended before it was whole; ``got`` is what came."""

    def __init__(self, got: bytes) -> None:
        super().__init__(f"truncated after {len(got)} bytes")
        self.got = got


@dataclass(frozen=True)
class Head:
    """Status line and headers of one answer."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """Every value of header ``name``."""
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: str) -> str:
        """First value of header ``name``, or an empty string."""
        return next(iter(self.all(name)), "")


@dataclass(frozen=True)
class Answer(Head):
    """A whole answer."""

    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """``error.type`` of an Anthropic-shaped error body; fails on any other shape."""
        data = json.loads(self.body)
        assert data["type"] == "error"
        assert set(data["error"]) == {"type", "message"}
        assert "request_id" in data
        return str(data["error"]["type"])


class Raw:
    """One connection."""

    def __init__(self, port: int, timeout_s: float = 15.0, receive_buffer_bytes: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(timeout_s)
        self.sock.connect(("127.0.0.1", port))
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bytes:
        """The next bytes, whatever they are; b"" when the peer has closed."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        try:
            return self.sock.recv(65536)
        except ConnectionResetError:
            return b""

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Truncated(self._buffer)
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.more()
            if not data:
                raise Truncated(b"")
            self._buffer = data[size:]
            data = data[:size]
            size -= len(data)
            yield data

    def head(self) -> Head:
        """The next status line and headers; a 100 is passed over."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        pairs = tuple((name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines[1:]))
        return self.head() if status == 100 else Head(status, pairs)

    def pieces(self, head: Head, method: str = "POST") -> Iterator[bytes]:
        """The body as it comes, framing removed.

        Raises:
            Truncated: It ended early.
        """
        if method == "HEAD" or head.status in (204, 304):
            return
        if "chunked" in head.get("transfer-encoding"):
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                yield from self._exactly(size)
                self._until(b"\r\n")
            self._until(b"\r\n")
        elif head.get("content-length"):
            yield from self._exactly(int(head.get("content-length")))
        else:
            while data := self.more():
                yield data

    def body(self, head: Head, method: str = "POST") -> bytes:
        """The whole body.

        Raises:
            Truncated: It ended early; carries all that came.
        """
        got = []
        try:
            for piece in self.pieces(head, method):
                got.append(piece)
        except Truncated:
            raise Truncated(b"".join(got)) from None
        return b"".join(got)

    def answer(self, method: str = "POST") -> Answer:
        """The whole next answer."""
        head = self.head()
        return Answer(head.status, head.headers, self.body(head, method))

    def ask(
        self,
        target: str,
        body: bytes | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        method: str = "",
    ) -> Answer:
        """One request and its whole answer."""
        method = method or ("GET" if body is None else "POST")
        self.send(request(target, body, headers, method))
        return self.answer(method)


def request(
    target: str,
    body: bytes | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "",
) -> bytes:
    """The bytes of one request: Host, the given headers as they are, and a length where there is a body."""
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway.test", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def message(scenario: str, *, stream: bool = False, **more: object) -> bytes:
    """A messages body for a scenario of the simulator."""
    model = scenario if scenario.startswith("claude-") else f"claude-sim-{scenario}"
    body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    return json.dumps(body | more).encode()


def ask(
    port: int, target: str, body: bytes | None = None, headers: tuple[tuple[str, str], ...] = (), method: str = ""
) -> Answer:
    """One request on a connection of its own."""
    with Raw(port) as raw:
        return raw.ask(target, body, headers, method)


def post(port: int, scenario: str, *, stream: bool = False, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """POST /v1/messages on a connection of its own."""
    return ask(port, "/v1/messages", message(scenario, stream=stream), (*USUAL, *headers))


def opened(port: int, scenario: str, **options: Any) -> tuple[Raw, Head]:
    """A stream whose head has come."""
    raw = Raw(port, **options)
    raw.send(request("/v1/messages", message(scenario, stream=True), USUAL))
    return raw, raw.head()


def timed(raw: Raw, head: Head) -> Iterator[tuple[float, bytes]]:
    """Pieces of a body with the monotonic instants at which they came."""
    for piece in raw.pieces(head):
        yield time.monotonic(), piece


def terminal_error(body: bytes) -> dict[str, Any]:
    """The one error event that ends ``body``; fails unless it stands at an event boundary and nothing follows."""
    assert body.endswith(b"\n\n"), body[-200:]
    events = body.split(b"\n\n")[:-1]
    errors = [event for event in events if event.startswith(b"event: error\n")]
    assert len(errors) == 1, errors
    assert events[-1] == errors[0], events[-2:]
    for event in events[:-1]:
        assert event.startswith((b"event: ", b": ")), event
        if event.startswith(b"event: "):
            json.loads(event.partition(b"\ndata: ")[2])
    data: dict[str, Any] = json.loads(errors[0].partition(b"\ndata: ")[2])
    assert data["type"] == "error"
    return data
