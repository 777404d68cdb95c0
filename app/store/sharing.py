"""Pass what one worker learns on to the others: over the board to its node, over Redis to all nodes.

    loop    publish(fact) --> board (shared memory) --> news() of every other worker's loop
              \\--> outbox --pump, worker side--> Redis --pump, worker side--> deliver(facts) on every other loop

Without a board (another server than gunicorn, or no hooks of ours) a worker knows what it learns itself; without
Redis a node does. Redis gone is told by ``degraded``; nothing waits for it.

Runs on: loop (``publish``, ``news``) and worker (``pump``, ``close``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from app.store.board import Board
from app.store.facts import Fact

OUTBOX_LIMIT = 1000


class Link(Protocol):
    """What carries facts to other nodes."""

    degraded: str

    def pump(self) -> None:
        """Send and receive what there is; never raises, never takes long."""

    def client(self) -> Any:
        """A client for other uses, or None while it is degraded."""

    def close(self) -> None:
        """Let go."""


class Sharing:
    """One per process and set of settings.

    Args:
        make_link: Makes the link to other nodes from the outbox; None: this node stands alone.
    """

    def __init__(self, make_link: Callable[[deque[Fact]], Link] | None) -> None:
        self._outbox: deque[Fact] = deque(maxlen=OUTBOX_LIMIT)
        self._link = make_link(self._outbox) if make_link is not None else None
        self._board: Board | None = None

    def use(self, board: Board | None) -> None:
        """From now on share with the other workers of this node through ``board`` (loop)."""
        self._board = board

    def publish(self, fact: Fact) -> None:
        """Tell the others (loop)."""
        if self._board is not None:
            self._board.publish(fact)
        if self._link is not None:
            self._outbox.append(fact)

    def news(self) -> list[Fact]:
        """What the other workers of this node have found out since the last call (loop)."""
        return self._board.news() if self._board is not None else []

    def pump(self) -> None:
        """Exchange facts with other nodes (worker, about every quarter second)."""
        if self._link is not None:
            self._link.pump()

    def client(self) -> Any:
        """A Redis client, or None where there is none right now (worker)."""
        return self._link.client() if self._link is not None else None

    @property
    def degraded(self) -> str:
        """Why other nodes cannot be told, or "" (any thread)."""
        return self._link.degraded if self._link is not None else ""

    def close(self) -> None:
        """Let go of the link (worker)."""
        if self._link is not None:
            self._link.close()
