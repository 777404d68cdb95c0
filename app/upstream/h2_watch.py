"""Watches a connection's silences: closes one that is idle, asks one that is silent, buries one that is dead.

    idle for keepalive_expiry_s ──> retired

    in use, silent for ping_interval_s ──────────────────────────────PING──> asked
    idle, silent for ping_interval_s ──> stale ──next request, along with it──PING──> asked

    asked ──anything comes──> as before
      └──DOUBT_S──> no new streams ──anything comes──> its streams end in peace
                          └──ping_timeout_s since the PING──> aborted, its streams fail

Context: a peer, or what is between, may stop forwarding without a word; TCP notices late or never, and every
request on such a connection would cost its whole timeout.
Choice: ask only after silence and never more often than the interval, and not at all while nobody wants anything
of the connection: servers punish idle pings with GOAWAY ENHANCE_YOUR_CALM (after one, ``calmer`` asks half as
often, as gRPC does). Anything that comes is an answer. In doubt, new requests already go to a new connection.
Price: a silence is noticed up to a quarter of the interval late, since a read of the socket sets a flag and looks
at no clock; whoever is first on a connection that died while idle waits for ping_timeout_s.

A PING may stand behind much of an upload: as long as the peer's kernel goes on taking that, it is given more time.
One timer a connection and kind, set anew when it fires: requests touch no timers, but for the first one on a stale
connection.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from app.upstream.h2_connection import H2Connection

DOUBT_S = 2.0
"""How long a PING may go unanswered until new requests go elsewhere; half of ping_timeout_s where that is less."""

LOOKS = 4
"""Looks within ping_interval_s."""

MOVED_BYTES = 65_536
"""What the peer's kernel has to have taken since the PING to show that an upload is under way."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Limits of silence in seconds; a ``ping_interval_s`` of 0 sends no PING."""

    keepalive_expiry_s: float
    ping_interval_s: float = 0.0
    ping_timeout_s: float = 5.0

    def begin(self, connection: H2Connection) -> None:
        """Watch ``connection`` until its end."""
        connection.loop.call_later(self.keepalive_expiry_s, self._idle, connection)
        if self.ping_interval_s:
            Vigil(connection, self.ping_interval_s, self.ping_timeout_s)

    def calmer(self) -> Watch:
        """The same, asking half as often."""
        return replace(self, ping_interval_s=2 * self.ping_interval_s)

    def _idle(self, connection: H2Connection) -> None:
        if connection.ended:
            return
        left = self.keepalive_expiry_s
        if not connection.in_flight:
            left += connection.idle_since - connection.loop.time()
            if left <= 0:
                connection.retire("It was idle.")
                return
        connection.loop.call_later(max(left, 0.001), self._idle, connection)


class Vigil:
    """One connection's signs of life, from its first moment to its end.

    Args:
        connection: Which one.
        interval_s: Silence after which it is asked.
        timeout_s: Silence after that for which it counts as dead.
    """

    __slots__ = ("_connection", "_interval_s", "_looks", "_taken", "_timeout_s", "_timer")

    def __init__(self, connection: H2Connection, interval_s: float, timeout_s: float) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._taken = 0
        self._looks = 0
        self._timer = self._later(interval_s / LOOKS, self.look)

    def _later(self, seconds: float, then: Callable[[], None]) -> asyncio.TimerHandle:
        return self._connection.loop.call_later(seconds, then)

    def _rest(self) -> None:
        """It lives: ask again after the next silence."""
        connection = self._connection
        connection.heard = connection.owes = False
        connection.stale = None
        self._looks = 0
        self._timer = self._later(self._interval_s / LOOKS, self.look)

    def look(self) -> None:
        """Was anything heard since the last look?"""
        connection = self._connection
        if connection.ended:
            return
        if connection.heard:
            self._rest()
            return
        self._looks += 1
        if self._looks >= LOOKS:
            if connection.streams:
                self.ask()
                return
            connection.stale = self.ask
        self._timer = self._later(self._interval_s / LOOKS, self.look)

    def ask(self) -> None:
        """Send a PING; from here on it owes a sign of life."""
        connection = self._connection
        self._timer.cancel()
        connection.stale = None
        connection.heard = False
        self._taken = connection.taken_bytes()
        connection.ask()
        self._timer = self._later(min(DOUBT_S, self._timeout_s / 2), self.doubt)

    def doubt(self) -> None:
        """It is late: whoever comes next takes another connection."""
        connection = self._connection
        if connection.ended:
            return
        if connection.heard:
            self._rest()
            return
        self._timer = self._later(self._timeout_s - min(DOUBT_S, self._timeout_s / 2), self.judge)
        connection.owes = True
        if connection.usable:
            connection.retire("The upstream owes the answer to a PING.")

    def judge(self) -> None:
        """Its time is up."""
        connection = self._connection
        if connection.ended:
            return
        if connection.heard:
            self._rest()
            return
        taken = connection.taken_bytes()
        if taken - self._taken > MOVED_BYTES:
            self._taken = taken
            self._timer = self._later(self._timeout_s, self.judge)
            return
        connection.abort(f"The upstream did not answer a PING within {self._timeout_s:g} s.")


__all__ = ["DOUBT_S", "LOOKS", "MOVED_BYTES", "Vigil", "Watch"]
