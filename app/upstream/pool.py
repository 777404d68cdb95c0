"""One upstream's connections: lanes, slots, warm-up and true connection statistics.

    send ──> which kind? ──> slot of a lane (lanes.choose) ──> lane's connection up? ──> transport.send
                               └ none free: wait, at most pool_timeout_s

The Rust client carries everything it can carry byte for byte; httpcore carries the rest (``transport_exact``), or
everything where it is chosen. File downloads go over HTTP/1.1: there every body has its own TCP window, so a slow
reader holds back its own file only.

How connections are counted: httpcore's by its trace events; pyqwest's by the process's own sockets
(``sockets``), looked at when a lane was cold, when a request found fewer connections than it needs, every
0.5 s while something is open, and whenever ``stats`` is asked. A connection that opens and closes between two
looks is missed.
Every request that got as far as a connection is a miss if it opened one, else a hit; over TLS every new connection
is a handshake. ``timeouts`` counts requests that found no slot, or no connection, in time.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import collections
import importlib.util
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Literal

import httpx

from app.exchange import Outbound
from app.upstream import lanes as policy
from app.upstream.lanes import Kind, Lane, Open, Rules, Use
from app.upstream.sockets import Sockets, give_mark, take_mark
from app.upstream.transport_base import Inbound, Transport
from app.upstream.transport_exact import exact_only
from app.upstream.transport_httpcore import HttpcoreTransport, trust

TICK_S = 0.5
WATCH_S = 0.02
SETTLE_S = 0.05
PATIENCE_S = 1.0

Events = collections.deque[dict[str, object]]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a pool is made with.

    Attributes:
        origin: ``scheme://host[:port]``.
        transport: ``UPSTREAM_TRANSPORT``.
        max_connections: ``ANTHROPIC_MAX_CONNECTIONS``.
        max_keepalive: ``ANTHROPIC_MAX_KEEPALIVE``.
        keepalive_expiry_s: ``ANTHROPIC_KEEPALIVE_EXPIRY``.
        connect_timeout_s: ``CONNECT_TIMEOUT``.
        pool_timeout_s: Longest wait for a slot.
        streams_per_connection: Streams one HTTP/2 lane takes.
        http2: ``PRODUCTION_ENABLE_HTTP2``.
        ca_pem: Certificates trusted besides the system's.
        write_timeout_s: Longest wait for the upstream to take a piece of an upload (httpcore only).
    """

    origin: str
    transport: Literal["auto", "reqwest", "httpcore"] = "auto"
    max_connections: int = 200
    max_keepalive: int = 100
    keepalive_expiry_s: float = 30.0
    connect_timeout_s: float = 5.0
    pool_timeout_s: float = 2.0
    streams_per_connection: int = 100
    http2: bool = True
    ca_pem: bytes | None = None
    write_timeout_s: float = 15.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Connection figures; None where they cannot be known (not Linux, with the Rust client)."""

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


class _Lane(Lane):
    """A lane with its client."""

    __slots__ = ("mark", "seen", "transport", "unclaimed", "up", "watched")

    def __init__(self, number: int, kind: Kind, transport: Transport, mark: int) -> None:
        super().__init__(number, kind)
        self.transport = transport
        self.mark = mark
        self.seen = 0
        self.unclaimed = 0
        self.watched = False
        self.up: asyncio.Future[httpx.TransportError | None] | None = None


class _Slot:
    """One request's place on a lane, from its head to the end of its body."""

    __slots__ = ("_lane", "_pool", "_stalled")

    def __init__(self, pool: Pool, lane: _Lane) -> None:
        self._pool = pool
        self._lane = lane
        self._stalled = False

    def stalled(self, waiting: bool) -> None:
        """Count the lane's stalled streams."""
        if waiting != self._stalled:
            self._stalled = waiting
            self._lane.stalled += 1 if waiting else -1

    def release(self) -> None:
        """Give the slot back; called once."""
        self.stalled(False)
        self._pool._give(self._lane)


class Pool:
    """Connections to one origin, for one loop.

    Args:
        options: See ``PoolOptions``.
        events: What is to be logged or counted on the worker side is appended here as a dict with ``event``.
    """

    def __init__(self, options: PoolOptions, events: Events | None = None) -> None:
        self.options = options
        self._events: Events = events if events is not None else collections.deque(maxlen=1000)
        self._name, self._why = _transport_name(options)
        self._tls = options.origin.startswith("https")
        self._http_version = "" if self._tls and options.http2 else "HTTP/1.1"
        self._rules = Rules(
            max_connections=options.max_connections,
            max_keepalive=options.max_keepalive,
            keepalive_expiry_s=options.keepalive_expiry_s,
            streams_per_connection=options.streams_per_connection,
        )
        self._lanes: list[_Lane] = []
        self._waiting: collections.deque[tuple[Kind, asyncio.Future[_Lane]]] = collections.deque()
        self._sockets = Sockets()
        self._known: set[int] = set()
        self._context: dict[bool, ssl.SSLContext] = {}
        self._number = 0
        self._requests = self._opened = self._handshakes = self._timeouts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    # ------------------------------------------------------------------ sending

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
        if self._closed:
            raise httpx.ConnectError("The pool is closed.")
        kind = self._kind(outbound, streaming, download)
        lane, opener = await self._ready(kind)
        try:
            inbound = await lane.transport.send(outbound)
        except BaseException as error:
            self._failed(lane, opener, error)
            self._give(lane)
            raise
        self._answered(lane, opener, inbound)
        inbound.own(_Slot(self, lane))
        return inbound

    async def warm_up(self) -> tuple[bool, float]:
        """Open a connection by a ``HEAD /`` without credentials; never raises. Returns (success, ms)."""
        started = time.monotonic()
        outbound = Outbound("HEAD", self.options.origin, "/", (("accept", "*/*"),), b"")
        try:
            async with asyncio.timeout(2 * self.options.connect_timeout_s):
                await _drain(await self.send(outbound, streaming=False))
                if self._name == "httpcore" and self._http_version == "HTTP/2":
                    await _drain(await self.send(outbound, streaming=True))
        except (httpx.TransportError, TimeoutError) as error:
            self._tell("warm_up_failed", error=f"{type(error).__name__}: {error}")
            return False, (time.monotonic() - started) * 1000.0
        return True, (time.monotonic() - started) * 1000.0

    async def close(self) -> None:
        """Close every lane; streams in flight end with an error. Safe to call twice."""
        self._closed = True
        for _, waiter in self._waiting:
            waiter.cancel()
        self._waiting.clear()
        tasks = [*self._tasks, *([self._ticker] if self._ticker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._look()
        for lane in list(self._lanes):
            await self._shut(lane)

    def stats(self) -> PoolStats:
        """The figures as of now."""
        self._look()
        known = self._sockets.supported or self._name == "httpcore"
        return PoolStats(
            transport=self._name,
            why=self._why,
            http_version=self._http_version,
            requests=self._requests,
            hits=max(0, self._requests - self._opened) if known else None,
            misses=self._opened if known else None,
            handshakes=self._handshakes if known else None,
            timeouts=self._timeouts,
            open_connections=sum(lane.seen for lane in self._lanes) if known else None,
            lanes=len(self._lanes),
            in_flight=sum(lane.in_flight for lane in self._lanes),
            stalled=sum(lane.stalled for lane in self._lanes),
            waiting=len(self._waiting),
        )

    # ------------------------------------------------------------------ slots

    def _kind(self, outbound: Outbound, streaming: bool, download: bool) -> Kind:
        http1 = self._http_version == "HTTP/1.1"
        if self._name == "httpcore":
            return "h1" if http1 or streaming or download else "h2"
        if exact_only(outbound, self._http_version != "HTTP/2" or download):
            return "exact"
        return "h1" if http1 or download else "h2"

    async def _ready(self, kind: Kind) -> tuple[_Lane, bool]:
        """A slot on a lane whose connection is up, and whether this request is the one that brings it up."""
        while True:
            lane = self._take(kind) or await self._wait(kind)
            if lane.state == "open":
                return lane, False
            if lane.state == "cold":
                lane.state = "opening"
                lane.watched = False
                lane.up = asyncio.get_running_loop().create_future()
                return lane, True
            try:
                await self._watched(lane)
            except BaseException:
                self._give(lane)
                raise
            if _is_open(lane) and lane.kind == kind:
                return lane, False
            self._give(lane)
            kind = lane.kind

    def _take(self, kind: Kind) -> _Lane | None:
        """A slot at once, or None."""
        decision = policy.choose(self._lanes, kind, self._rules)
        if isinstance(decision, Use):
            lane = decision.lane
            assert isinstance(lane, _Lane)  # noqa: S101 - the list holds nothing else
        elif isinstance(decision, Open):
            if decision.instead is not None:
                self._retire(decision.instead)
            lane = self._open(kind)
        else:
            return None
        lane.in_flight += 1
        return lane

    async def _wait(self, kind: Kind) -> _Lane:
        """Stand in line for a slot."""
        waiter: asyncio.Future[_Lane] = asyncio.get_running_loop().create_future()
        entry = (kind, waiter)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self.options.pool_timeout_s):
                return await waiter
        except TimeoutError:
            self._abandon(entry)
            self._timeouts += 1
            self._tell("pool_timeout", waited_s=self.options.pool_timeout_s)
            raise httpx.PoolTimeout("No upstream connection became free in time.") from None
        except asyncio.CancelledError:
            self._abandon(entry)
            if self._closed:
                raise httpx.ConnectError("The pool is closed.") from None
            raise

    def _abandon(self, entry: tuple[Kind, asyncio.Future[_Lane]]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
        waiter = entry[1]
        if waiter.done() and not waiter.cancelled():
            self._give(waiter.result())

    def _give(self, lane: _Lane) -> None:
        """Take a slot back and hand it to whoever waits longest."""
        lane.in_flight -= 1
        if not lane.in_flight:
            lane.idle_since = time.monotonic()
        blocked: set[Kind] = set()
        for entry in list(self._waiting):
            kind, waiter = entry
            if waiter.done() or kind in blocked:
                continue
            found = self._take(kind)
            if found is None:
                blocked.add(kind)
                continue
            self._waiting.remove(entry)
            waiter.set_result(found)

    # ------------------------------------------------------------------ lanes

    def _open(self, kind: Kind) -> _Lane:
        options = self.options
        self._number += 1
        mark = 0
        transport: Transport
        if kind == "exact" or self._name == "httpcore":
            http2 = kind == "h2"
            if http2 not in self._context:
                self._context[http2] = trust(options.ca_pem, http2)
            transport = HttpcoreTransport(
                http2=http2,
                max_connections=2 if http2 else options.max_connections,
                max_keepalive=options.max_keepalive,
                keepalive_expiry_s=options.keepalive_expiry_s,
                connect_timeout_s=options.connect_timeout_s,
                write_timeout_s=options.write_timeout_s,
                context=self._context[http2],
                opened=self._on_opened,
            )
        else:
            from app.upstream.transport_reqwest import ReqwestTransport  # only where pyqwest is there

            mark = take_mark()
            transport = ReqwestTransport(
                http2=kind == "h2",
                max_connections=options.max_connections,
                max_keepalive=options.max_keepalive,
                keepalive_expiry_s=options.keepalive_expiry_s,
                connect_timeout_s=options.connect_timeout_s,
                ca_pem=options.ca_pem,
                mark=mark,
            )
        lane = _Lane(self._number, kind, transport, mark)
        lane.state = "cold" if mark and kind == "h2" else "open"
        self._lanes.append(lane)
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return lane

    def _on_opened(self, ms: float, tls: bool) -> None:
        if tls or not self._tls:
            self._opened += 1
            self._handshakes += tls
            self._tell("connection_opened", ms=round(ms, 2))

    def _retire(self, lane: Lane) -> None:
        """Take a lane out now; its client is closed in a task."""
        assert isinstance(lane, _Lane)  # noqa: S101 - as above
        self._look()
        self._lanes.remove(lane)
        self._spawn(self._shut(lane))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut(self, lane: _Lane) -> None:
        if lane in self._lanes:
            self._lanes.remove(lane)
        try:
            await lane.transport.aclose()
        finally:
            if lane.mark:
                give_mark(lane.mark)

    async def _tick(self) -> None:
        """Count connections and close idle lanes, until there is none left."""
        while self._lanes:
            await asyncio.sleep(min(TICK_S, self.options.keepalive_expiry_s / 4))
            self._look()
            for lane in self._lanes:
                if (
                    lane.mark
                    and lane.kind == "h2"
                    and lane.state == "open"
                    and not lane.in_flight
                    and not lane.seen
                ):
                    lane.state = "cold"
            for idle in policy.expired(self._lanes, self._rules, time.monotonic()):
                self._retire(idle)

    # ------------------------------------------------------------------ connections

    async def _watched(self, lane: _Lane) -> None:
        """Wait for an opening lane: until the opener's head, or until its connection is up.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: The opener's; nothing was sent.
        """
        up = lane.up
        if up is None:
            return
        if not lane.watched:
            lane.watched = True
            self._spawn(self._watch(lane, up))
        failure = await asyncio.shield(up)
        if failure is not None:
            raise type(failure)(str(failure)) from failure

    async def _watch(self, lane: _Lane, up: asyncio.Future[httpx.TransportError | None]) -> None:
        """Look for the opening lane's socket; let its waiters go once it has had time to shake hands."""
        started = time.monotonic()
        seen_at = 0.0
        patience_s = PATIENCE_S if self._sockets.supported else PATIENCE_S / 3
        while not up.done():
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            self._look()
            if lane.seen and not seen_at:
                seen_at = now
            settled = seen_at and now - seen_at > max(SETTLE_S, 3 * (seen_at - started))
            if (settled or now - started > patience_s) and not up.done():
                lane.state = "open"
                up.set_result(None)

    def _answered(self, lane: _Lane, opener: bool, inbound: Inbound) -> None:
        self._requests += 1
        if lane.kind == "h2":
            self._http_version = inbound.http_version
            if inbound.http_version == "HTTP/1.1":
                lane.kind = "h1"
        if not lane.mark:
            lane.seen = lane.transport.connections()  # type: ignore[attr-defined]
            return
        if opener or lane.seen < lane.connections:
            self._look()
        inbound.connection = "new" if lane.unclaimed else "reused"
        if not self._sockets.supported:
            inbound.connection = ""
        lane.unclaimed = 0 if lane.kind == "h2" else max(0, lane.unclaimed - 1)
        if opener:
            self._settle(lane, "open", None)

    def _failed(self, lane: _Lane, opener: bool, error: BaseException) -> None:
        connect = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        if isinstance(error, httpx.ConnectTimeout):
            self._timeouts += 1
        if connect:
            self._tell("connect_failed", error=f"{type(error).__name__}: {error}")
        else:
            self._requests += 1
        if opener:
            self._look()
            self._settle(lane, "cold", error if connect else None)  # type: ignore[arg-type]
        elif connect and lane.mark and lane.kind == "h2" and lane.state == "open":
            lane.state = "cold"

    @staticmethod
    def _settle(lane: _Lane, state: policy.State, failure: httpx.TransportError | None) -> None:
        if lane.state == "opening" or state == "cold":
            lane.state = state
        up, lane.up = lane.up, None
        if up is not None and not up.done():
            up.set_result(failure)

    def _look(self) -> None:
        """Take new connections of the Rust client into account."""
        marked = [lane for lane in self._lanes if lane.mark]
        for lane in self._lanes:
            if not lane.mark:
                lane.seen = lane.transport.connections()  # type: ignore[attr-defined]
        if not marked or not self._sockets.supported:
            return
        now = self._sockets.scan()
        fresh = [mark for inode, mark in now.items() if inode not in self._known]
        for lane in marked:
            lane.seen = sum(1 for mark in now.values() if mark == lane.mark)
            new = fresh.count(lane.mark)
            lane.unclaimed += new
            self._opened += new
            self._handshakes += new if self._tls else 0
            for _ in range(new):
                self._tell("connection_opened", lane=lane.number)
        self._known = set(now)

    def _tell(self, event: str, **facts: object) -> None:
        self._events.append({"event": event, "origin": self.options.origin, **facts})


def _is_open(lane: Lane) -> bool:
    return lane.state == "open"


async def _drain(inbound: Inbound) -> None:
    try:
        async for _ in inbound:
            pass
    finally:
        await inbound.aclose()


def _transport_name(options: PoolOptions) -> tuple[str, str]:
    """Which transport, and why."""
    if options.transport != "auto":
        return options.transport, "chosen by UPSTREAM_TRANSPORT"
    if importlib.util.find_spec("pyqwest") is not None:
        return "reqwest", "auto: pyqwest is installed"
    return "httpcore", "auto: pyqwest is not installed"
