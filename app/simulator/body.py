"""A request body seen passing by: counted, hashed, its two ends kept; never held whole when it is large.

Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

KEEP_BYTES = 65_536

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USER = re.compile(rb'"user_id"\s*:\s*"([^"\\]*)"')


class Asked(NamedTuple):
    """What a messages request asks for, as far as the simulator cares."""

    model: str
    stream: bool
    user_id: str


class Body:
    """The bytes of one request.

    Attributes:
        size: Bytes seen so far.
    """

    __slots__ = ("_head", "_sha", "_tail", "size")

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._tail = b""
        self._sha: Any = None

    def feed(self, data: bytes) -> None:
        """Takes the next piece."""
        if not self.size:
            self._head = data
            self.size = len(data)
            return
        if self._sha is None:
            self._sha = hashlib.sha256(self._head)
        self._sha.update(data)
        self.size += len(data)
        room = KEEP_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
        self._tail = (self._tail + data)[-KEEP_BYTES:]

    @property
    def first(self) -> bytes:
        """The first 64 KiB at most."""
        return self._head[:KEEP_BYTES]

    @property
    def last(self) -> bytes:
        """The last 64 KiB at most."""
        return (self._tail if self._sha is not None else self._head)[-KEEP_BYTES:]

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes."""
        digest = self._sha or hashlib.sha256(self._head)
        return str(digest.hexdigest())

    def asked(self) -> Asked:
        """Model, stream flag and user id: parsed where the body is small, searched in both ends otherwise."""
        if self.size <= 16_384:
            try:
                return _from_json(json.loads(self._head))
            except ValueError:
                pass
        return _from_bytes(self.first if self.size <= KEEP_BYTES else self.first + b"\n" + self.last)


def _from_json(data: object) -> Asked:
    """``Asked`` of a parsed body."""
    if not isinstance(data, dict):
        return Asked("", False, "")
    model, metadata = data.get("model"), data.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return Asked(
        model if isinstance(model, str) else "", data.get("stream") is True, user if isinstance(user, str) else ""
    )


def _from_bytes(text: bytes) -> Asked:
    """``Asked`` of a body that is large or no JSON."""
    model, user = _MODEL.search(text), _USER.search(text)
    return Asked(
        model.group(1).decode("utf-8", "replace") if model else "",
        _STREAM.search(text) is not None,
        user.group(1).decode("utf-8", "replace") if user else "",
    )
