"""Say what is known of one key, and how each answer changes it (B33, B34).

      +---------+ ---------- 429 ----------> +---------+ <------- 429 ---------+
      | healthy |                            | cooling |                       |
      +---------+ -- 401, 403 --+            +---------+ -- until_at --> +-----------+
           ^                    |                                        | probation |
           |                    +----------> +---------+ -- its time --> +-----------+
           |                                 | benched |                   |    |
           |                                 +---------+ <--- 401, 403 ----+    |
           +---------- a good answer; `restored` where it was learned ----------+

A key in probation makes one try at a time; any verdict, or the end of the exchange without one, makes room for the
next. A second 429 lengthens the cooling and never shortens it. A bench is 60 s for a 403 and 300 s for a 401,
doubled each time, up to an hour, until an answer is good again. For a key without a substitute a 403 is taken for
the request's fault, and a 401 benches for 5 s at first and a minute at most: refusing what may be repaired gains
nothing.

Each cooling and each bench starts a new generation of the key, and a lease carries the one it was given in. What
was sent before the key was cooled proves nothing by succeeding afterwards, and twenty refusals of tries that were
out together are one bench. A 4xx proves nothing either: Anthropic's 400 carries no rate limits, so it is given
before they are looked at.

Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from app.policy.breaker import Breaker, Permit
from app.wire.ratelimit import Remaining

BENCH_401_S: Final = 300.0
BENCH_403_S: Final = 60.0
MAX_BENCH_S: Final = 3600.0
ONLY_BENCH_S: Final = 5.0
MAX_ONLY_BENCH_S: Final = 60.0
MOST_DOUBLINGS: Final = 16
# Facts of other workers take up to a second: a `restored` that comes sooner after a refusal may be the older one.
TRAVEL_S: Final = 2.0
# The error score: each call moves it by a fifth towards its outcome, and time takes it back to nothing.
ERROR_STEP: Final = 0.2
ERROR_DECAY_S: Final = 30.0
ERROR_NOTHING: Final = 0.001
# Less than this share of a rate limit left, with its reset ahead, is short.
SHORT_SHARE: Final = 0.1
COST_STEP: Final = 0.3

ChangeKind = Literal["cooling", "benched", "restored", "open", "closed"]
Blocked = Literal["cooling", "benched", "open", "probing"]
Known = Literal["healthy", "probation", "cooling", "benched", "open"]


@dataclass(frozen=True, slots=True)
class Key:
    """What a key is. No secret is here.

    Attributes:
        label: Its name in logs and metrics; unique within its provider.
        weight: Its share of the traffic, above 0.
        models: Patterns (as in fnmatch) of the models it is kept for; none: for all that no other key is kept for.
    """

    label: str
    weight: float = 1.0
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What a verdict has changed, for other workers and for the log.

    Attributes:
        kind: ``cooling``, ``benched``, ``open``: of no use until ``until_at``; ``closed``: its breaker is;
            ``restored``: of use again, whatever it was before.
        label: The key.
        until_at: Monotonic seconds; 0.0 where there is no such instant.
    """

    kind: ChangeKind
    label: str
    until_at: float = 0.0


@dataclass(slots=True, eq=False)
class Lease:
    """One try's hold on a key, from ``choose`` to ``ended``. Two leases are never equal.

    Attributes:
        index: Which key, in the order they were configured.
        label: Its label.
        probe: The try decides whether the key, or its breaker, is well again; no other is made meanwhile.
        alone: No other key may serve this request's model, well or not.
        generation: The key's, when it was given.
        permit: The leave of the key's breaker.
        verdict: The one that was given, if any.
        ended: The exchange is over.
    """

    index: int
    label: str
    probe: bool
    alone: bool
    generation: int
    permit: Permit
    verdict: Literal["", "good", "other"] = ""
    ended: bool = False


@dataclass(slots=True, eq=False)
class KeyState:
    """What is known of one key. Times are monotonic seconds.

    Attributes:
        index: Its place among the keys of its provider.
        key: What it is.
        breaker: Its own.
        patience_s: A try in probation that has no verdict after this long makes room for the next one.
        in_flight: Leases that have not ended.
        uses: Leases given.
        lent_at: When the last lease was given.
        turn: When it is its turn among keys of equal load, in uses over weight.
        until: It is cooling or benched before this instant.
        probation: It is cooling or benched, or has not proved itself since.
        share: What was left of its scarcest rate limit at the last answer; None: never said.
    """

    index: int
    key: Key
    breaker: Breaker
    patience_s: float = math.inf
    in_flight: int = field(default=0, init=False)
    uses: int = field(default=0, init=False)
    turn: float = field(default=0.0, init=False)
    lent_at: float = field(default=-math.inf, init=False)
    until: float = field(default=-math.inf, init=False)
    probation: bool = field(default=False, init=False)
    share: float | None = field(default=None, init=False)
    _generation: int = field(default=0, init=False)
    _prober: Lease | None = field(default=None, init=False)
    _probing_until: float = field(default=-math.inf, init=False)
    # cooling
    _cooling_until: float = field(default=-math.inf, init=False)
    _cooled_at: float = field(default=-math.inf, init=False)
    _limit_unproven: bool = field(default=False, init=False)
    # the bench
    _benched_until: float = field(default=-math.inf, init=False)
    _benched_at: float = field(default=-math.inf, init=False)  # by an answer seen here
    _bench_status: int = field(default=0, init=False)
    _bench_generation: int = field(default=0, init=False)
    _benches: int = field(default=0, init=False)
    _secret_unproven: bool = field(default=False, init=False)
    # errors and shortage
    _errors: float = field(default=0.0, init=False)
    _errors_at: float = field(default=0.0, init=False)
    _short_until: float = field(default=-math.inf, init=False)
    _share_uses: int = field(default=0, init=False)
    _share_per_use: float = field(default=0.0, init=False)

    def usable(self, now: float) -> bool:
        """Whether ``lend`` would give a lease."""
        if now < self.until or (self.probation and now < self._probing_until):
            return False
        return self.breaker.would_admit(now)

    def lend(self, alone: bool, now: float) -> Lease:
        """A lease. Only where ``usable(now)`` holds."""
        permit = cast(Permit, self.breaker.admit(now))
        probation = self.probation
        lease = Lease(self.index, self.key.label, probation or permit.probe, alone, self._generation, permit)
        if probation:
            self._prober = lease
            self._probing_until = now + self.patience_s
        self.in_flight += 1
        self.uses += 1
        self.lent_at = now
        return lease

    def answered(self, lease: Lease, counted: bool, now: float) -> Change | None:
        """The upstream answered, and not with this key's fault; a 4xx is not ``counted``."""
        if not counted:
            self._judged(lease, None, now)
            return None
        told = self._judged(lease, True, now)
        self._count(0.0, now)
        if self.probation and lease.generation == self._generation:
            self._benches = 0
            self._limit_unproven = self._secret_unproven = False
            self._settle()
            return Change("restored", self.key.label)
        return Change("closed", self.key.label) if told == "closed" else None

    def failed(self, lease: Lease, now: float) -> Change | None:
        """The try failed by no fault of the request, before its verdict or (a stream that broke) after it."""
        told = self._judged(lease, False, now)
        self._count(1.0, now)
        return Change("open", self.key.label, self.breaker.retry_at) if told == "opened" else None

    def cooled(self, lease: Lease, until_at: float, now: float) -> Change | None:
        """A 429."""
        self._judged(lease, None, now)
        longer = until_at > self._cooling_until
        self._cool(until_at, now)
        return Change("cooling", self.key.label, until_at) if longer and until_at > now else None

    def benched(self, lease: Lease, status: int, now: float) -> Change | None:
        """A 401 or 403. None: no bench, for it is an only key's 403, or of a try sent before the last bench."""
        self._judged(lease, None, now)
        if lease.generation < self._bench_generation or (lease.alone and status == 403):
            return None
        if lease.alone:
            length_s = min(ONLY_BENCH_S * 2**self._benches, MAX_ONLY_BENCH_S)
        else:
            length_s = min((BENCH_403_S if status == 403 else BENCH_401_S) * 2**self._benches, MAX_BENCH_S)
        self._benches = min(self._benches + 1, MOST_DOUBLINGS)
        self._benched_at = now
        self._bench(status, now + length_s)
        return Change("benched", self.key.label, self._benched_until)

    def exonerate(self) -> Change | None:
        """The last bench was a 403, and not the key's fault: as if it had not been."""
        if self._bench_status != 403 or not self._secret_unproven:
            return None
        self._benches -= 1
        self._bench_generation = 0
        self._lift_bench()
        return Change("restored", self.key.label)

    def ended(self, lease: Lease) -> None:
        """The exchange is over, with a verdict or without; a second time is none."""
        if not lease.ended:
            self._judged(lease, None, 0.0)
            lease.ended = True
            self.in_flight -= 1

    def learn(self, kind: ChangeKind, until_at: float, now: float) -> None:
        """What another worker has found out.

        ``restored`` does not take back what was refused a moment ago: it may be the older of the two. A bench that
        was learned it does take back, for that and this came one after the other from the same worker.
        """
        if kind == "restored":
            self._learn_restored(now)
        elif kind == "closed":
            self.breaker.force_closed()
        elif kind == "open":
            self.breaker.force_open(until_at, now)
        elif kind == "cooling" and until_at > max(now, self._cooling_until):
            self._cool(until_at, now)
        elif kind == "benched" and until_at > max(now, self._benched_until):
            self._bench(0, until_at)

    def limits(self, remaining: Remaining, now: float) -> None:
        """What an answer said of the key's rate limits."""
        if self.share is not None:
            spent = max(self.share - remaining.share, 0.0) / max(1, self.uses - self._share_uses)
            self._share_per_use += COST_STEP * (spent - self._share_per_use)
        self.share = remaining.share
        self._share_uses = self.uses
        self._short_until = now + remaining.reset_in_s

    def shortage(self, now: float) -> float:
        """0 to 1: how near the key is to its rate limit, counting what has been lent since it was told."""
        if self.share is None or now >= self._short_until:
            return 0.0
        left = self.share - self._share_per_use * (self.uses - self._share_uses)
        return 0.0 if left >= SHORT_SHARE else min((SHORT_SHARE - left) / SHORT_SHARE, 1.0)

    def errors(self, now: float) -> float:
        """0 to 1: recent failures."""
        if not self._errors:
            return 0.0
        score = self._errors * math.exp((self._errors_at - now) / ERROR_DECAY_S)
        if score < ERROR_NOTHING:
            self._errors = 0.0
        return score

    def known(self, now: float) -> Known:
        """Its state in one word."""
        if now < self.until:
            return "benched" if self._benched_until > self._cooling_until else "cooling"
        breaker = self.breaker.state(now)
        if breaker == "open":
            return "open"
        return "probation" if self.probation or breaker == "half_open" else "healthy"

    def blocked(self, now: float) -> tuple[float, Blocked]:
        """When it may be usable again at the earliest, and what is in the way; only where it is not ``usable``."""
        open_until = self.breaker.retry_at if self.breaker.state(now) == "open" else -math.inf
        if now < self.until and self.until >= open_until:
            return self.until, "benched" if self._benched_until > self._cooling_until else "cooling"
        if open_until > now:
            return open_until, "open"
        return (self._probing_until if self.breaker.would_admit(now) else math.inf), "probing"

    def _judged(self, lease: Lease, good: bool | None, now: float) -> str:
        """Free the probe's place and tell the breaker; None is no verdict on it. Returns what it changed."""
        if lease is self._prober:
            self._prober = None
            self._probing_until = -math.inf
        before = lease.verdict
        if before:
            lease.verdict = "other"
            return self.breaker.fail(now) if before == "good" and good is False else ""
        lease.verdict = "good" if good else "other"
        if good is None:
            self.breaker.release(lease.permit)
            return ""
        return self.breaker.record(lease.permit, good, now)

    def _count(self, outcome: float, now: float) -> None:
        score = self.errors(now)
        self._errors = score + ERROR_STEP * (outcome - score)
        self._errors_at = now

    def _cool(self, until_at: float, now: float) -> None:
        self._generation += 1
        self._cooling_until = max(self._cooling_until, until_at)
        self._cooled_at = now
        self._limit_unproven = True
        self._settle()

    def _bench(self, status: int, until_at: float) -> None:
        self._generation += 1
        self._bench_generation = self._generation
        self._bench_status = status
        self._benched_until = until_at
        self._secret_unproven = True
        self._settle()

    def _lift_bench(self) -> None:
        self._benched_until = -math.inf
        self._secret_unproven = False
        self._settle()

    def _learn_restored(self, now: float) -> None:
        if now >= self._benched_at + TRAVEL_S:
            self._benches = 0
            self._lift_bench()
        if now >= self._cooled_at + TRAVEL_S:
            self._cooling_until = -math.inf
            self._limit_unproven = False
            self._settle()
        self.breaker.force_closed()

    def _settle(self) -> None:
        self.until = max(self._cooling_until, self._benched_until)
        self.probation = self._limit_unproven or self._secret_unproven
