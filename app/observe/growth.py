"""Say how much a process has grown within the hour: its memory now, above the least it had in that time.

The first minute of its life is left out: code is loaded and pools are filled then.

Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WARM_UP_S: Final = 60.0
HOUR_S: Final = 3600.0
_STEP_S: Final = 60.0


class Growth:
    """Of one process.

    Args:
        started_at: Instant.
    """

    def __init__(self, started_at: float) -> None:
        self._from = started_at + WARM_UP_S
        self._least: deque[tuple[float, int]] = deque()  # begin of a minute, least bytes in it

    def take(self, now: float, resident_bytes: int) -> float | None:
        """One more look at it.

        Returns:
            Growth in MB (10**6 bytes); None while it is too young.
        """
        if now < self._from:
            return None
        if self._least and now < self._least[-1][0] + _STEP_S:
            begin, least = self._least.pop()
            self._least.append((begin, min(least, resident_bytes)))
        else:
            self._least.append((now, resident_bytes))
        while self._least[0][0] <= now - HOUR_S:
            self._least.popleft()
        return (resident_bytes - min(least for _, least in self._least)) / 1e6
