"""Say whether an exchange failed, and of what type that failure is.

An exchange failed where its client asked for something that ought to have worked and did not get it:

    slug of ours       what the gateway itself said: queue_full, connect_failed, stream_broken, internal …
    upstream_5xx       the upstream's own 5xx, passed on
    upstream_529       the same for 529, and for ``overloaded_error`` as an event of a 200
    upstream_error_event  any other error event in which the upstream's own stream ended
    upstream_429       the upstream's 429, passed on: there was no room
    upstream_auth      401 or 403 to a key of the gateway's own

No failures are: a client that left (unless it had got an error event: SDKs hang up then); every 4xx that speaks of
the request, whether the upstream's (400, 404, 413 …) or ours (invalid_request, unauthenticated, caller_limited …);
401 and 403 to a key that the caller brought.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from app.errors import ClientGone, RequestError
from app.exchange import Record

_OVERLOADED: Final = frozenset({"529", "overloaded_error"})
_REFUSED_KEY: Final = frozenset({"401", "403"})


def _slugs(of: type[RequestError]) -> Iterator[str]:
    yield of.slug
    for below in of.__subclasses__():
        yield from _slugs(below)


_CLIENTS: Final = frozenset((ClientGone.slug, *_slugs(RequestError)))
"""Slugs of ours that speak of the request or its client."""


def failure_of(record: Record) -> str:
    """The type of its failure, or "" for none; quick where there is none."""
    attempts = record.attempts
    outcome = attempts[-1].outcome if attempts else ""
    if outcome == "200" and not (record.slug or record.stream_error):
        return ""
    slug = ClientGone.slug if record.client_left else record.slug
    return failure(slug, outcome, bool(record.credential), record.stream_error)


def failure(slug: str, outcome: str, own_key: bool, stream_error: str = "") -> str:
    """The type of an exchange's failure, or "" for none.

    Args:
        slug: The Record's: of the gateway's own error, "" where the upstream's answer was passed on.
        outcome: Of its last try: the upstream's status, or a slug; "" where there was none.
        own_key: The try was made with a key of the gateway's own.
        stream_error: Type of the error event in which the upstream's stream ended, "" for none.
    """
    if slug and slug not in _CLIENTS:
        return slug
    if stream_error:
        return "upstream_529" if stream_error in _OVERLOADED else "upstream_error_event"
    if slug:
        return ""
    if outcome in _OVERLOADED:
        return "upstream_529"
    if outcome == "429":
        return "upstream_429"
    if outcome in _REFUSED_KEY and own_key:
        return "upstream_auth"
    return "upstream_5xx" if len(outcome) == 3 and outcome[0] == "5" else ""
