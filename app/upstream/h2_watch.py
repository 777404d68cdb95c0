"""Watches a connection's silences: closes one that is idle, asks one that is silent, buries one that is dead.

    idle for keepalive_expiry_s ──> retired
    streams in flight, silent for ping_interval_s ──PING──> silent for ping_timeout_s more ──> aborted

One timer a connection and kind, set anew when it fires: requests touch no timers.
Runs on: loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.upstream.h2_connection import H2Connection


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
            connection.loop.call_later(self.ping_interval_s, self._silent, connection)

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

    def _silent(self, connection: H2Connection) -> None:
        if connection.ended:
            return
        wait_s = self.ping_interval_s
        if connection.streams and not connection.heard:
            connection.ask()
            wait_s = self.ping_timeout_s
            connection.loop.call_later(wait_s, self._dead, connection)
            return
        connection.heard = False
        connection.loop.call_later(wait_s, self._silent, connection)

    def _dead(self, connection: H2Connection) -> None:
        if connection.heard or not connection.streams:
            self._silent(connection)
        elif not connection.ended:
            connection.abort(f"The upstream did not answer a PING within {self.ping_timeout_s:g} s.")
