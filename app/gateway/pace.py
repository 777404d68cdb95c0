"""Time the pieces of one event stream as they are handed to the server.

Pure: it asks the monotonic clock itself, at 40 ns, since it is called for every event.
"""

from __future__ import annotations

from time import monotonic

LAST = 17
"""The last bucket of pauses, open at its upper end: 65.536 s and more."""


class Pace:
    """When the first piece went out, and how long the pauses between the others were.

    Args:
        heartbeat: The piece that is none: the gateway's own sign of life.

    Attributes:
        first_at: Instant of the first piece; 0.0 if there was none.
        last_at: Of the last one.
    """

    __slots__ = ("_gaps", "first_at", "heartbeat", "last_at")

    def __init__(self, heartbeat: bytes) -> None:
        self.heartbeat = heartbeat
        self.first_at = 0.0
        self.last_at = 0.0
        self._gaps: list[int] | None = None

    def step(self) -> None:
        """A piece is handed over."""
        now = monotonic()
        gaps = self._gaps
        if gaps is not None:
            bits = int((now - self.last_at) * 1000.0).bit_length()
            gaps[bits if bits < LAST else LAST] += 1
        else:
            self.first_at = now
            self._gaps = [0] * (LAST + 1)
        self.last_at = now

    def first_ms(self, received_at: float) -> float | None:
        """From then to the first piece; None if there was none."""
        return (self.first_at - received_at) * 1000.0 if self._gaps is not None else None

    @property
    def gaps(self) -> tuple[int, ...]:
        """Pauses by the bit length of their whole milliseconds; buckets behind the last that was used are cut."""
        found = self._gaps or []
        used = len(found)
        while used and not found[used - 1]:
            used -= 1
        return tuple(found[:used])

    @property
    def gaps_ms(self) -> float:
        """Sum of the pauses."""
        return (self.last_at - self.first_at) * 1000.0
