"""The lanes of one pool: opens them, watches over them, closes them.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

import httpx

from app.upstream import lanes as policy
from app.upstream.h2_connect import Opened
from app.upstream.lane_news import News
from app.upstream.lanes import NO_LIMIT, Kind, Rules
from app.upstream.sockets import take_mark
from app.upstream.transport_lane import Census, Gate, LiveLane
from app.upstream.transport_make import Maker, PoolOptions

TICK_S = 0.5


class Fleet:
    """All lanes of one pool.

    Args:
        options: Of the pool.
        news: Where it is told what becomes of their connections.

    Attributes:
        lanes: In order of opening.
        rules: Limits of the decision which lane is taken.
        make: Makes their clients.
        census: Counts their connections.
        peer_limit: Streams the peer is expected to let a new connection carry at a time.
    """

    def __init__(self, options: PoolOptions, news: News) -> None:
        self._news = news
        self.lanes: list[LiveLane] = []
        self.rules = Rules(
            max_connections=options.max_connections,
            max_keepalive=options.max_keepalive,
            keepalive_expiry_s=options.keepalive_expiry_s,
            streams_per_connection=options.streams_per_connection,
        )
        self.make = Maker(options)
        self.census = Census(options.origin.startswith("https"), news)
        self.peer_limit = NO_LIMIT
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None

    def open(self, kind: Kind) -> LiveLane:
        """A new lane, its connection not up yet."""
        self._number += 1
        if self.make.own(kind):
            lane = self._own_lane()
        elif self.make.rust(kind):
            mark = take_mark()
            lane = LiveLane(self._number, kind, self.make.reqwest(kind, mark), mark, None)
        else:
            client = self.make.httpcore(kind, self.census.on_opened)
            lane = LiveLane(self._number, kind, client, 0, client.connections)
        self.lanes.append(lane)
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return lane

    def _own_lane(self) -> LiveLane:
        client = self.make.h2()
        lane = LiveLane(self._number, "h2", client, 0, lambda: client.connections)
        lane.own, lane.client = True, client
        lane.limit = self.peer_limit  # as its siblings', until its own connection tells

        def opened(how: Opened) -> None:
            self.peer_limit = lane.limit = max(1, client.capacity)
            self.census.on_opened(tls=True)
            took = {"connect_ms": how.connect_ms, "tls_ms": how.tls_ms, "settings_ms": how.settings_ms}
            self._news.opened(lane.number, lane.opener, "HTTP/2", **took)

        client.tell(opened, lambda how: self.census.on_closed(lane, how))
        return lane

    def retire(self, lane: LiveLane) -> None:
        """Take an idle lane out now; its client is closed in a task."""
        self.census.look(self.lanes)
        self.lanes.remove(lane)
        lane.open_gate(httpx.ConnectError("The pool is closed."))
        self._spawn(lane.shut())

    def watch(self, lane: LiveLane, gate: Gate) -> None:
        """Open the gate of a lane once its connection is up."""
        self._spawn(lane.watch(gate, self.census, self.lanes))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        """Count connections and close idle lanes, until there is none left."""
        while self.lanes:
            await asyncio.sleep(min(TICK_S, self.rules.keepalive_expiry_s / 4))
            self.census.look(self.lanes)
            self.census.cool(self.lanes)
            for idle in policy.expired(self.lanes, self.rules, time.monotonic()):
                self.retire(idle)

    async def close(self) -> None:
        """Close every lane; streams in flight end with an error."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self.census.look(self.lanes)
        for lane in list(self.lanes):
            self.retire(lane)
        await asyncio.gather(*self._tasks, return_exceptions=True)
