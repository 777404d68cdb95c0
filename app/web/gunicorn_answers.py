"""Make gunicorn answer in our terms: its parser's errors in Anthropic's shape, an upstream's head as it came.

Context: gunicorn drops ``Server`` and ``Date`` of an application for its own, checks each header by two regular
expressions, and writes head and body apart. Choice: two functions replaced in worker processes only. Price: tied
to gunicorn's major version, and to the tests that compare heads byte for byte.

Runs on: worker.
"""

from __future__ import annotations

import re
import time
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi

from app.errors import InvalidRequest
from app.web.proxy import request_id_of
from app.web.render import error_body
from app.wire.headers import HOP_BY_HOP

_ONE_WRITE_BYTES = 65536
_NAMES = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class _Date:
    """The ``Date`` line of now (RFC 9110 section 6.6.1); the calendar is asked once a second."""

    def __init__(self) -> None:
        self._last = (-1, "")  # one value, so that threads never mix two seconds

    def line(self, now_s: float) -> str:
        second, line = self._last
        if second != int(now_s):
            second = int(now_s)
            line = f"Date: {util.http_date(second)}\r\n"
            self._last = (second, line)
        return line


_date = _Date()


class Answer(wsgi.Response):  # type: ignore[misc]
    """gunicorn's response with the upstream's Server and Date; a short body goes out with its head."""

    headers_sent: bool
    sent: int
    _named: frozenset[str] | set[str] = frozenset()

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Take the application's headers: all but hop-by-hop ones, checked together."""
        names, values = "".join([name for name, _ in headers]), "".join([value for _, value in headers])
        if not _NAMES.fullmatch(names) or _UNSAFE.search(values):
            super().process_headers(headers)  # finds the one and says so
        named, kept = set(), self.headers
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self.response_length = int(value)
            if lower not in HOP_BY_HOP:
                named.add(lower)
                kept.append((name, value.strip(" \t")))
        self._named = named

    def default_headers(self) -> list[str]:
        """gunicorn's own lines, but for those the upstream has sent."""
        version = self.req.version
        lines = [f"HTTP/{version[0]}.{version[1]} {self.status}\r\n"]
        if "server" not in self._named:
            lines.append(f"Server: {self.version}\r\n")
        if "date" not in self._named:
            lines.append(_date.line(time.time()))
        lines.append("Connection: close\r\n" if self.should_close() else "Connection: keep-alive\r\n")
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        return lines

    def write(self, arg: bytes) -> None:
        """One piece of the body; the head goes with the first one."""
        size = len(arg) if isinstance(arg, bytes) else 0
        if self.headers_sent and self.chunked and size:
            self.sent += size
            self.sock.sendall(b"%X\r\n%b\r\n" % (size, arg))
            return
        if self._omits_body:  # of an answer to HEAD, say: what is there is not sent, and that is no fault
            self.send_headers()
            return
        whole = 0 < size <= _ONE_WRITE_BYTES and size == self.response_length
        if self.headers_sent or not whole:
            super().write(arg)
            return
        lines = self.default_headers()
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        lines.append("\r\n")
        self.headers_sent = True
        self.sent = size
        self.sock.sendall("".join(lines).encode("latin-1") + arg)


def write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
    """What gunicorn says when it cannot parse a request."""
    error = InvalidRequest(f"The request is not valid HTTP: {reason}. {mesg}".strip())
    body = error_body(error, request_id_of({}))
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"x-penstock-error: {error.slug}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(sock, head.encode("latin-1", "replace") + body)


def install() -> None:
    """Replace both in this process."""
    util.write_error = write_error
    wsgi.Response = Answer
