"""Decide which headers pass the gateway, and which end here.

Sources: RFC 9110 section 7.6.1 (connection-specific fields, and fields that ``Connection`` names); B12 and B13.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Pairs = tuple[tuple[str, str], ...]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# What a request must not carry on: where it was sent, how it was framed, what the hop before told this one.
_REQUEST_ENDS_HERE = HOP_BY_HOP | {"host", "content-length", "expect", "cookie", "forwarded"}
_FORBIDDEN = re.compile(r"[^\x09\x20-\x7e\x80-\xff]")


def _without_named(kept: list[tuple[str, str]], connection: list[str]) -> list[tuple[str, str]]:
    """``kept`` without what the ``Connection`` header names."""
    named = {token.strip().lower() for value in connection for token in value.split(",")}
    return [pair for pair in kept if pair[0].lower() not in named]


_REMEMBERED = 512
_LONGEST_REMEMBERED = 64
_CONNECTION_LENGTH = len("connection")
# Names of headers are few, and seen again with every request; values are remembered nowhere.
_fates: dict[str, str] = {}
_harmless: set[str] = set()


def _fate(name: str) -> str:
    """What becomes of a request header: its lower-case name, or "" if it ends here; remembered for a while."""
    lower = name.lower()
    fate = "" if lower in _REQUEST_ENDS_HERE or lower.startswith("x-forwarded-") else lower
    if len(name) <= _LONGEST_REMEMBERED:
        if len(_fates) >= _REMEMBERED:
            _fates.clear()
        _fates[name] = fate
    return fate


def request_headers(pairs: Pairs, drop: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """The pairs that go on to the upstream, in order, repeats kept, values verbatim, names in lower case.

    Args:
        pairs: As received; names in any case.
        drop: Lower-case names to leave out besides (gateway credentials).
    """
    kept = []
    connection = []
    known = _fates.get
    for name, value in pairs:
        fate = known(name)
        if fate is None:
            fate = _fate(name)
        if not fate:
            if len(name) == _CONNECTION_LENGTH and name.lower() == "connection":
                connection.append(value)
        elif fate not in drop:
            kept.append((fate, value))
    if connection and connection != ["keep-alive"]:
        return _without_named(kept, connection)
    return kept


def response_headers(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs that go on to the client, in order, repeats kept, values verbatim."""
    kept = []
    connection = []
    harmless = _harmless
    for pair in pairs:
        name = pair[0]
        if name in harmless:
            kept.append(pair)
            continue
        lower = name.lower()
        if lower not in HOP_BY_HOP:
            kept.append(pair)
            if len(name) <= _LONGEST_REMEMBERED and len(harmless) < _REMEMBERED:
                harmless.add(name)
        elif lower == "connection":
            connection.append(pair[1])
    return _without_named(kept, connection) if connection else kept


def first(pairs: Iterable[tuple[str, str]], name: str) -> str | None:
    """Value of the first header called ``name`` (lower case), or None."""
    length = len(name)
    for key, value in pairs:
        if len(key) == length and key.lower() == name:
            return value
    return None


def fault(pairs: Iterable[tuple[str, str]]) -> str:
    """Why these headers may not be sent on (RFC 9110 section 5.5), or ""; names the header, never its value."""
    if not _FORBIDDEN.search("\t".join([value for _, value in pairs])):  # one search for all of them
        return ""
    name = next(name for name, value in pairs if _FORBIDDEN.search(value))
    return f"header {name.lower()!r} holds a character that is not allowed; allowed are printable latin-1 and tab"
