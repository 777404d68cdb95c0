"""Check that a caller presents one of the gateway's keys.

Pure.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from app.errors import Unauthenticated


def presented(pairs: Iterable[tuple[str, str]]) -> list[bytes]:
    """Every key a caller presents: ``x-api-key`` values and ``Authorization: Bearer`` tokens."""
    found = []
    for name, value in pairs:
        lower = name.lower()
        if lower == "x-api-key":
            found.append(value.strip().encode("latin-1", "replace"))
        elif lower == "authorization" and value[:7].lower() == "bearer ":
            found.append(value[7:].strip().encode("latin-1", "replace"))
    return found


def authenticate(pairs: Iterable[tuple[str, str]], keys: tuple[bytes, ...]) -> None:
    """Let the caller in, or not.

    Every presented key is compared with every configured one, in constant time, so that the answer's time tells
    nothing about how much of a key was right.

    Raises:
        Unauthenticated: None of the presented keys is one of ``keys``.
    """
    matches = 0
    for key in presented(pairs):
        for known in keys:
            matches += hmac.compare_digest(key, known)
    if not matches:
        raise Unauthenticated
