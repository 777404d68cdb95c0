"""Decide which lane a request takes, when a new one is opened, and which idle one is closed.

A lane is one upstream client: of kind ``h2`` one connection with many streams, of kind ``h1`` (an HTTP/1.1
upstream, a file download) or ``exact`` (must go out byte by byte) one connection per request in flight.

    cold ──first request──> opening ──head, or the connection is up──> open ──idle too long──> (closed)
      ^                        │                                        │
      └── could not connect ───┘<──── its connection is gone, idle ─────┘

On an opening lane the first request (the opener) goes; the others hold their slot and wait for the connection, so
that a cold burst of 100 opens one connection and not 100 (facts 10). Filling is dense: the first lane takes
``streams_per_connection`` streams before another is opened, so that idle lanes really become idle.
A lane with a stalled stream takes no new one while there is another way: hyper's connection window (5 MiB) is
shared, and a few stalled readers use it up (B24).

A stalled reader on our own HTTP/2 client (``own``) holds back nobody: its windows are exact.
If the peer allows fewer streams than ``streams_per_connection``, our own client's lanes know it (``limit``); with
the Rust client the surplus waits inside hyper, which opens further connections up to the client's own cap.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

Kind = Literal["h2", "h1", "exact"]
State = Literal["cold", "opening", "open"]
NO_LIMIT = 1 << 31
L = TypeVar("L", bound="Lane")


@dataclass(slots=True, eq=False)
class Lane:
    """One lane's state, as the decision sees it.

    Attributes:
        number: Order of opening; lower is filled first.
        kind: What it speaks; ``exact`` is HTTP/1.1 on httpcore.
        state: See the module's drawing.
        in_flight: Slots taken, those that wait for the connection included.
        stalled: Slots whose reader takes nothing at the moment.
        limit: Streams the peer lets this lane's connection carry at a time, where that is known; 0: none, ever.
        own: On our own HTTP/2 client, where stalled streams are no reason to go elsewhere.
        idle_since: Instant (monotonic s) at which the last slot was given back.
    """

    number: int
    kind: Kind
    state: State = "cold"
    in_flight: int = 0
    stalled: int = 0
    idle_since: float = 0.0
    limit: int = NO_LIMIT
    own: bool = False

    @property
    def connections(self) -> int:
        """Connections this lane stands for: one for HTTP/2, one per request in flight for HTTP/1.1."""
        if self.kind == "h2":
            return 1
        return self.in_flight


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits the decision keeps.

    Attributes:
        max_connections: ``ANTHROPIC_MAX_CONNECTIONS``: over all lanes.
        max_keepalive: ``ANTHROPIC_MAX_KEEPALIVE``: idle lanes kept.
        keepalive_expiry_s: ``ANTHROPIC_KEEPALIVE_EXPIRY``.
        streams_per_connection: Streams an HTTP/2 lane takes.
    """

    max_connections: int = 200
    max_keepalive: int = 100
    keepalive_expiry_s: float = 30.0
    streams_per_connection: int = 100


class Use(NamedTuple, Generic[L]):
    """Take a slot of this lane, after closing ``instead`` (an idle lane whose connection makes room)."""

    lane: L
    instead: L | None = None


class Open(NamedTuple, Generic[L]):
    """Open a lane of the kind asked for, after closing ``instead`` (an idle lane whose connection makes room)."""

    instead: L | None = None


class Wait(NamedTuple):
    """Every connection is in use: wait for a slot to be given back."""


WAIT = Wait()


def choose(lanes: Sequence[L], kind: Kind, rules: Rules) -> Use[L] | Open[L] | Wait:
    """Where a new request of this kind goes. ``lanes`` is in order of opening."""
    if kind == "h2":
        return _choose_h2(lanes, rules)
    return _choose_h1(lanes, kind, rules)


def _choose_h2(lanes: Sequence[L], rules: Rules) -> Use[L] | Open[L] | Wait:
    spare: L | None = None
    used = 0
    most = rules.streams_per_connection
    for lane in lanes:
        if lane.kind != "h2":
            used += lane.in_flight
            continue
        used += 1
        if lane.in_flight >= most or lane.in_flight >= lane.limit:
            continue
        if lane.own or not lane.stalled:
            return Use(lane)
        if spare is None or lane.stalled < spare.stalled:
            spare = lane
    if used < rules.max_connections:
        return Open()
    if spare is not None:
        return Use(spare)
    return WAIT


def _choose_h1(lanes: Sequence[L], kind: Kind, rules: Rules) -> Use[L] | Open[L] | Wait:
    mine: L | None = None
    idle: L | None = None
    used = 0
    for lane in lanes:
        used += lane.connections
        if lane.kind == kind:
            mine = lane
        elif lane.kind == "h2" and not lane.in_flight:
            idle = lane
    if used < rules.max_connections:
        return Use(mine) if mine is not None else Open()
    if idle is not None:
        return Use(mine, instead=idle) if mine is not None else Open(instead=idle)
    return WAIT


def ahead(lanes: Sequence[L], slots: int, rules: Rules, limit: int) -> tuple[list[L], int]:
    """What has to be up for ``slots`` streams to find an HTTP/2 connection each.

    No more than may stay: idle lanes beyond ``max_keepalive`` would be closed again at once.

    Args:
        lanes: In order of opening.
        slots: Streams at a time.
        rules: The limits.
        limit: Streams the peer is expected to let a new connection carry.

    Returns:
        The lanes that carry them, and how many more to open.
    """
    carrying: list[L] = []
    left, used = slots, 0
    for lane in lanes:
        used += lane.connections
        if lane.kind == "h2" and lane.limit and left > 0:
            carrying.append(lane)
            left -= min(rules.streams_per_connection, lane.limit)
    each = max(1, min(rules.streams_per_connection, limit))
    may = min(rules.max_connections, rules.max_keepalive) - used
    return carrying, max(0, min(-(-left // each), may))


def expired(lanes: Sequence[L], rules: Rules, now: float) -> list[L]:
    """Idle lanes to close now: those idle for longer than the expiry, and the oldest beyond ``max_keepalive``."""
    idle = sorted((lane for lane in lanes if not lane.in_flight), key=lambda lane: lane.idle_since)
    surplus = max(0, len(idle) - rules.max_keepalive)
    return [lane for i, lane in enumerate(idle) if i < surplus or now - lane.idle_since > rules.keepalive_expiry_s]
