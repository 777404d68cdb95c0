"""Say what became of a pool's connections: as events, which the worker side logs and counts.

    at all levels      connect_failed, http2_refused, pool_timeout, warm_up_failed, connection_unresponsive
    where told to      connection_opened, connection_reused, connection_closed

The second line is for LOG_LEVEL=debug: one event for each request, under its id.
Runs on: loop.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Awaitable
from typing import TypeVar

from app.upstream.h2_connect import Closed
from app.upstream.transport_base import Asker, Inbound

Events = collections.deque[dict[str, object]]
T = TypeVar("T")


class Nobody:
    """Asks where no exchange does: warm-up, probes."""

    request_id = ""

    def __init__(self) -> None:
        self.connect_ms = 0.0


NOBODY = Nobody()


async def waited(asker: Asker, waiting: Awaitable[T]) -> T:
    """Wait on behalf of ``asker``; it is told how long that took, however it ends."""
    began = time.monotonic()
    try:
        return await waiting
    finally:
        asker.connect_ms += (time.monotonic() - began) * 1000.0


class News:
    """What one pool has to say.

    Args:
        events: Where it is said.
        origin: Of the pool.
        tells: Also every connection that is opened, used again or closed.
    """

    __slots__ = ("_events", "_origin", "tells")

    def __init__(self, events: Events, origin: str, *, tells: bool) -> None:
        self._events = events
        self._origin = origin
        self.tells = tells

    def tell(self, event: str, **facts: object) -> None:
        """Anything."""
        self._events.append({"event": event, "origin": self._origin, **facts})

    def opened(self, lane: int, request_id: str, http_version: str, **took_ms: float) -> None:
        """A connection is up.

        Args:
            lane: Number of its lane.
            request_id: Of the exchange that caused it; "" where none did, or that is not known.
            http_version: What it speaks.
            took_ms: ``connect_ms`` (DNS and TCP), ``tls_ms``, ``settings_ms``, as far as they are known.
        """
        if self.tells:
            took = {name: round(value, 2) for name, value in took_ms.items()}
            self.tell("connection_opened", request_id=request_id, lane=lane, http_version=http_version, **took)

    def reused(self, lane: int, request_id: str) -> None:
        """A request found a connection."""
        if self.tells:
            self.tell("connection_reused", request_id=request_id, lane=lane)

    def used(self, lane: int, asker: Asker, inbound: Inbound) -> None:
        """A request was answered by a client that tells nothing of its connections but by its answers."""
        if inbound.connection == "new":
            took = {"connect_ms": inbound.connect_ms, "tls_ms": inbound.tls_ms} if inbound.connect_ms else {}
            self.opened(lane, asker.request_id, inbound.http_version, **took)
        elif inbound.connection == "reused":
            self.reused(lane, asker.request_id)

    def closed(self, lane: int, how: Closed) -> None:
        """A connection of our own client is over."""
        age_s = round(how.age_s, 3)
        if how.unresponsive:
            self.tell("connection_unresponsive", lane=lane, reason=how.reason, age_s=age_s, broken=how.broken)
        if self.tells:
            self.tell("connection_closed", lane=lane, reason=how.reason, age_s=age_s, streams=how.streams)

    def gone(self, lane: int, age_s: float) -> None:
        """A connection of the Rust client is no longer there; ``age_s`` as far as it was seen."""
        if self.tells:
            self.tell("connection_closed", lane=lane, reason="", age_s=round(age_s, 3))
