"""A lane's live half: its client, the gate while its connection is being opened, and the count of connections.

    opener's head ──────────────┐
    the peer's half of the TLS   ├──> the gate opens, all who wait on it go
    handshake, and as long again ┤
    PATIENCE_S ─────────────────┘
    the opener could not connect ──> all who wait fail likewise: nothing was sent
    the opener left              ──> one of those who wait becomes the opener

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import httpx

from app.upstream.h2_connect import Closed
from app.upstream.lane_news import News
from app.upstream.lanes import Kind, Lane
from app.upstream.sockets import Sockets, give_mark
from app.upstream.transport_base import Transport
from app.upstream.transport_h2 import H2Transport

WATCH_S = 0.02
SETTLE_S = 0.05
RECHECK_S = 0.02
PATIENCE_S = 1.0
"""Longest wait at a gate where sockets can be watched; a third of it where they cannot."""

Gate = asyncio.Future[httpx.TransportError | None]


class LiveLane(Lane):
    """A lane with its client.

    Attributes:
        transport: The client.
        client: The same where it is our own.
        count: Tells its open connections; None where they are told by ``mark``.
        mark: The keep-alive interval its sockets carry; 0 for httpcore.
        seen: Open connections at the last look.
        unclaimed: New connections that no request has been told of.
        opener: Id of the exchange for which our own client's connection was, or is being, opened; "" for none.
    """

    __slots__ = ("_gate", "_watched", "client", "count", "mark", "opener", "seen", "transport", "unclaimed")

    def __init__(
        self, number: int, kind: Kind, transport: Transport, mark: int, count: Callable[[], int] | None
    ) -> None:
        super().__init__(number, kind)
        self.transport = transport
        self.client: H2Transport | None = None
        self.mark = mark
        self.count = count
        self.seen = 0
        self.unclaimed = 0
        self.opener = ""
        self._gate: Gate | None = None
        self._watched = False
        self.state = "cold" if mark and kind == "h2" else "open"

    def take(self) -> bool:
        """Take a slot, where the connection of our own client is up and carries one more; whether it was taken."""
        carries = self.client.carries if self.client is not None else 0
        if self.in_flight >= carries:
            return False
        self.limit = carries
        self.in_flight += 1
        return True

    def is_open(self) -> bool:
        """Requests may go at once."""
        return self.state == "open"

    def shut_gate(self) -> None:
        """The first request of a cold lane goes; whoever comes next waits."""
        self.state = "opening"
        self._gate = asyncio.get_running_loop().create_future()
        self._watched = False

    def open_gate(self, failure: httpx.TransportError | None = None) -> None:
        """Let those who wait go, or fail with ``failure``."""
        gate, self._gate = self._gate, None
        if gate is not None and not gate.done():
            gate.set_result(failure)

    async def pass_gate(self, watch: Callable[[LiveLane, Gate], None]) -> None:
        """Wait at the gate; the first to do so has it watched.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: The opener's own; nothing was sent.
        """
        gate = self._gate
        if gate is None:
            return
        if not self._watched:
            self._watched = True
            watch(self, gate)
        failure = await asyncio.shield(gate)
        if failure is not None:
            raise type(failure)(str(failure)) from failure

    async def watch(self, gate: Gate, census: Census, lanes: Iterable[LiveLane]) -> None:
        """Open the gate once the connection is up, or when patience is at its end."""
        started = time.monotonic()
        patience_s = PATIENCE_S if census.supported else PATIENCE_S / 3
        answered_at = 0.0
        while not gate.done():
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            census.look(lanes)
            if not answered_at and census.answered(self.mark):
                answered_at = now
            settled = answered_at and now - answered_at > max(SETTLE_S, answered_at - started)
            if (settled or now - started > patience_s) and gate is self._gate:
                self.state = "open"
                self.open_gate()

    async def shut(self) -> None:
        """Close its client."""
        try:
            await self.transport.aclose()
        finally:
            if self.mark:
                give_mark(self.mark)


class LaneSlot:
    """One request's place on a lane, from its head to the end of its body.

    Args:
        give: Takes the lane back.
        lane: The lane.
    """

    __slots__ = ("_give", "_lane", "_stalled")

    def __init__(self, give: Callable[[LiveLane], None], lane: LiveLane) -> None:
        self._give = give
        self._lane = lane
        self._stalled = False

    def stalled(self, waiting: bool) -> None:
        """Count the lane's stalled streams."""
        if waiting != self._stalled:
            self._stalled = waiting
            self._lane.stalled += 1 if waiting else -1

    def release(self) -> None:
        """Give the slot back; called once."""
        if self._stalled:
            self.stalled(False)
        self._give(self._lane)


class Census:
    """Counts connections.

    Attributes:
        opened: Connections ever opened.
        handshakes: TLS handshakes among them.
        supported: The Rust client's connections can be counted here.
        blind: They cannot, and there were some.
        unresponsive: Connections of our own client that were given up because they owed the answer to a PING.
    """

    def __init__(self, tls: bool, news: News) -> None:
        self._tls = tls
        self._news = news
        self._sockets = Sockets()
        self._known: dict[int, tuple[int, float]] = {}
        self.unresponsive = 0
        self.opened = 0
        self.handshakes = 0
        self.supported = self._sockets.supported
        self.blind = False

    def on_opened(self, tls: bool) -> None:
        """httpcore made a connection (called after TCP, and again after TLS), or our own client did."""
        if tls == self._tls:
            self.opened += 1
            self.handshakes += tls

    def on_closed(self, lane: LiveLane, how: Closed) -> None:
        """A connection of our own client is over."""
        self.unresponsive += how.unresponsive
        self._news.closed(lane.number, how)

    def on_refused(self) -> None:
        """Our own client made a connection to a peer that does not speak HTTP/2, and closed it."""
        self.opened += 1
        self.handshakes += 1
        self._news.tell("http2_refused")

    def answered(self, mark: int) -> bool:
        """The peer has begun to answer on a connection of this mark (as of the last look)."""
        return self._sockets.answered(mark)

    def look(self, lanes: Iterable[LiveLane]) -> None:
        """Bring every lane's figures up to date."""
        marked: dict[int, LiveLane] = {}
        for lane in lanes:
            if lane.count is not None:
                lane.seen = lane.count()
            elif self.supported:
                marked[lane.mark] = lane
                lane.seen = 0
            else:
                self.blind = True
        if marked or self._known:
            self._scan(marked)

    def _scan(self, marked: dict[int, LiveLane]) -> None:
        """What the process's own sockets say of the Rust client's lanes."""
        now, at = self._sockets.scan(), time.monotonic()
        for inode, mark in now.items():
            found = marked.get(mark)
            if found is None:
                continue
            found.seen += 1
            if inode not in self._known:
                self._known[inode] = (found.number, at)
                found.unclaimed += 1
                self.opened += 1
                self.handshakes += self._tls
        for inode in self._known.keys() - now.keys():
            number, since = self._known.pop(inode)
            self._news.gone(number, at - since)

    def cool(self, lanes: Iterable[LiveLane]) -> None:
        """Lanes that had lost their idle connection at the last look are cold."""
        if not self.supported:
            return
        for lane in lanes:
            if lane.mark and lane.kind == "h2" and lane.is_open() and not lane.in_flight and not lane.seen:
                lane.state = "cold"

    def recheck(self, lane: LiveLane, lanes: Iterable[LiveLane]) -> None:
        """A lane that was idle until now may have lost its connection since the last look."""
        if lane.in_flight > 1 or not lane.mark or lane.kind != "h2" or not self.supported:
            return
        if lane.is_open() and time.monotonic() - lane.idle_since > RECHECK_S:
            self.look(lanes)
            if not lane.seen:
                lane.state = "cold"
