"""Decide who runs now, who waits, who is dropped, and who is next.

    (outside) --enter, a slot is free--------------------------------> running --leave--> (outside)
        |                                                                 ^
        |---enter, none free--> waiting --leave of another, or resize-----|
        |                          |
        |<--Full (drop mode only)  `--leave: gave up--> (outside)

First come, first served within a caller; between callers that wait, one each in turn: a caller with a thousand
requests in line delays another's single one by one place. As long as anybody waits, no slot is free: whatever
frees one names the ticket that gets it.

A smaller share takes nothing from those that run; until enough of them have left, nobody is admitted.

It only decides; ``upstream/slots.py`` does the waiting.
Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Full(Exception):
    """Every place is taken, to run and to wait. The ticket was not let in."""


class WaitingRoom(Generic[T]):
    """So many run, the others wait in line. Every operation takes constant time (``resize``: per ticket admitted).

    Args:
        concurrency: Tickets that run at a time.
        buffer_size: Tickets that may be in here, running and waiting together; it binds in drop mode only, and
            never below ``concurrency``.
        drop: Refuse a ticket beyond ``buffer_size``. Otherwise the line may grow without limit.
    """

    __slots__ = ("_callers", "_drop", "_lines", "_running", "buffer_size", "concurrency")

    def __init__(self, concurrency: int, buffer_size: int, drop: bool) -> None:
        self.concurrency = concurrency
        self.buffer_size = max(concurrency, buffer_size)
        self._drop = drop
        self._running: set[T] = set()
        self._callers: dict[T, str] = {}
        # Callers in the order of their turns, each with its tickets in the order they came. OrderedDict, since a
        # plain dict searches for its first entry past all those deleted before it.
        self._lines: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()

    @property
    def running(self) -> int:
        """Tickets that run now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Tickets in line now."""
        return len(self._callers)

    def admit(self, ticket: T) -> bool:
        """Let a ticket in if it runs at once; whether it does. It must not be in here already."""
        if len(self._running) >= self.concurrency:
            return False
        self._running.add(ticket)  # a slot is free, so nobody waits
        return True

    def enter(self, ticket: T, caller: str) -> bool:
        """Let a ticket in. It must not be in here already.

        Returns:
            True: it runs. False: it waits, until ``leave`` or ``resize`` names it.

        Raises:
            Full: In drop mode, when every place is taken.
        """
        if self.admit(ticket):
            return True
        if self._drop and len(self._running) + len(self._callers) >= self.buffer_size:
            raise Full
        self._callers[ticket] = caller
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = OrderedDict()
        line[ticket] = None
        return False

    def leave(self, ticket: T) -> T | None:
        """A running ticket has ended, or a waiting one gives up. A ticket that is not in here changes nothing.

        Returns:
            The ticket that runs from now on in its place, if any.
        """
        if ticket in self._running:
            self._running.remove(ticket)
            return self._next() if self._callers else None
        caller = self._callers.pop(ticket, None)
        if caller is not None:
            line = self._lines[caller]
            del line[ticket]
            if not line:
                del self._lines[caller]
        return None

    def resize(self, concurrency: int, buffer_size: int) -> list[T]:
        """Take on another share.

        Returns:
            The tickets that run from now on.
        """
        self.concurrency = concurrency
        self.buffer_size = max(concurrency, buffer_size)
        admitted: list[T] = []
        while (ticket := self._next()) is not None:
            admitted.append(ticket)
        return admitted

    def _next(self) -> T | None:
        """Admit the first ticket of the caller whose turn it is, if there is one and a slot for it."""
        if not self._callers or len(self._running) >= self.concurrency:
            return None
        caller, line = next(iter(self._lines.items()))
        ticket, _ = line.popitem(last=False)
        del self._callers[ticket]
        if line:
            self._lines.move_to_end(caller)
        else:
            del self._lines[caller]
        self._running.add(ticket)
        return ticket
