"""Check that a caller presents one of the gateway's keys.

Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from app.errors import Unauthenticated

_LENGTHS = frozenset({len("x-api-key"), len("authorization")})
_ADMIN_KEY = "The admin key opens the /admin pages only. Present a key for the API."
_SALT = secrets.token_bytes(16)  # digests of this process say nothing outside of it


def presented(pairs: Iterable[tuple[str, str]]) -> list[bytes]:
    """Every key a caller presents: ``x-api-key`` values and ``Authorization: Bearer`` tokens."""
    found = []
    for name, value in pairs:
        if len(name) not in _LENGTHS:
            continue
        lower = name.lower()
        if lower == "x-api-key":
            found.append(value.strip().encode("latin-1", "replace"))
        elif lower == "authorization" and value[:7].lower() == "bearer ":
            found.append(value[7:].strip().encode("latin-1", "replace"))
    return found


def authenticate(pairs: Iterable[tuple[str, str]], keys: Iterable[tuple[str, bytes]]) -> str:
    """Let the caller in, or not.

    Every presented key is compared with every configured one, in constant time, so that the answer's time tells
    nothing about how much of a key was right.

    Args:
        pairs: Headers of the request.
        keys: Name and value of every key that lets in.

    Returns:
        The name of the key.

    Raises:
        Unauthenticated: None of the presented keys is one of ``keys``.
    """
    names = []
    for key in presented(pairs):
        for name, known in keys:
            if hmac.compare_digest(key, known):
                names.append(name)
    if not names:
        raise Unauthenticated
    return names[0]


def caller_of(pairs: Iterable[tuple[str, str]], admin_key: bytes = b"") -> str:
    """Who sends it, where no gateway key says so: a digest of what is presented, never the thing itself.

    Args:
        pairs: Headers of the request.
        admin_key: Opens the operator's pages and nothing else; b"" if there is none.

    Raises:
        Unauthenticated: The admin key was presented; what callers present goes on to the upstream.
    """
    keys = presented(pairs)
    if admin_key:
        for key in keys:
            if hmac.compare_digest(key, admin_key):
                raise Unauthenticated(_ADMIN_KEY)
    return hashlib.blake2b(keys[0], digest_size=8, key=_SALT).hexdigest() if keys else ""
