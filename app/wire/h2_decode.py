"""Response heads from HPACK blocks: the decoding half of one connection's state (RFC 7541 sections 3, 4, 6).

Table entries are ready-made pairs of text, so an indexed header costs one look-up; short strings and their
Huffman codes are remembered in bounded tables. A header that HTTP forbids (RFC 9113 section 8.2.1: upper case,
line breaks, NUL, a request's pseudo-header) enters the table as ``BAD``: whatever refers to it ends its own
stream only.
Pure.
"""

from __future__ import annotations

import re

from app.wire.h2_encode import STATIC
from app.wire.h2_frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault
from app.wire.h2_huffman import HuffmanError, decoded

Pair = tuple[str, str]

OVERHEAD_BYTES = 32
"""Of one entry (section 4.1)."""

BAD: Pair = ("", "")

_STRINGS = 1024
_LONGEST_REMEMBERED = 128
_NAME = re.compile(r":status|[!#$%&'*+\-.^_`|~0-9a-z]+")
_UNFIT_VALUE = re.compile(r"[\x00\r\n]")
Entry = tuple[Pair, int]

_STATIC: tuple[Entry, ...] = tuple(
    (BAD if pair[0][0] == ":" and pair[0] != ":status" else pair, sum(map(len, pair)) + OVERHEAD_BYTES)
    for pair in STATIC
)
_NEWEST = len(_STATIC) + 1
"""Index of the newest dynamic entry (section 2.3.3)."""


class ResponseDecoder:
    """Decodes the header blocks of one connection, in their order.

    Args:
        table_bytes: The table size this side announced.
        list_bytes: The largest header list taken, as ``MAX_HEADER_LIST_SIZE`` counts it.
    """

    def __init__(self, table_bytes: int = 4096, list_bytes: int = 262_144) -> None:
        self._limit = table_bytes
        self._max = table_bytes
        self._list_bytes = list_bytes
        # By index: nothing, the static entries, the dynamic ones with the newest first. There are some hundred at
        # most, so that entering one in their middle costs less than looking each up in two tables would.
        self._table: list[Entry] = [(("", ""), 0), *_STATIC]
        self._size = 0
        self._strings: dict[bytes, str] = {}

    def decode(self, block: bytes) -> list[Pair]:
        """The headers of one block, pseudo-headers included, latin-1; ``BAD`` stands for each malformed one.

        Raises:
            ConnectionFault: Not HPACK, or more than ``list_bytes``: the connection cannot go on.
        """
        try:
            return self._decode(block)
        except (IndexError, HuffmanError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, "A header block is no HPACK.") from error

    def _decode(self, block: bytes) -> list[Pair]:
        out: list[Pair] = []
        at, end, total = 0, len(block), 0
        table, take = self._table, out.append
        while at < end:
            first = block[at]
            if first > 0x80:  # indexed (section 6.1)
                at += 1
                if first == 0xFF:
                    index, at = _more(block, at, 0x7F)
                    pair, size = table[index]
                else:
                    pair, size = table[first - 0x80]
            elif first >= 0x40:
                if first == 0x80:
                    raise IndexError  # index 0
                # literal with incremental indexing (6.2.1)
                pair, size, at = self._literal(block, at, first & 0x3F, 0x3F)
                self._add((pair, size))
            elif first >= 0x20:  # table size update (6.3): in front of everything else
                if out:
                    raise ConnectionFault(COMPRESSION_ERROR, "A table size update behind a header.")
                at = self._resize(block, at, first & 0x1F)
                continue
            else:  # literal that enters no table (6.2.2, 6.2.3)
                pair, size, at = self._literal(block, at, first & 0x0F, 0x0F)
            take(pair)
            total += size
        if total > self._list_bytes:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "A header list larger than allowed.")
        return out

    def _literal(self, block: bytes, at: int, index: int, most: int) -> tuple[Pair, int, int]:
        """A pair whose value, and perhaps name, is spelt out; its size; and where the next field starts."""
        at += 1
        if index == most:
            index, at = _more(block, at, most)
        if index:
            name = self._table[index][0][0]
        else:
            name, at = self._string(block, at)
        value, at = self._string(block, at)
        size = len(name) + len(value) + OVERHEAD_BYTES
        if (not index and _NAME.fullmatch(name) is None) or not name or _UNFIT_VALUE.search(value) is not None:
            return BAD, size, at
        return (name, value), size, at

    def _string(self, block: bytes, at: int) -> tuple[str, int]:
        """A string literal (section 5.2)."""
        first = block[at]
        length = first & 0x7F
        at += 1
        if length == 0x7F:
            length, at = _more(block, at, 0x7F)
        end = at + length
        if end > len(block):
            raise IndexError
        raw = block[at:end]
        if first < 0x80:
            return raw.decode("latin-1"), end
        text = self._strings.get(raw)
        if text is None:
            text = decoded(raw).decode("latin-1")
            if length <= _LONGEST_REMEMBERED:
                if len(self._strings) >= _STRINGS:
                    self._strings.clear()
                self._strings[raw] = text
        return text, end

    def _add(self, entry: Entry) -> None:
        """Enter it, pushing out the oldest; one larger than the table empties it (section 4.4)."""
        self._table.insert(_NEWEST, entry)
        self._size += entry[1]
        if self._size > self._max:
            self._evict()

    def _evict(self) -> None:
        while self._size > self._max:
            self._size -= self._table.pop()[1]

    def _resize(self, block: bytes, at: int, size: int) -> int:
        at += 1
        if size == 0x1F:
            size, at = _more(block, at, 0x1F)
        if size > self._limit:
            raise ConnectionFault(COMPRESSION_ERROR, "A table larger than announced.")
        self._max = size
        self._evict()
        return at


def _more(block: bytes, at: int, value: int) -> tuple[int, int]:
    """The rest of an integer whose prefix is full (section 5.1); nothing larger than 2^28 is needed here."""
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 21:
            raise IndexError
