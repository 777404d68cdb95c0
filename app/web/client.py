"""Be the client's connection for the data plane: is it still there, what more of its body is there to read?

Runs on: worker.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn.http.errors import ParseException

from app.bridge.wait import original
from app.errors import BodyTimeout, BodyTooLarge, InvalidRequest

_GONE = getattr(select, "POLLRDHUP", 0x2000) | select.POLLHUP | select.POLLERR | select.POLLNVAL
_DISCARD_LIMIT_BYTES = 64 << 20
_DISCARD_S = 2.0
_PIECE_BYTES = 65536
_SLOWEST_BYTES_PER_S = 65536

Environ = dict[str, Any]


def parse_length(environ: Environ) -> int | None:
    """The declared body length in bytes; None for chunked bodies; 0 when there is none.

    Raises:
        InvalidRequest: ``Content-Length`` is not a number.
    """
    declared = environ.get("CONTENT_LENGTH", "")
    if declared:
        if not (declared.isascii() and declared.isdigit()):
            raise InvalidRequest(f"Content-Length must be a number of bytes, not {declared[:32]!r}.")
        return int(declared)
    coding = environ.get("HTTP_TRANSFER_ENCODING", "").strip().lower()
    if coding in {"", "identity"}:
        return 0
    if coding != "chunked":  # its coding would be lost on the way
        raise InvalidRequest("Transfer-Encoding must be chunked, and nothing else.")
    return None


_reading: dict[int, tuple[Any, float]] = {}


def cut_slow_bodies(now: float) -> None:
    """End the reading of every body that is past its deadline: its reader then finds the end of the stream.

    A body that trickles in never lets a socket time out; this is called by the keeper, every quarter second.
    """
    for sock, until in list(_reading.values()):
        if now >= until:
            try:
                sock.shutdown(socket.SHUT_RD)
            except OSError:  # the client has closed it
                continue


class WsgiClient:
    """One client connection, through the environ of one request.

    Args:
        environ: WSGI environ; ``gunicorn.socket`` and ``waitress.client_disconnected`` are used where present.
        limit_bytes: Largest body.
        silence_s: Longest wait for the next bytes of the body.
        whole_s: Longest time for the whole body, on top of a second per 64 KiB.
    """

    def __init__(self, environ: Environ, limit_bytes: int, silence_s: float, whole_s: float = math.inf) -> None:
        self._until = time.monotonic() + whole_s
        self._environ = environ
        self._input = environ["wsgi.input"]
        self._socket = environ.get("gunicorn.socket")
        self._limit_bytes = limit_bytes
        self._silence_s = silence_s
        try:
            self.length = parse_length(environ)
        except InvalidRequest:
            self.close_after()
            raise
        self._until += (limit_bytes if self.length is None else self.length) / _SLOWEST_BYTES_PER_S
        self._left = self.length
        self._read_bytes = 0
        if self.length is not None and self.length > limit_bytes:
            self.unread()
            raise self._too_large()

    def gone(self) -> bool:
        """True once the client has closed its side (or the connection broke); never blocks.

        Asks the kernel (POLLRDHUP): a WSGI server itself notices only at its next write (facts 16).
        """
        if self._socket is not None:
            try:
                poller = original("select", "poll")()
                poller.register(self._socket.fileno(), _GONE)
                return bool(poller.poll(0))
            except (OSError, ValueError):  # closed under our feet
                return True
        asked: Callable[[], bool] | None = self._environ.get("waitress.client_disconnected")
        return bool(asked()) if asked is not None else False

    def read(self, size: int) -> bytes:
        """Up to ``size`` more bytes of the body; b"" at its end.

        Raises:
            BodyTooLarge: More than the limit came.
            BodyTimeout: Nothing came for ``silence_s`` seconds, or the whole took too long.
            InvalidRequest: The body ended early, or its chunked framing is broken.
        """
        if self._left == 0:
            return b""
        data = self._receive(size if self._left is None else min(size, self._left), self._silence_s)
        self._read_bytes += len(data)
        if self._left is not None:
            if not data:
                self.close_after()
                got = f"{self._read_bytes} of the {self.length} bytes that Content-Length declares"
                raise InvalidRequest(f"The body ended after {got}.")
            self._left -= len(data)
        elif self._read_bytes > self._limit_bytes:
            self.unread()
            raise self._too_large()
        return data

    def read_all(self) -> bytes:
        """The whole body; errors as for ``read``."""
        pieces = []
        while piece := self.read(1 << 20):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def unread(self) -> None:
        """The rest of the body is not wanted.

        What the client is still sending is thrown away, up to a bound, because a client that is cut off while it
        sends never reads its answer; beyond the bound the connection is closed after the answer.
        """
        thrown = 0
        try:
            while thrown < _DISCARD_LIMIT_BYTES and self._left != 0:
                size = _PIECE_BYTES if self._left is None else min(_PIECE_BYTES, self._left)
                data = self._receive(size, _DISCARD_S)
                if not data:
                    break
                thrown += len(data)
                if self._left is not None:
                    self._left -= len(data)
        except (BodyTimeout, InvalidRequest):
            self.close_after()
        if self._left:
            self.close_after()

    def close_after(self) -> None:
        """Close the connection after the answer: what follows on it cannot be trusted to be a request."""
        request = getattr(self._input, "penstock_request", None)
        if request is not None:
            request.force_close()

    def _receive(self, size: int, silence_s: float) -> bytes:
        sock = self._socket
        before = sock.gettimeout() if sock is not None else None
        if sock is not None:
            sock.settimeout(silence_s)
            _reading[id(self)] = (sock, self._until)
        try:
            data: bytes = self._input.read(size)
        except TimeoutError as exc:
            self.close_after()
            raise BodyTimeout(f"No byte of the request body came for {silence_s:g} s.") from exc
        except (OSError, ValueError, ParseException) as exc:
            self.close_after()
            if time.monotonic() >= self._until:
                raise self._too_slow() from exc
            raise InvalidRequest("The request body's framing is broken; send it again whole.") from exc
        finally:
            if sock is not None:
                del _reading[id(self)]
                sock.settimeout(before)
        if len(data) < size and time.monotonic() >= self._until:
            self.close_after()
            raise self._too_slow()
        return data

    @staticmethod
    def _too_slow() -> BodyTimeout:
        return BodyTimeout("The request body took too long to arrive.")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is over the limit of {self._limit_bytes} bytes for this path.")
