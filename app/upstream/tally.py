"""Count what became of requests and connections, and put it into figures.

How connections are counted: our own client's by itself; httpcore's by its trace events; pyqwest's by the process's
own sockets (``sockets``); one of those that opens and closes between two looks is missed.
A connection that was opened is a miss, whoever opened it; over TLS each is a handshake. Requests that got as far
as a connection are hits, less the connections opened for them: those opened ahead of any request (warm-up), or to
a peer that turned out not to speak HTTP/2, are charged to none. ``timeouts`` counts requests that found no slot,
or no connection, in time.
Runs on: loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.upstream.transport_lane import Census, LiveLane
from app.upstream.transport_make import Maker


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Connection figures; None where they cannot be known (the Rust client, elsewhere than on Linux).

    Attributes:
        transport: ``h2``, ``reqwest`` or ``httpcore``; ``why`` says how it was chosen.
        http_version: Of the last answer on an HTTP/2-capable lane; empty before the first.
        requests: Requests that got as far as a connection (``hits + misses``, less the misses no request is
            charged with, unless connections went unused).
        hits: Requests that found a connection.
        misses: Connections opened.
        handshakes: TLS handshakes.
        timeouts: Requests without a slot, or without a connection, in time.
        open_connections: Open now.
        lanes: Lanes now.
        in_flight: Slots taken now.
        stalled: Streams whose reader takes nothing now.
        waiting: Requests in line for a slot.
        unresponsive: Connections that were given up because their peer owed the answer to a PING.
    """

    transport: str
    why: str
    http_version: str
    requests: int
    hits: int | None
    misses: int | None
    handshakes: int | None
    timeouts: int
    open_connections: int | None
    lanes: int
    in_flight: int
    stalled: int
    waiting: int
    unresponsive: int = 0


class Tally:
    """Running counts of one pool.

    Attributes:
        requests: That got as far as a connection.
        ahead: Connections that were opened for no request: at warm-up, or to a peer without HTTP/2.
        timeouts: Without a slot, or without a connection, in time.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.ahead = 0
        self.timeouts = 0

    def stats(
        self, make: Maker, http_version: str, census: Census, lanes: Sequence[LiveLane], waiting: int
    ) -> PoolStats:
        """The figures as of the census's last look."""
        known = census.supported or not (make.name == "reqwest" or census.blind)
        new = census.opened - self.ahead
        return PoolStats(
            transport=make.name,
            why=make.why,
            http_version=http_version,
            requests=self.requests,
            hits=max(0, self.requests - new) if known else None,
            misses=census.opened if known else None,
            handshakes=census.handshakes if known else None,
            timeouts=self.timeouts,
            open_connections=sum(lane.seen for lane in lanes) if known else None,
            lanes=len(lanes),
            in_flight=sum(lane.in_flight for lane in lanes),
            stalled=sum(lane.stalled for lane in lanes),
            waiting=waiting,
            unresponsive=census.unresponsive,
        )
