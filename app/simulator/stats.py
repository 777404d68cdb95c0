"""Counters of everything the simulator has seen, and the last requests in short.

Runs on: simulator loop.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from app.simulator.body import Body
from app.simulator.request import RequestHead

if TYPE_CHECKING:
    from app.simulator.sink import Sink

_PATHS = 1000
_RECENT = 1000


class Stats:
    """What ``/__stats``, ``/__last`` and ``/__requests`` answer.

    Attributes:
        open: Exchanges that are not over yet (control requests left out).
        connections: Client connections open now, by any protocol.
    """

    def __init__(self) -> None:
        self.open: set[Sink] = set()
        self.connections = 0
        self.reset()

    def reset(self) -> None:
        """Sets all counters to zero; what is open stays open."""
        self.tcp_connections = 0
        self.tls_handshakes = 0
        self.tls_resumed = 0
        self.h2_sessions = 0
        self.requests = {"http/1.1-plain": 0, "http/1.1-tls": 0, "h2": 0}
        self.by_path: dict[str, int] = {}
        self.events_sent = 0
        self.max_open_streams = len(self.open)
        self.client_aborts = 0
        self.aborts: deque[tuple[int, str]] = deque(maxlen=_RECENT)
        self.resets_sent = 0
        self.refused_sent = 0
        self.goaways_sent = 0
        self.request_bytes = 0
        self.last: tuple[RequestHead, Body, str] | None = None
        self.recent: deque[tuple[str, str, str, str, str]] = deque(maxlen=_RECENT)

    def opened(self, sink: Sink) -> None:
        """Counts a request whose head has arrived."""
        self.requests[sink.request.protocol] += 1
        path = sink.request.path
        if path not in self.by_path and len(self.by_path) >= _PATHS:
            path = "other"
        self.by_path[path] = self.by_path.get(path, 0) + 1
        self.open.add(sink)
        if len(self.open) > self.max_open_streams:
            self.max_open_streams = len(self.open)

    def received(self, sink: Sink) -> None:
        """Notes a request whose body is complete."""
        request = sink.request
        self.last = (request, sink.body, sink.model)
        self.request_bytes += sink.body.size
        self.recent.append(
            (request.method, request.target, sink.model, request.get("x-api-key"), request.protocol)
        )

    def closed(self, sink: Sink, *, aborted: bool) -> None:
        """Counts an exchange that is over, ``aborted`` when the client broke it off."""
        self.open.discard(sink)
        if aborted:
            self.client_aborts += 1
            self.aborts.append((time.monotonic_ns(), sink.model))

    def snapshot(self) -> dict[str, Any]:
        """All counters as JSON-able data."""
        return {
            "tcp_connections": self.tcp_connections,
            "tls_handshakes": self.tls_handshakes,
            "tls_resumed": self.tls_resumed,
            "h2_sessions": self.h2_sessions,
            "open_connections": self.connections,
            "requests": dict(self.requests),
            "by_path": dict(self.by_path),
            "request_bytes": self.request_bytes,
            "events_sent": self.events_sent,
            "open_streams": len(self.open),
            "max_open_streams": self.max_open_streams,
            "client_aborts": self.client_aborts,
            "aborts": [{"at_ns": at, "model": model} for at, model in self.aborts],
            "resets_sent": self.resets_sent,
            "refused_sent": self.refused_sent,
            "goaways_sent": self.goaways_sent,
            "streams": list(_streams(self.open)),
        }

    def last_request(self) -> dict[str, Any] | None:
        """The last complete API request, its first 64 KiB of body included."""
        if self.last is None:
            return None
        request, body, model = self.last
        return {
            "method": request.method,
            "target": request.target,
            "url": request.target,
            "authority": request.authority,
            "proto": request.protocol,
            "model": model,
            "headers": [list(pair) for pair in request.headers],
            "body_bytes": body.size,
            "body_sha256": body.sha256,
            "body_b64": base64.b64encode(body.first).decode(),
        }

    def recent_requests(self) -> list[dict[str, str]]:
        """The last 1000 complete API requests, oldest first."""
        names = ("method", "target", "model", "x-api-key", "protocol")
        return [dict(zip(names, row, strict=True)) for row in self.recent]


def _streams(sinks: Iterable[Sink]) -> Iterable[dict[str, Any]]:
    """What has been sent on exchanges that are still open."""
    for sink in sinks:
        yield {
            "protocol": sink.request.protocol,
            "path": sink.request.path,
            "model": sink.model,
            "bytes_received": sink.body.size,
            "bytes_sent": sink.bytes_sent,
        }
