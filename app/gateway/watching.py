"""Say what is looked at of every exchange, and keep the parts of it that a log was asked to show.

Runs on: worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from app.exchange import Captured, Exchange
from app.wire.headers import first

_GZIP = frozenset({"gzip", "x-gzip"})


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of each exchange for the log.

    Attributes:
        headers: Those of the request and those of the answer.
        request_body_bytes: Most of the request's body; 0 keeps none.
        response_body_bytes: Likewise of the answer's.
    """

    headers: bool = False
    request_body_bytes: int = 0
    response_body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Watching:
    """What is looked at of every exchange; from the settings.

    Attributes:
        price: What (model, figures as in ``Record.tokens``, terms of the answer) cost in micro-USD, None without a
            price; None: nothing is priced.
        reads_usage: Tokens are read off the answers; else only where a caller's limits count them.
        server_timing: Answers carry ``server-timing`` (B42).
        capture: What is kept for the log; None keeps nothing.
        spans: Each has a place in a trace, and a valid ``traceparent`` goes on as that of a child.
        shown: A text of the caller's as it may be shown, without secrets: the model, the path, the request id.
    """

    price: Callable[[str, Mapping[str, int], frozenset[str]], int | None] | None = None
    reads_usage: bool = True
    server_timing: bool = True
    capture: Capture | None = None
    spans: bool = False
    shown: Callable[[str], str] = str


USUAL: Final = Watching()
"""Tokens are read and times told; nothing is priced or kept."""


class Kept:
    """The parts of one exchange that its log line shows.

    Args:
        capture: Which those are.

    Attributes:
        sent_headers: The answer's, as sent; whoever sends them sets it.
    """

    __slots__ = ("_body", "_capture", "sent_headers")

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._body = bytearray()
        self.sent_headers: Sequence[tuple[str, str]] = ()

    def feed(self, piece: bytes) -> None:
        """The next piece of the answer's body."""
        room = self._capture.response_body_bytes - len(self._body)
        if room > 0:
            self._body += piece[:room]

    def captured(self, exchange: Exchange, coding: str) -> Captured:
        """What there is at the end.

        Args:
            exchange: Whose request it was.
            coding: ``content-encoding`` of the answer's pieces.
        """
        capture = self._capture
        most = capture.request_body_bytes
        sent_in = first(exchange.headers, "content-encoding") or "" if most else ""
        return Captured(
            exchange.headers if capture.headers else (),
            tuple(self.sent_headers) if capture.headers else (),
            readable(exchange.body[:most], sent_in, most) if most else b"",
            readable(bytes(self._body), coding, capture.response_body_bytes),
        )


def readable(start: bytes, coding: str, limit_bytes: int) -> bytes:
    """The beginning of a body with its coding undone, as far as it goes: nobody can redact what is compressed.

    Args:
        start: Of the body, possibly cut.
        coding: Its ``content-encoding``.
        limit_bytes: Most that is returned.
    """
    coding = coding.strip().lower()
    if coding not in _GZIP and coding != "deflate":
        return start
    with suppress(zlib.error):
        return zlib.decompressobj(31 if coding in _GZIP else 15).decompress(start, limit_bytes)
    return start
