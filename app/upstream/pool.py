"""One upstream's connections: lanes, slots, warm-up and true connection statistics.

    send ──> which kind? ──> slot of a lane (lanes.choose) ──> lane's connection up? ──> transport.send
                               └ none free: wait in line, at most pool_timeout_s

Over TLS our own HTTP/2 client (``transport_h2``) carries everything, one connection a lane, until the peer turns
out not to speak HTTP/2. Otherwise the Rust client carries what it can carry byte for byte and httpcore the rest
(``transport_exact``), or everything where it is chosen. There, file downloads go over HTTP/1.1: every body has its
own TCP window, so a slow reader holds back its own file only.

When sockets are looked at (see ``tally`` for what is counted): when a lane was cold, when a request found fewer
connections than it needs, every 0.5 s while something is open, and whenever ``stats`` is asked.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import collections
import time

import httpx

from app.exchange import Outbound
from app.upstream import lanes as policy
from app.upstream.lane_fleet import Fleet
from app.upstream.lane_line import LaneLine
from app.upstream.lane_news import NOBODY, Events, News, waited
from app.upstream.lanes import Kind, Open, Use
from app.upstream.tally import PoolStats, Tally
from app.upstream.transport_base import Asker, Inbound, drain
from app.upstream.transport_exact import exact_only
from app.upstream.transport_h2 import NotHttp2
from app.upstream.transport_lane import LaneSlot, LiveLane
from app.upstream.transport_make import PoolOptions

__all__ = ["Events", "Pool", "PoolOptions", "PoolStats"]

WARM_UP_TARGET = "/"


class Pool:
    """Connections to one origin, for one loop.

    Args:
        options: See ``PoolOptions``.
        events: What is to be logged or counted on the worker side is appended here, as a dict with ``event``;
            ``lane_news`` says which.
    """

    def __init__(self, options: PoolOptions, events: Events | None = None) -> None:
        self.options = options
        if events is None:
            events = collections.deque(maxlen=1000)
        self._news = News(events, options.origin, tells=options.tells_connections)
        self._fleet = Fleet(options, self._news)
        self._lanes = self._fleet.lanes
        self._make = self._fleet.make
        self._census = self._fleet.census
        self._owns_h2 = self._make.own("h2")
        self._http_version = "" if options.origin.startswith("https") and options.http2 else "HTTP/1.1"
        self._line = LaneLine(self.give)
        self._tally = Tally()
        self._closed = False

    async def send(
        self, outbound: Outbound, *, streaming: bool, download: bool = False, asker: Asker = NOBODY
    ) -> Inbound:
        """Send one request over a lane, return at its response head.

        Args:
            outbound: What to send.
            streaming: The answer may be a stream (httpcore then uses HTTP/1.1).
            download: The answer may be a large file (HTTP/1.1, so that only this reader is slowed).
            asker: For whom; told what went into getting a connection.

        Raises:
            httpx.PoolTimeout: No slot within ``pool_timeout_s``; nothing was sent.
            httpx.ConnectError: No connection, or the pool is closed; nothing was sent.
            httpx.TransportError: See ``transport_base``.
        """
        while True:
            kind = self._kind(outbound, streaming, download)
            lane, opener = self._at_once(kind), False
            try:
                if lane is None:
                    lane, opener = await self._ready(kind, asker)
                inbound = await lane.transport.send(outbound)
            except NotHttp2:  # another kind now; nothing was sent, an upload's source was not asked for anything
                if lane is not None:
                    self._give_up_http2(lane)
                continue
            except BaseException as error:
                if lane is not None:
                    self._failed(lane, opener, error, asker)
                    self.give(lane)
                raise
            self._tally.requests += 1
            if lane.own:
                self._http_version = "HTTP/2"
                if self._news.tells and inbound.connection == "reused":
                    self._news.reused(lane.number, asker.request_id)
            else:
                self._answered(lane, opener, inbound, asker)
            inbound.own(LaneSlot(self.give, lane))
            return inbound

    async def warm_up(self, slots: int = 1) -> tuple[bool, float]:
        """Open what the first requests will need; never raises.

        Our own client only connects; the others need a request for that, a ``HEAD /`` without credentials.

        Args:
            slots: Requests at a time that are to find a connection; the others open one whatever it says.

        Returns:
            Whether it is there, and the milliseconds it took.
        """
        started = time.monotonic()
        outbound = Outbound("HEAD", self.options.origin, WARM_UP_TARGET, (("accept", "*/*"),), b"")
        try:
            async with asyncio.timeout(2 * self.options.connect_timeout_s):
                if await self._connect_ahead(slots):
                    return True, (time.monotonic() - started) * 1000.0
                await drain(await self.send(outbound, streaming=False))
                if self._make.name == "httpcore" and self._http_version == "HTTP/2":
                    await drain(await self.send(outbound, streaming=True))
        except (httpx.TransportError, TimeoutError) as error:
            self._news.tell("warm_up_failed", error=f"{type(error).__name__}: {error}")
            return False, (time.monotonic() - started) * 1000.0
        return True, (time.monotonic() - started) * 1000.0

    async def _connect_ahead(self, slots: int) -> bool:
        """Lanes of our own HTTP/2 client with their connections up; False where HTTP/2 is not carried by it.

        One first: it tells how many streams the peer lets a connection carry. The rest at the same time.
        """
        if not self._make.own("h2") or self._http_version == "HTTP/1.1" or self._closed:
            return False
        if not await self._connect(self._take("h2") or await self._stand_in_line("h2")):
            return False
        found, more = policy.ahead(self._lanes, slots, self._fleet.rules, self._fleet.peer_limit)
        cold = [lane for lane in found if not (lane.client and lane.client.usable)]
        cold += [self._fleet.open("h2") for _ in range(0 if self._closed else more)]
        for lane in cold:
            lane.in_flight += 1
        outcomes = await asyncio.gather(*map(self._connect, cold), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return all(outcomes)

    async def _connect(self, lane: LiveLane) -> bool:
        """Connect a lane whose slot is taken, and give it back; False: the peer does not speak HTTP/2."""
        client = lane.client
        assert client is not None  # noqa: S101 - ours
        before = client.handshakes
        if not client.opening:
            lane.opener = ""
        try:
            await client.connect()
        except NotHttp2:
            self._give_up_http2(lane)
            return False
        except BaseException:
            self.give(lane)
            raise
        self._tally.ahead += client.handshakes - before
        self._http_version = "HTTP/2"
        self.give(lane)
        return True

    def _give_up_http2(self, lane: LiveLane) -> None:
        """The peer speaks HTTP/1.1 only: requests go that way now, those in line too; nothing was sent."""
        if lane.limit:
            lane.limit = 0  # those who wait for its connection hear it once each, and nobody else takes it
            self._http_version = "HTTP/1.1"
            self._tally.ahead += 1
            self._census.on_refused()
            self._line.turn_away("h2")
        self.give(lane)
        if not lane.in_flight and lane in self._lanes:
            self._fleet.retire(lane)

    async def close(self) -> None:
        """Close every lane; streams in flight end with an error. Safe to call twice."""
        self._closed = True
        self._line.dissolve()
        await self._fleet.close()

    def stats(self) -> PoolStats:
        """The figures as of now; looks at the sockets."""
        self._census.look(self._lanes)
        return self._tally.stats(
            self._make, self._http_version, self._census, self._lanes, len(self._line.standing)
        )

    # --- slots

    def _kind(self, outbound: Outbound, streaming: bool, download: bool) -> Kind:
        http1 = self._http_version == "HTTP/1.1"
        if self._owns_h2 and not http1:
            return "h2"
        if self._make.name == "httpcore":
            return "h1" if http1 or streaming or download else "h2"
        if exact_only(outbound, self._http_version != "HTTP/2" or download):
            return "exact"
        return "h1" if http1 or download else "h2"

    def _at_once(self, kind: Kind) -> LiveLane | None:
        """A slot on the lane of our own client that is next, where its connection is up and carries one more."""
        if kind != "h2" or not self._owns_h2 or self._closed:
            return None
        decision = policy.choose(self._lanes, kind, self._fleet.rules)
        lane: LiveLane | None = decision.lane if isinstance(decision, Use) else None
        return lane if lane is not None and lane.take() else None

    async def _ready(self, kind: Kind, asker: Asker) -> tuple[LiveLane, bool]:
        """A slot on a lane whose connection is up, and whether this request is the one that brings it up."""
        while True:
            if self._closed:
                raise httpx.ConnectError("The pool is closed.")
            lane = self._take(kind)
            if lane is None:
                lane = await waited(asker, self._stand_in_line(kind))
            if lane.own:
                if await self._fits(lane, asker):
                    return lane, False
                continue
            self._census.recheck(lane, self._lanes)
            if lane.is_open():
                return lane, False
            if lane.state == "cold":
                lane.shut_gate()
                return lane, True
            try:
                await waited(asker, lane.pass_gate(self._fleet.watch))
            except BaseException:
                self.give(lane)
                raise
            if lane.is_open() and lane.kind == kind:
                return lane, False
            self.give(lane)
            kind = lane.kind

    async def _fits(self, lane: LiveLane, asker: Asker) -> bool:
        """Whether a lane of our own client, its connection up, carries this one too; if not, its slot is given up.

        How many streams the peer allows is known by then: whoever is beyond that goes on to another lane.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: Nothing was sent; ``NotHttp2`` is one of them.
        """
        client = lane.client
        assert client is not None  # noqa: S101 - ours
        try:
            if not client.usable:
                if not client.opening:
                    lane.opener = asker.request_id
                await waited(asker, client.ready())
        except NotHttp2:
            self._give_up_http2(lane)
            raise
        except BaseException as error:
            if isinstance(error, httpx.TransportError):
                self._failed(lane, False, error, asker)
            self.give(lane)
            raise
        lane.limit = max(1, client.capacity)
        if lane.in_flight <= lane.limit:
            return True
        self.give(lane)
        return False

    def _take(self, kind: Kind) -> LiveLane | None:
        """A slot at once, or None."""
        decision = policy.choose(self._lanes, kind, self._fleet.rules)
        if not isinstance(decision, (Use, Open)):  # a union would be made anew each time
            return None
        if decision.instead is not None:
            self._fleet.retire(decision.instead)
        lane = decision.lane if isinstance(decision, Use) else self._fleet.open(kind)
        lane.in_flight += 1
        return lane

    async def _stand_in_line(self, kind: Kind) -> LiveLane:
        try:
            lane = await self._line.stand(kind, self.options.pool_timeout_s)
        except TimeoutError:
            self._tally.timeouts += 1
            self._news.tell("pool_timeout", waited_s=self.options.pool_timeout_s)
            raise httpx.PoolTimeout("No upstream connection became free in time.") from None
        if lane is None:
            raise NotHttp2("The upstream speaks HTTP/1.1 only.")
        return lane

    def give(self, lane: LiveLane) -> None:
        """Take a slot back and hand what is free now to those who wait, in their order."""
        lane.in_flight -= 1
        if not lane.in_flight:
            lane.idle_since = time.monotonic()
        if self._line.standing:
            self._line.serve(self._take)

    # --- what came of a request

    def _answered(self, lane: LiveLane, opener: bool, inbound: Inbound, asker: Asker) -> None:
        if lane.kind == "h2":
            self._http_version = inbound.http_version
            if inbound.http_version == "HTTP/1.1":
                lane.kind = "h1"
        if lane.mark and self._census.supported:
            if opener or lane.seen < lane.connections:
                self._census.look(self._lanes)
            inbound.connection = "new" if lane.unclaimed else "reused"
            lane.unclaimed = 0 if lane.kind == "h2" else max(0, lane.unclaimed - 1)
        asker.connect_ms += inbound.connect_ms + inbound.tls_ms
        if self._news.tells:
            self._news.used(lane.number, asker, inbound)
        if opener:
            if lane.state == "opening":
                lane.state = "open"
            lane.open_gate()

    def _failed(self, lane: LiveLane, opener: bool, error: BaseException, asker: Asker) -> None:
        refused = error if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else None
        if refused is None:
            self._tally.requests += 1
        else:
            self._tally.timeouts += isinstance(refused, httpx.ConnectTimeout)
            text = f"{type(refused).__name__}: {refused}"
            self._news.tell("connect_failed", request_id=asker.request_id, error=text)
        if not lane.mark or lane.kind != "h2":
            return
        if opener:
            self._census.look(self._lanes)
        if (opener and lane.state == "opening") or refused is not None:
            lane.state = "cold"
        if opener:
            lane.open_gate(refused)
