"""Response head blocks, encoded once for both protocols and reused for every answer on every connection.

HTTP/2 blocks are written as HPACK literals without indexing (RFC 7541 section 6.2.2): they depend on no
connection's table, so the same bytes serve all of them.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus

Pairs = Sequence[tuple[str, str]]

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}
_CONTENT_LENGTH = b"\x0f\x0d"  # literal without indexing, name = static entry 28
_NO_TABLE = b"\x20"  # dynamic table size update to 0


def _h2_string(data: bytes) -> bytes:
    """A length-prefixed string, not Huffman-coded (RFC 7541 section 5.2)."""
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + data


def h2_block(pairs: Iterable[tuple[str, str]]) -> bytes:
    """``pairs`` as HPACK literals without indexing; names are lower-cased."""
    return b"".join(
        b"\x00" + _h2_string(name.lower().encode("latin-1")) + _h2_string(value.encode("latin-1"))
        for name, value in pairs
    )


def h1_block(pairs: Iterable[tuple[str, str]]) -> bytes:
    """``pairs`` as HTTP/1.1 header lines."""
    return "".join([f"{name}: {value}\r\n" for name, value in pairs]).encode("latin-1")


class Head:
    """Header fields encoded for both protocols.

    Attributes:
        dated: The protocol adds a ``date`` to these fields.
    """

    __slots__ = ("dated", "h1", "h2")

    def __init__(self, pairs: Pairs, *, dated: bool = True) -> None:
        self.dated = dated
        self.h1 = h1_block(pairs)
        self.h2 = h2_block(pairs)


_h1_status: dict[int, bytes] = {}
_h2_status: dict[int, bytes] = {200: b"\x88", 204: b"\x89", 304: b"\x8b", 400: b"\x8c", 404: b"\x8d", 500: b"\x8e"}


def h1_status(status: int) -> bytes:
    """The status line."""
    line = _h1_status.get(status)
    if line is None:
        line = _h1_status[status] = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n".encode()
    return line


def h2_status(status: int) -> bytes:
    """The ``:status`` field."""
    field = _h2_status.get(status)
    if field is None:
        field = _h2_status[status] = b"\x08\x03%d" % status
    return field


def h2_content_length(length: int) -> bytes:
    """The ``content-length`` field."""
    digits = b"%d" % length
    return b"%s%c%s" % (_CONTENT_LENGTH, len(digits), digits)


def h2_table_off() -> bytes:
    """The field that tells a peer with a smaller table that this encoder uses none."""
    return _NO_TABLE


class DateLine:
    """The ``date`` header, encoded once a second."""

    __slots__ = ("_second", "head")

    def __init__(self) -> None:
        self._second = -1
        self.head = Head(())

    def at(self, now_s: float) -> Head:
        """The header for wall-clock time ``now_s`` (seconds since the epoch)."""
        second = int(now_s)
        if second != self._second:
            self._second = second
            self.head = Head([("date", formatdate(second, usegmt=True))])
        return self.head
