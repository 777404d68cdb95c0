"""The Files endpoints: uploads are counted and hashed, never kept; downloads are made up to the size in their id.

Runs on: simulator loop.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from typing import Any

from app.simulator import content, streams
from app.simulator.scripts import fail, respond
from app.simulator.sink import Sink

_SIZE = re.compile(r"file_(?:sim|lab)_(\d{1,12})(?:_\d+)?")
_FILENAME = re.compile(rb'filename="([^"\r\n]*)"')
_PART_TYPE = re.compile(rb"\r\ncontent-type:\s*([^\r\n;]+)", re.IGNORECASE)
_CREATED = "2026-01-01T00:00:00Z"


class Files:
    """Answers ``/files`` in all its forms."""

    def __init__(self) -> None:
        self._uploads: deque[dict[str, Any]] = deque(maxlen=100)
        self._numbers = itertools.count(1)

    def upload(self, sink: Sink) -> None:
        """POST /files, multipart or raw."""
        name, mime, size = _described(sink)
        entry = _metadata(f"file_sim_{size}_{next(self._numbers)}", name, mime)
        self._uploads.append(entry)
        seen = {"received_bytes": sink.body.size, "received_sha256": sink.body.sha256}
        _json(sink, entry | seen)

    def listing(self, sink: Sink) -> None:
        """GET /files: the last 100 uploads, newest first."""
        data = list(reversed(self._uploads))
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        _json(sink, {"data": data, "has_more": False, "first_id": first, "last_id": last})

    def metadata(self, sink: Sink) -> None:
        """GET /files/{id}."""
        if _size_of(sink) is None:
            fail(sink, 404)
            return
        made_up = _metadata(sink.request.route.arg, "sim.bin", "application/octet-stream")
        _json(sink, next((entry for entry in self._uploads if entry["id"] == made_up["id"]), made_up))

    def delete(self, sink: Sink) -> None:
        """DELETE /files/{id}."""
        _json(sink, {"id": sink.request.route.arg, "type": "file_deleted"})

    def download(self, sink: Sink) -> None:
        """GET /files/{id}/content: as many deterministic bytes as the id says."""
        size = _size_of(sink)
        if size is None:
            fail(sink, 404)
            return
        sink.head(200, content.OCTETS_HEAD, request_id=content.request_id(), length=size)
        if sink.request.method == "HEAD":
            sink.end()
        else:
            streams.pour(sink, streams.octets(size))


def _json(sink: Sink, data: dict[str, Any]) -> None:
    respond(sink, 200, content.JSON_HEAD, json.dumps(data).encode())


def _size_of(sink: Sink) -> int | None:
    """The size that the file id in the path stands for."""
    found = _SIZE.fullmatch(sink.request.route.arg)
    return int(found.group(1)) if found else None


def _metadata(identifier: str, name: str, mime: str) -> dict[str, Any]:
    """A file object."""
    found = _SIZE.fullmatch(identifier)
    return {
        "id": identifier,
        "type": "file",
        "filename": name,
        "mime_type": mime,
        "size_bytes": int(found.group(1)) if found else 0,
        "created_at": _CREATED,
        "downloadable": True,
    }


def _described(sink: Sink) -> tuple[str, str, int]:
    """Name, type and size of the uploaded file; of several parts the first names it, all count."""
    kind, body = sink.request.get("content-type"), sink.body
    head, separator, _ = body.first.partition(b"\r\n\r\n")
    if not kind.startswith("multipart/") or not separator:
        return "upload.bin", kind or "application/octet-stream", body.size
    name, mime = _FILENAME.search(head), _PART_TYPE.search(head)
    tail = body.last.rstrip(b"\r\n")
    closing = len(body.last) - tail.rfind(b"\r\n--") if b"\r\n--" in tail else 0
    return (
        name.group(1).decode("utf-8", "replace") if name else "upload.bin",
        mime.group(1).decode("latin-1") if mime else "application/octet-stream",
        max(0, body.size - len(head) - 4 - closing),
    )
