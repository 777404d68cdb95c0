"""Request header blocks to request heads, remembered while the HPACK table stands still.

A client that repeats a request sends the same few bytes again, all of them table references: decoding them
once is enough until something enters the table.

Runs on: simulator loop.
"""

from __future__ import annotations

import hpack
from hpack.table import HeaderTable

from app.simulator.request import RequestHead

_CACHE = 512
_LIST_LIMIT = 1024 * 1024


class _WatchedTable(HeaderTable):
    """A header table that knows whether it was changed."""

    def __init__(self) -> None:
        self.changes = 0
        super().__init__()

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)


class HeadDecoder:
    """The decoding half of one connection's HPACK state."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=_LIST_LIMIT)
        self._table = _WatchedTable()
        self._decoder.header_table = self._table
        self._known: dict[bytes, RequestHead | None] = {}

    def decode(self, block: bytes) -> RequestHead | None:
        """The request head of ``block``; None for trailers and for a request without method or path.

        Raises:
            hpack.exceptions.HPACKError: The block is no HPACK; the connection cannot go on.
        """
        if block in self._known:
            return self._known[block]
        changes = self._table.changes
        fields = self._decoder.decode(block, raw=True)
        request = _request(
            [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in fields]
        )
        resized = bool(block) and block[0] & 0xE0 == 0x20
        if resized or changes != self._table.changes or len(self._known) >= _CACHE:
            self._known.clear()
        if not resized and changes == self._table.changes:
            self._known[block] = request
        return request


def _request(fields: list[tuple[str, str]]) -> RequestHead | None:
    """The head that ``fields``, pseudo-headers included, describe."""
    pseudo = {name: value for name, value in fields if name.startswith(":")}
    method, path = pseudo.get(":method"), pseudo.get(":path")
    if not method or not path:
        return None
    headers = [(name, value) for name, value in fields if not name.startswith(":")]
    return RequestHead(method, path, headers, "h2", pseudo.get(":authority", ""))
