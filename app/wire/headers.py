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
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_LATIN1 = re.compile(r"[^\x00-\xff]")


def _named_by_connection(pairs: Iterable[tuple[str, str]]) -> set[str]:
    named: set[str] = set()
    for name, value in pairs:
        if name.lower() == "connection":
            named.update(token.strip().lower() for token in value.split(","))
    return named


def request_headers(pairs: Pairs, drop: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """The pairs that go on to the upstream, in order, repeats kept, values verbatim.

    Args:
        pairs: As received; names in any case.
        drop: Lower-case names to leave out besides (gateway credentials).
    """
    ends = _REQUEST_ENDS_HERE | drop
    named = _named_by_connection(pairs)
    if named:
        ends = ends | named
    kept = []
    for name, value in pairs:
        lower = name.lower()
        if lower not in ends and not lower.startswith("x-forwarded-"):
            kept.append((lower, value))
    return kept


def response_headers(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs that go on to the client, in order, repeats kept, values verbatim."""
    ends = HOP_BY_HOP
    named = _named_by_connection(pairs)
    if named:
        ends = ends | named
    return [(name, value) for name, value in pairs if name.lower() not in ends]


def first(pairs: Iterable[tuple[str, str]], name: str) -> str | None:
    """Value of the first header called ``name`` (lower case), or None."""
    for key, value in pairs:
        if key.lower() == name:
            return value
    return None


def fault(pairs: Pairs) -> str:
    """Why these headers may not be sent on (RFC 9110 section 5.5), or ""; names the header, never its value."""
    for name, value in pairs:
        if _FORBIDDEN.search(value):
            return (
                f"header {name.lower()!r} holds a control character; allowed are visible characters, space and tab"
            )
        if _NOT_LATIN1.search(value):
            return f"header {name.lower()!r} holds characters outside latin-1"
    return ""
