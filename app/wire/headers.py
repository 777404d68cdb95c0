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


def request_headers(pairs: Pairs, drop: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """The pairs that go on to the upstream, in order, repeats kept, values verbatim, names in lower case.

    Args:
        pairs: As received; names in any case.
        drop: Lower-case names to leave out besides (gateway credentials).
    """
    kept = []
    connection = []
    for name, value in pairs:
        lower = name.lower()
        if lower in _REQUEST_ENDS_HERE:
            if lower == "connection":
                connection.append(value)
        elif lower not in drop and not lower.startswith("x-forwarded-"):
            kept.append((lower, value))
    if connection and connection != ["keep-alive"]:
        return _without_named(kept, connection)
    return kept


def response_headers(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs that go on to the client, in order, repeats kept, values verbatim."""
    kept = []
    connection = []
    for pair in pairs:
        lower = pair[0].lower()
        if lower not in HOP_BY_HOP:
            kept.append(pair)
        elif lower == "connection":
            connection.append(pair[1])
    return _without_named(kept, connection) if connection else kept


def first(pairs: Iterable[tuple[str, str]], name: str) -> str | None:
    """Value of the first header called ``name`` (lower case), or None."""
    for key, value in pairs:
        if key.lower() == name:
            return value
    return None


def fault(pairs: Iterable[tuple[str, str]]) -> str:
    """Why these headers may not be sent on (RFC 9110 section 5.5), or ""; names the header, never its value."""
    if not _FORBIDDEN.search("\t".join([value for _, value in pairs])):  # one search for all of them
        return ""
    name = next(name for name, value in pairs if _FORBIDDEN.search(value))
    return f"header {name.lower()!r} holds a character that is not allowed; allowed are printable latin-1 and tab"
