"""Make the Records of exchanges that are over, several at a time, and show them to whoever looks on.

    add      any thread or greenlet, while a client waits for its next turn: puts the exchange aside
    flush    makes the Records of all that wait, in the order in which they ended, and shows them

    at once:  if nothing was made for 50 ms, for the gateway's own fault, when 64 wait or hold 4 MiB
    else:     the keeper's next tick, a quarter second at most; whoever asks for what was seen flushes first

Context: what is done once per exchange runs from cold caches, at half to a third of the speed of a loop; the
Record, its usage and price, its log line and its counting were 15 % of a short request's CPU. Choice: exchanges
wait for company. Price: a worker that is killed (SIGKILL, out of memory) takes with it the Records of a quarter
second at most. Under gunicorn SIGTERM, SIGINT and a worker's regular end lose nothing. Where no keeper runs (yet,
or any more) every Record is made at once.

Runs on: worker.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from app.exchange import Record

QUIET_S: Final = 0.05
MOST: Final = 64
_URGENT_S: Final = 0.005  # a storm of refusals must not be told of one by one
_MOST_BYTES: Final = 4 << 20
_MOST_TURNS: Final = 3  # then somebody else's request may do it

CALM, FAILED, OWN_FAULT = 0, 1, 2
"""How much of a hurry there is."""

Observer = Callable[[Sequence[Record]], None]
Make = Callable[[float], Record]


_all: Final[weakref.WeakSet[Records]] = weakref.WeakSet()


def _nothing() -> None:
    """Nobody has put anything off."""


class Records:
    """Those of one worker.

    Args:
        observers: Are shown all Records in turn, and put off what takes long.
        shown: Called afterwards, outside the lock: does what cannot be put off further.

    Attributes:
        observers: As given; may be set later, by whoever needs this to make them.
    """

    def __init__(self, observers: Sequence[Observer] = (), shown: Callable[[], None] = _nothing) -> None:
        self.observers = observers
        self._shown = shown
        self._waiting: deque[Make] = deque()
        self._waiting_bytes = 0
        self._made_at = 0.0
        self._kept = False
        self._lock = threading.Lock()
        atexit.register(_close_last, weakref.ref(self))
        _all.add(self)

    def _forget(self) -> None:
        """In a child: what waits is the parent's to tell of, and whoever holds the lock is not here."""
        self._waiting.clear()
        self._kept = False
        self._lock = threading.Lock()

    def add(self, make: Make, now: float, hurry: int, held_bytes: int) -> None:
        """An exchange is over.

        Args:
            make: Makes its Record; takes what has to be added to an instant to get seconds since the epoch.
            now: Instant at which it ended.
            hurry: ``CALM``, ``FAILED`` or ``OWN_FAULT``.
            held_bytes: What it keeps in memory until then, bodies above all.
        """
        waiting = self._waiting
        waiting.append(make)
        self._waiting_bytes += held_bytes
        if (
            len(waiting) >= MOST
            or now - self._made_at >= (_URGENT_S if hurry else QUIET_S)
            or hurry == OWN_FAULT
            or not self._kept
            or self._waiting_bytes >= _MOST_BYTES
        ):
            self.flush()

    def pump(self) -> None:
        """Make those that wait; the keeper calls it every quarter second."""
        self._kept = True
        self.flush()

    def close(self) -> None:
        """Make those that wait; from now on every one is made at once."""
        self._kept = False
        self.flush()

    def flush(self, wait_s: float = 0.0) -> None:
        """Make those that wait. Whoever is at it already takes them along.

        Args:
            wait_s: How long to wait for another thread that is; then those are there, too, that it has taken.
        """
        turns = 0
        while (self._waiting or (wait_s and not turns)) and (turns < _MOST_TURNS or not self._kept):
            # not with a timeout at once: in a signal's handler under gevent nobody may wait
            if not self._lock.acquire(blocking=False) and not (wait_s and self._lock.acquire(timeout=wait_s)):
                return
            try:
                self._make()
            finally:
                self._lock.release()
            self._shown()
            turns += 1

    def _make(self) -> None:
        waiting = self._waiting
        if not waiting:
            return
        self._waiting_bytes = 0
        now = self._made_at = time.monotonic()
        epoch_s = time.time() - now
        records: list[Record] = []
        try:
            for _ in range(len(waiting)):
                records.append(waiting.popleft()(epoch_s))
        finally:  # one that cannot be made takes no other with it
            for observe in self.observers:
                observe(records)


def _close_last(ref: weakref.ref[Records]) -> None:
    """Under servers that have no hook for it: at the interpreter's end."""
    records = ref()
    if records is not None:
        records.close()


def _forget_all() -> None:
    for records in list(_all):
        records._forget()


os.register_at_fork(after_in_child=_forget_all)
