"""Run what must keep nobody waiting: one after the other, in a thread that is there while there is work.

Under gevent the thread is a greenlet.

Runs on: worker.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
_SLICE_S: Final = 0.25


class Errands(Generic[Item]):
    """A bounded queue with one thread behind it.

    Args:
        name: Of the thread.
        run: Does one errand. What it raises ends its thread, and is seen as any thread's last exception.
        limit: Errands that may wait.
    """

    def __init__(self, name: str, run: Callable[[Item], None], limit: int = 32) -> None:
        self._name = name
        self._run = run
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Item] = deque()
        self._busy = False
        self.stopped = False

    def put(self, item: Item) -> Item | None:
        """One more to run; never waits.

        Returns:
            The oldest that was waiting, if it had to give way; None otherwise.
        """
        with self._lock:
            gone = self._waiting.popleft() if len(self._waiting) >= self._limit else None
            self._waiting.append(item)
            starts, self._busy = not self._busy, True
        if starts:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return gone

    def stop(self) -> None:
        """Begin nothing more. Takes no lock: whoever ends a worker may be in a signal's handler."""
        self.stopped = True

    def pause(self, length_s: float) -> bool:
        """Sleep within an errand; False as soon as there is to be no more."""
        until = time.monotonic() + length_s
        while not self.stopped:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return True
            time.sleep(min(left_s, _SLICE_S))
        return False

    def _work(self) -> None:
        while True:
            with self._lock:
                if self.stopped or not self._waiting:
                    self._busy = False
                    return
                item = self._waiting.popleft()
            try:
                self._run(item)
            except BaseException:  # the next errand gets a thread of its own
                self._busy = False
                raise
