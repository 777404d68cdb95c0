"""Recorded exchanges, served byte for byte.

Pure.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from app.simulator.heads import Head, Pairs

_FRAMING = {"connection", "keep-alive", "transfer-encoding", "content-length", "proxy-connection", "upgrade"}


class Recording(NamedTuple):
    """One recorded answer.

    Attributes:
        status: HTTP status.
        headers: As recorded, without those that frame the body on the wire.
        head: The same, encoded.
        body: The recorded bytes.
        is_stream: The body is an event stream.
    """

    status: int
    headers: Pairs
    head: Head
    body: bytes
    is_stream: bool

    def pieces(self) -> list[bytes]:
        """The body as it is written: event by event for a stream."""
        if not self.is_stream:
            return [self.body] if self.body else []
        parts = self.body.split(b"\n\n")
        return [part + b"\n\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]


def recording(row: Mapping[str, Any]) -> Recording:
    """A recording of one JSON object (``status``, ``response_headers``, ``response_body_b64``, ``is_stream``)."""
    headers = [(str(name), str(value)) for name, value in row["response_headers"] if name.lower() not in _FRAMING]
    body = base64.b64decode(row["response_body_b64"] or "")
    return Recording(int(row["status"]), headers, Head(headers, dated=False), body, bool(row.get("is_stream")))


def parse(lines: Iterable[str]) -> list[Recording]:
    """The recordings of a JSONL file's lines, in order."""
    return [recording(json.loads(line)) for line in lines if line.strip()]


def load(path: str) -> list[Recording]:
    """The recordings of the JSONL file at ``path``."""
    with Path(path).open(encoding="utf-8") as lines:
        return parse(lines)
