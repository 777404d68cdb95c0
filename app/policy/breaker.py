"""Decide whether an upstream gets the next call, by how its recent calls went (B35).

                 rate of failures >= failure_rate
                 over >= min_calls of the last window_s
      +--------+ -----------------------------------> +------+ <---------------------------+
      | closed |                                      | open |                             |
      +--------+ <--+      every call is refused      +------+                             |
          ^         |                                     | retry_at passes                |
          |         | force_closed                        v                                |
          |         |                                +-----------+  probe failed:          |
          |         +------------------------------- | half_open | ------------------------+
          +----------------------------------------- +-----------+  open_s doubled,
              probe answered: window forgotten,        |       ^    to max_open_s
              open_s as at first                       +-------+
                                                       probe released: the next call is the probe
      force_open: from any state to open, or stays there with the later instant

Only a failure opens. A half-open breaker lends one call at a time, the probe; whoever holds it must give a verdict
or release it. open_s is jittered by 20 % both ways, lest all workers probe in the same moment.

Every permit carries the generation it was given in, and each opening, closing and release of a probe starts a new
one. A verdict of an older generation is ignored: late answers of old calls neither close nor reopen anything.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from app.policy.sliding import Sliding

JITTER = 0.2

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long.

    Attributes:
        window_s: How far back calls count.
        min_calls: Fewer calls than this in the window prove nothing.
        failure_rate: Share of failed calls, 0 to 1, that opens it.
        open_s: How long it stays open at first, before jitter.
        max_open_s: What the doubling stops at, before jitter.
    """

    window_s: float = 10.0
    min_calls: int = 30
    failure_rate: float = 0.5
    open_s: float = 5.0
    max_open_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. While a breaker is closed all calls share one.

    Attributes:
        probe: The call decides whether the upstream is well again, and no other is made meanwhile.
        generation: What the breaker counted when it gave this.
    """

    probe: bool
    generation: int


class Breaker:
    """The breaker of one provider or one credential. Times are monotonic seconds.

    Args:
        rules: When it opens.
        rnd: Chance in [0, 1).

    Attributes:
        retry_at: While open, the instant from which a probe is let through (in the past while half-open); 0.0
            while closed.
    """

    __slots__ = ("_generation", "_next_open_s", "_probing", "_recent", "_rnd", "_rules", "_shared", "retry_at")

    def __init__(self, rules: BreakerRules, rnd: Callable[[], float]) -> None:
        self._rules = rules
        self._rnd = rnd
        self._recent = Sliding(rules.window_s)
        self._generation = 0
        self._shared: Permit | None = Permit(False, 0)  # None: not closed
        self._probing = False  # of no meaning while closed
        self._next_open_s = rules.open_s
        self.retry_at = 0.0

    def state(self, now: float) -> BreakerState:
        """What it is at ``now``."""
        if self._shared is not None:
            return "closed"
        return "open" if now < self.retry_at else "half_open"

    def would_admit(self, now: float) -> bool:
        """What ``admit`` would say; nothing is taken."""
        return self._shared is not None or (now >= self.retry_at and not self._probing)

    def admit(self, now: float) -> Permit | None:
        """Leave for one call, or None: refused. A permit is given back by ``record`` or ``release``."""
        if self._shared is not None:
            return self._shared
        if now < self.retry_at or self._probing:
            return None
        self._probing = True
        return Permit(True, self._generation)

    def record(self, permit: Permit, ok: bool, now: float) -> Literal["", "opened", "closed"]:
        """The verdict on one call.

        Returns:
            What it changed; "" for nothing, also when the permit is of an older generation.
        """
        if permit.generation != self._generation:
            return ""
        if not permit.probe:
            self._recent.add(now, 1, not ok)
            return "" if ok else self._judge(now)
        if ok:
            self._close()
            return "closed"
        self._open(now)
        return "opened"

    def fail(self, now: float) -> Literal["", "opened"]:
        """A call failed after its verdict had been good: a stream that broke.

        It was counted as a call then, so it is only marked as failed now. While not closed nothing is counted.
        """
        if self._shared is None:
            return ""
        self._recent.add(now, 0, 1)
        return self._judge(now)

    def release(self, permit: Permit) -> None:
        """The call ended without a verdict (the client left, a 4xx): a probe's place is free again."""
        if permit.probe and permit.generation == self._generation:
            self._generation += 1
            self._probing = False

    def force_open(self, until_at: float, now: float) -> None:
        """Another worker found it failing: open until ``until_at``, or until its own instant if that is later.

        A probe under way loses its say. The doubling of ``open_s`` goes by own findings only.
        """
        if until_at > now and until_at > self.retry_at:
            self._refuse(until_at)

    def force_closed(self) -> None:
        """Another worker found it well."""
        if self._shared is None:
            self._close()

    def _judge(self, now: float) -> Literal["", "opened"]:
        recent = self._recent
        calls = max(recent.total, recent.marked)  # a broken stream's call may have left the window before its mark
        if calls < self._rules.min_calls or recent.marked < self._rules.failure_rate * calls:
            return ""
        self._open(now)
        return "opened"

    def _open(self, now: float) -> None:
        length_s = self._next_open_s
        self._next_open_s = min(2 * length_s, self._rules.max_open_s)
        self._refuse(now + length_s * (1 - JITTER + 2 * JITTER * self._rnd()))

    def _refuse(self, until_at: float) -> None:
        self._generation += 1
        self._shared = None
        self._probing = False
        self.retry_at = until_at

    def _close(self) -> None:
        self._generation += 1
        self._shared = Permit(False, self._generation)
        self._next_open_s = self._rules.open_s
        self._recent.clear()
        self.retry_at = 0.0
