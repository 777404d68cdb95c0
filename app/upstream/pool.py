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
from collections.abc import Coroutine

import httpx

from app.exchange import Outbound
from app.upstream import lanes as policy
from app.upstream.h2_connect import Opened
from app.upstream.lane_line import LaneLine
from app.upstream.lanes import NO_LIMIT, Kind, Open, Rules, Use
from app.upstream.sockets import take_mark
from app.upstream.tally import PoolStats, Tally
from app.upstream.transport_base import Inbound, drain
from app.upstream.transport_exact import exact_only
from app.upstream.transport_h2 import NotHttp2
from app.upstream.transport_lane import Census, Events, Gate, LaneSlot, LiveLane
from app.upstream.transport_make import Maker, PoolOptions

__all__ = ["Events", "Pool", "PoolOptions", "PoolStats"]

TICK_S = 0.5
WARM_UP_TARGET = "/"


class Pool:
    """Connections to one origin, for one loop.

    Args:
        options: See ``PoolOptions``.
        events: What is to be logged or counted on the worker side is appended here, as a dict with ``event``:
            ``connection_opened``, ``connect_failed``, ``http2_refused``, ``pool_timeout``, ``warm_up_failed``.
    """

    def __init__(self, options: PoolOptions, events: Events | None = None) -> None:
        self.options = options
        self._events: Events = events if events is not None else collections.deque(maxlen=1000)
        self._make = Maker(options)
        self._owns_h2 = self._make.own("h2")
        self._census = Census(options.origin.startswith("https"), self._tell)
        self._http_version = "" if options.origin.startswith("https") and options.http2 else "HTTP/1.1"
        self._rules = Rules(
            max_connections=options.max_connections,
            max_keepalive=options.max_keepalive,
            keepalive_expiry_s=options.keepalive_expiry_s,
            streams_per_connection=options.streams_per_connection,
        )
        self._lanes: list[LiveLane] = []
        self._line = LaneLine(self.give)
        self._peer_limit = NO_LIMIT
        self._number = 0
        self._tally = Tally()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    async def send(self, outbound: Outbound, *, streaming: bool, download: bool = False) -> Inbound:
        """Send one request over a lane, return at its response head.

        Args:
            outbound: What to send.
            streaming: The answer may be a stream (httpcore then uses HTTP/1.1).
            download: The answer may be a large file (HTTP/1.1, so that only this reader is slowed).

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
                    lane, opener = await self._ready(kind)
                inbound = await lane.transport.send(outbound)
            except NotHttp2:  # another kind now; nothing was sent, an upload's source was not asked for anything
                if lane is not None:
                    self._give_up_http2(lane)
                continue
            except BaseException as error:
                if lane is not None:
                    self._failed(lane, opener, error)
                    self.give(lane)
                raise
            self._tally.requests += 1
            if lane.own:
                self._http_version = "HTTP/2"
            else:
                self._answered(lane, opener, inbound)
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
            self._tell("warm_up_failed", error=f"{type(error).__name__}: {error}")
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
        found, more = policy.ahead(self._lanes, slots, self._rules, self._peer_limit)
        cold = [lane for lane in found if not (lane.client and lane.client.usable)]
        cold += [self._open("h2") for _ in range(0 if self._closed else more)]
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
            self._retire(lane)

    async def close(self) -> None:
        """Close every lane; streams in flight end with an error. Safe to call twice."""
        self._closed = True
        self._line.dissolve()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._census.look(self._lanes)
        for lane in list(self._lanes):
            self._retire(lane)
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        decision = policy.choose(self._lanes, kind, self._rules)
        lane: LiveLane | None = decision.lane if isinstance(decision, Use) else None
        return lane if lane is not None and lane.take() else None

    async def _ready(self, kind: Kind) -> tuple[LiveLane, bool]:
        """A slot on a lane whose connection is up, and whether this request is the one that brings it up."""
        while True:
            if self._closed:
                raise httpx.ConnectError("The pool is closed.")
            lane = self._take(kind) or await self._stand_in_line(kind)
            if lane.own:
                if await self._fits(lane):
                    return lane, False
                continue
            self._census.recheck(lane, self._lanes)
            if lane.is_open():
                return lane, False
            if lane.state == "cold":
                lane.shut_gate()
                return lane, True
            try:
                await lane.pass_gate(self._watch)
            except BaseException:
                self.give(lane)
                raise
            if lane.is_open() and lane.kind == kind:
                return lane, False
            self.give(lane)
            kind = lane.kind

    async def _fits(self, lane: LiveLane) -> bool:
        """Whether a lane of our own client, its connection up, carries this one too; if not, its slot is given up.

        How many streams the peer allows is known by then: whoever is beyond that goes on to another lane.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: Nothing was sent; ``NotHttp2`` is one of them.
        """
        client = lane.client
        assert client is not None  # noqa: S101 - ours
        try:
            if not client.usable:
                await client.ready()
        except NotHttp2:
            self._give_up_http2(lane)
            raise
        except BaseException as error:
            if isinstance(error, httpx.TransportError):
                self._failed(lane, False, error)
            self.give(lane)
            raise
        lane.limit = max(1, client.capacity)
        if lane.in_flight <= lane.limit:
            return True
        self.give(lane)
        return False

    def _take(self, kind: Kind) -> LiveLane | None:
        """A slot at once, or None."""
        decision = policy.choose(self._lanes, kind, self._rules)
        if not isinstance(decision, (Use, Open)):  # a union would be made anew each time
            return None
        if decision.instead is not None:
            self._retire(decision.instead)
        lane = decision.lane if isinstance(decision, Use) else self._open(kind)
        lane.in_flight += 1
        return lane

    async def _stand_in_line(self, kind: Kind) -> LiveLane:
        try:
            lane = await self._line.stand(kind, self.options.pool_timeout_s)
        except TimeoutError:
            self._tally.timeouts += 1
            self._tell("pool_timeout", waited_s=self.options.pool_timeout_s)
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

    # --- lanes

    def _open(self, kind: Kind) -> LiveLane:
        self._number += 1
        if self._make.own(kind):
            lane = self._own_lane()
        elif self._make.rust(kind):
            mark = take_mark()
            lane = LiveLane(self._number, kind, self._make.reqwest(kind, mark), mark, None)
        else:
            client = self._make.httpcore(kind, self._census.on_opened)
            lane = LiveLane(self._number, kind, client, 0, client.connections)
        self._lanes.append(lane)
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return lane

    def _own_lane(self) -> LiveLane:
        client = self._make.h2()
        lane = LiveLane(self._number, "h2", client, 0, lambda: client.connections)
        lane.own, lane.client = True, client
        lane.limit = self._peer_limit  # as its siblings', until its own connection tells

        def opened(how: Opened) -> None:
            self._peer_limit = lane.limit = max(1, client.capacity)
            self._census.on_opened(how.connect_ms + how.tls_ms, True)

        client.on_opened(opened)
        return lane

    def _retire(self, lane: LiveLane) -> None:
        """Take an idle lane out now; its client is closed in a task."""
        self._census.look(self._lanes)
        self._lanes.remove(lane)
        lane.open_gate(httpx.ConnectError("The pool is closed."))
        self._spawn(lane.shut())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _watch(self, lane: LiveLane, gate: Gate) -> None:
        self._spawn(lane.watch(gate, self._census, self._lanes))

    async def _tick(self) -> None:
        """Count connections and close idle lanes, until there is none left."""
        while self._lanes:
            await asyncio.sleep(min(TICK_S, self.options.keepalive_expiry_s / 4))
            self._census.look(self._lanes)
            self._census.cool(self._lanes)
            for idle in policy.expired(self._lanes, self._rules, time.monotonic()):
                self._retire(idle)

    # --- what came of a request

    def _answered(self, lane: LiveLane, opener: bool, inbound: Inbound) -> None:
        if lane.kind == "h2":
            self._http_version = inbound.http_version
            if inbound.http_version == "HTTP/1.1":
                lane.kind = "h1"
        if lane.mark and self._census.supported:
            if opener or lane.seen < lane.connections:
                self._census.look(self._lanes)
            inbound.connection = "new" if lane.unclaimed else "reused"
            lane.unclaimed = 0 if lane.kind == "h2" else max(0, lane.unclaimed - 1)
        if opener:
            if lane.state == "opening":
                lane.state = "open"
            lane.open_gate()

    def _failed(self, lane: LiveLane, opener: bool, error: BaseException) -> None:
        refused = error if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else None
        if refused is None:
            self._tally.requests += 1
        else:
            self._tally.timeouts += isinstance(refused, httpx.ConnectTimeout)
            self._tell("connect_failed", error=f"{type(refused).__name__}: {refused}")
        if not lane.mark or lane.kind != "h2":
            return
        if opener:
            self._census.look(self._lanes)
        if (opener and lane.state == "opening") or refused is not None:
            lane.state = "cold"
        if opener:
            lane.open_gate(refused)

    def _tell(self, event: str, **facts: object) -> None:
        self._events.append({"event": event, "origin": self.options.origin, **facts})
