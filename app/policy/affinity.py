"""Say which conversation a request belongs to, and which key a conversation prefers (B34).

Prompt caches are kept per organisation and workspace, so a conversation that changes its key pays for its whole
prefix again. What names it: the client's own session header, else ``metadata.user_id``, else a digest of the start
of its cacheable prefix, which is the same in every turn.
Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import orjson

from app.wire.skim import first_element, members, trailing

SESSION_HEADER = "x-claude-code-session-id"
# Together 64 KiB: how far the body is searched for its messages, and how much of the first one is looked at.
FIND_BYTES = 48 * 1024
PART_BYTES = 12 * 1024
# Read beyond PART_BYTES, for what is removed before the cut: it must not move the cut from turn to turn.
SLACK_BYTES = 4 * 1024
TAIL_BYTES = 4 * 1024
MODEL_BYTES = 1024

_MARK = rb'"cache_control"\s*+:\s*+(?:\{[^{}]*+\}|null)'
_CACHE_CONTROL = re.compile(rb",\s*+" + _MARK + rb"|(?<!\\)" + _MARK + rb"\s*+,?+\s*+")
# `"x"` and `[{"type": "text", "text": "x"}]` say the same; clients write the second where a cache mark belongs.
_TYPE = rb'"type"\s*+:\s*+"text"'
_BLOCK_OPENS = re.compile(rb"\[\s*+\{\s*+(?:" + _TYPE + rb'\s*+,\s*+)?+"text"\s*+:\s*+')
_BLOCK_CLOSES = re.compile(rb'(?<!\\)"(?:\s*+,\s*+' + _TYPE + rb")?+\s*+\}\s*+\]")


def conversation(headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """Name the conversation of a request.

    At most 64 KiB from the start of the body and 4 KiB from its end are looked at, and a part of that copied.

    Args:
        headers: Names in any case.
        body: As received.

    Returns:
        16 bytes, the same in every turn of a conversation; b"" when nothing names one: no header, and a body that
        is no JSON object with messages or a user.
    """
    for name, value in headers:
        if len(name) == len(SESSION_HEADER) and name.lower() == SESSION_HEADER and value:
            return _digest(b"session", value.encode("utf-8", "replace"))
    parts: list[bytes] = []
    user = b""
    for key, start, end in members(body, FIND_BYTES, until=b"messages"):
        if key == b"messages":
            parts += _first_message(body, start)
        elif key in (b"system", b"tools"):
            parts.append(_part(body, start, end))
        elif key == b"metadata":
            user = _user(body, start, end)
    if parts and not user and (span := trailing(body, b"metadata", TAIL_BYTES)):
        user = _user(body, *span)
    if user:
        return _digest(b"user", user)
    return _digest(b"prefix", *parts) if parts else b""


def model(body: bytes, limit_bytes: int) -> str:
    """The top-level ``model`` of a request, wherever it stands; "" when there is none.

    Looked for before the messages, then near the end, then behind them: the bulk is passed over only when it must
    be.

    Args:
        body: As received.
        limit_bytes: How far to look from the start.
    """
    named = _named_model(body, limit_bytes, b"messages")
    span = named or trailing(body, b"model", TAIL_BYTES) or _named_model(body, limit_bytes, None)
    if span is None or not 0 < span[1] - span[0] <= MODEL_BYTES:
        return ""
    value = _decoded(body[span[0] : span[1]])
    return value if isinstance(value, str) else ""


def rank(conversation: bytes, keys: Sequence[tuple[str, float]]) -> list[int]:
    """The order in which a conversation prefers keys: weighted rendezvous hashing (highest random weight).

    Every key draws its lot from its own label and the conversation alone, in any process. So a key that is
    removed, or changes its weight, moves no conversation but its own.

    Args:
        conversation: As ``conversation`` named it.
        keys: Label and weight (above 0; a key without weight comes last).

    Returns:
        Indices into ``keys``, the preferred one first.
    """
    lots = []
    for index, (label, weight) in enumerate(keys):
        drawn = int.from_bytes(blake2b(conversation + label.encode(), digest_size=8).digest(), "big")
        lots.append((-math.log((drawn + 0.5) / 2**64) / weight if weight > 0 else math.inf, index))
    return [index for _, index in sorted(lots)]


def _digest(kind: bytes, *parts: bytes) -> bytes:
    return blake2b(b"\0".join((kind, *parts)), digest_size=16).digest()


def _first_message(body: bytes, start: int) -> list[bytes]:
    span = first_element(body, start, start + PART_BYTES + SLACK_BYTES)
    return [_part(body, *span)] if span else []


def _part(body: bytes, start: int, end: int) -> bytes:
    """The start of a value, without what clients change in it from turn to turn."""
    last = start + PART_BYTES + SLACK_BYTES
    part = body[start : min(end, last) if end >= 0 else last]
    if b'"cache_control"' in part:
        part = _CACHE_CONTROL.sub(b"", part)
    return _BLOCK_CLOSES.sub(b'"', _BLOCK_OPENS.sub(b"", part))[:PART_BYTES]


def _user(body: bytes, start: int, end: int) -> bytes:
    """The ``user_id`` in the metadata at ``start``; b"" when there is none."""
    for key, at, stop in members(body[start:end] if end >= 0 else b"", FIND_BYTES):
        if key == b"user_id":
            return body[start + at + 1 : start + stop - 1] if body[start + at] == ord('"') else b""
    return b""


def _named_model(body: bytes, limit_bytes: int, until: bytes | None) -> tuple[int, int] | None:
    for key, start, end in members(body, limit_bytes, until):
        if key == b"model" or (b"\\" in key and _decoded(b'"' + key + b'"') == "model"):
            return start, end
    return None


def _decoded(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
