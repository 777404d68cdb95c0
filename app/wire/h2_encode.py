"""Request heads as HPACK blocks, stateless: every header is a literal that enters no table (RFC 7541 section 6.2).

A header that is sent again and again costs one dictionary look-up. Credentials are never-indexed literals
(section 7.1.3); their names are remembered, their values nowhere. The encoder writes into no table; a peer that
allows a table smaller than the default asks for one ``TABLE_OFF`` in front of the next block (section 4.2), and
never again.

    rule            source
    lower-case      RFC 9113 section 8.2.1
    no CR LF NUL    the same; also no white space around a value, which HTTP/1.1 parsers take off
    no hop-by-hop   section 8.2.2; ``host`` becomes ``:authority``

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from hpack.table import HeaderTable

from app.wire.headers import HOP_BY_HOP

T = TypeVar("T")

_PIECES = 2048
_LONGEST_REMEMBERED = 512

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNFIT_VALUE = re.compile(r"[\x00\r\n]")
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+")
_SECRET = re.compile(r"auth|cookie|key|token|secret|credential|password")

TABLE_OFF = b"\x20"
"""Table size update to 0 (section 6.3)."""

DROPPED = HOP_BY_HOP | {"host"}

STATIC: tuple[tuple[str, str], ...] = tuple(
    (bytes(name).decode("ascii"), bytes(value).decode("ascii")) for name, value in HeaderTable.STATIC_TABLE
)
"""Appendix A of RFC 7541; entry 1 comes first."""

_NAMES: dict[str, int] = {}
for _at, (_name, _value) in enumerate(STATIC, 1):
    _NAMES.setdefault(_name, _at)
_PAIRS = {pair: at for at, pair in enumerate(STATIC, 1) if pair[1] or pair[0] == ":authority"}


class UnfitHeaderError(ValueError):
    """A request that cannot be put on the wire; the text names the header, never its value."""


def integer(value: int, prefix_bits: int, first: int) -> bytes:
    """``value`` with an N-bit prefix in a byte whose upper bits are ``first`` (RFC 7541 section 5.1)."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _head(name: str, *, never: bool = False) -> bytes:
    """A literal's type and name."""
    at = _NAMES.get(name)
    flag = 0x10 if never else 0
    if at is not None:
        return integer(at, 4, flag)
    return bytes((flag,)) + integer(len(name), 7, 0) + name.encode("latin-1")


def _text(value: str) -> bytes:
    """A string literal (section 5.2), not Huffman-coded."""
    text = value.encode("latin-1")
    size = len(text)
    return (integer(size, 7, 0) if size > 126 else bytes((size,))) + text


def literal(name: str, value: str, *, never: bool = False) -> bytes:
    """A literal without indexing, or one that must never be indexed.

    Raises:
        UnicodeEncodeError: Not latin-1.
    """
    return _head(name, never=never) + _text(value)


def header(name: str, value: str, *, never: bool = False) -> bytes:
    """One header: its static entry where there is one for both halves, else a literal."""
    at = _PAIRS.get((name, value))
    return integer(at, 7, 0x80) if at is not None and value else literal(name, value, never=never)


class RequestEncoder:
    """Makes header blocks for one origin.

    Args:
        scheme: ``https`` or ``http``.
        authority: ``host[:port]``.
    """

    def __init__(self, scheme: str, authority: str) -> None:
        self._origin = header(":scheme", scheme) + header(":authority", authority)
        self._starts: dict[tuple[str, str], bytes] = {}
        self._pieces: dict[tuple[str, str], bytes] = {}
        self._secrets: dict[str, bytes] = {}
        self._lengths: dict[int, bytes] = {}

    def block(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], length: int | None
    ) -> bytes | None:
        """The header block of one request.

        Args:
            method: HTTP method, verbatim.
            target: Path and query, verbatim.
            headers: Pairs; those in ``DROPPED`` are left out.
            length: Body length in bytes to declare (a declared one is then left out), -1 for no declaration,
                None to send ``content-length`` as it is among ``headers``.

        Returns:
            None where a ``connection`` header is present: the caller takes out what it names, and calls again.

        Raises:
            UnfitHeaderError: Not to be sent: method, target or a header is malformed.
        """
        start = self._starts.get((method, target))
        out = [self._start(method, target) if start is None else start]
        known = self._pieces.get
        for pair in headers:
            piece = known(pair)
            if piece is None:
                piece = self._piece(pair, length)
                if piece is None:
                    return None
            out.append(piece)
        if length is not None and length >= 0:
            out.append(self._length(length))
        return b"".join(out)

    def _start(self, method: str, target: str) -> bytes:
        if not _TOKEN.fullmatch(method) or method == "CONNECT":
            raise UnfitHeaderError("The method cannot be sent.")
        if not _TARGET.fullmatch(target) or (target[0] != "/" and target != "*"):
            raise UnfitHeaderError("The target cannot be sent: it holds blanks or does not start with a slash.")
        start = header(":method", method) + self._origin + header(":path", target)
        if "?" not in target and len(target) <= _LONGEST_REMEMBERED:
            _remember(self._starts, (method, target), start)
        return start

    def _length(self, length: int) -> bytes:
        piece = self._lengths.get(length)
        if piece is None:
            piece = literal("content-length", str(length))
            _remember(self._lengths, length, piece)
        return piece

    def _piece(self, pair: tuple[str, str], length: int | None) -> bytes | None:
        """A header seen for the first time, or one whose value is not remembered."""
        head = self._secrets.get(pair[0])
        if head is not None:
            return head + _sendable(pair[0], pair[1].strip(" \t"))
        name, value = pair[0].lower(), pair[1].strip(" \t")
        if name == "connection":
            return None
        if name == "content-length" and length is not None:
            return b""
        if not _TOKEN.fullmatch(name):
            raise UnfitHeaderError("A header name holds characters that cannot be sent.")
        text = _sendable(name, value)
        if name in DROPPED:
            piece = b""
        elif _SECRET.search(name) is not None:
            head = _head(name, never=True)
            _remember(self._secrets, pair[0], head)
            return head + text
        else:
            piece = header(name, value)
        if name != "content-length" and len(value) <= _LONGEST_REMEMBERED:
            _remember(self._pieces, pair, piece)
        return piece


def _sendable(name: str, value: str) -> bytes:
    """The value of header ``name`` as a string literal.

    Raises:
        UnfitHeaderError: It cannot be sent.
    """
    if _UNFIT_VALUE.search(value):
        raise UnfitHeaderError(f"The value of header {name.lower()} holds a line break or NUL.")
    try:
        return _text(value)
    except UnicodeEncodeError:
        raise UnfitHeaderError(f"The value of header {name.lower()} is not latin-1.") from None


def _remember(table: dict[T, bytes], key: T, piece: bytes) -> None:
    """Keep ``piece``; a table that is full starts anew."""
    if len(table) >= _PIECES:
        table.clear()
    table[key] = piece
