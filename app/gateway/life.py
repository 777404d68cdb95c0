"""Hold the state of this worker's life: serving, draining, cut.

    serving --drain(now)--> draining --cut_after_s--> cut
      new requests: yes        no (503)                no
      streams:      go on      go on                   end with their terminal error

Runs on: worker.
"""

from __future__ import annotations

import time


class Life:
    """One per process.

    Attributes:
        draining: New requests are refused.
        in_flight: Exchanges under way.
        served: Exchanges begun.
    """

    def __init__(self, cut_after_s: float) -> None:
        self._cut_after_s = cut_after_s
        self._cut_at: float | None = None
        self.draining = False
        self.in_flight = 0
        self.served = 0

    def drain(self, now: float | None = None) -> None:
        """Stop taking requests; streams may go on for ``cut_after_s`` seconds. Only the first call counts."""
        if not self.draining:
            self.draining = True
            self._cut_at = (time.monotonic() if now is None else now) + self._cut_after_s

    def is_cut(self, now: float) -> bool:
        """Streams have to end now."""
        return self._cut_at is not None and now >= self._cut_at
