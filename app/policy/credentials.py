"""Decide which of a provider's keys makes the next try (B33, B34, B35).

What is known of each key, and the states it goes through, is in ``key_state``: a cooling, benched or open key is
never leased, whatever the load, and one in probation makes one try at a time. Among the others:

1. Keys kept for the model, if there are any, else keys kept for none: a scarce pool is kept apart.
2. A conversation's own key (``affinity.rank``), for its prompt cache, while that key is well, not short of its
   rate limit, and has not much more to do than the others.
3. The least loaded one: tries in flight over weight, and at equal load in turn by weight. Recent errors and a rate
   limit that runs out add to it, and in proportion to the load, so that they count on a busy gateway as on an idle
   one: the 429 is avoided before it comes. A key that keeps failing is left alone while others are well, but for
   a trial now and then.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from app.policy.affinity import rank
from app.policy.breaker import Breaker, BreakerRules
from app.policy.key_state import Blocked, Change, ChangeKind, Key, KeyState, Known, Lease
from app.wire.ratelimit import Remaining

# A key that only fails counts like one with twenty times the load; one at its rate limit like fifty times.
ERROR_WEIGHT: Final = 20.0
SHORT_WEIGHT: Final = 50.0
# A key at this error score serves only when no other can, but for a trial now and then: what fails at once is
# never in flight, so by load it would look free.
ERRORS_BEARABLE: Final = 0.5
TRIAL_S: Final = 1.0
# A conversation leaves its key when that has more than so many times the load of the others and so many tries more
# in flight. (Twice its fair share would be no limit where there are two keys.)
OTHERS_FACTOR: Final = 2.0
OTHERS_SLACK: Final = 4.0
# Models are named by callers; so many pools are remembered.
MOST_POOLS: Final = 256


@dataclass(frozen=True, slots=True)
class Later:
    """No key may be leased now.

    Attributes:
        at: The earliest instant at which one may be; infinite while only a verdict can change that.
        why: What is in that key's way; ``unserved``: no key serves the model, nor will.
    """

    at: float
    why: Blocked | Literal["unserved"]


@dataclass(frozen=True, slots=True)
class CredentialStats:
    """One key as it is now.

    Attributes:
        label: Its name.
        state: In one word; ``probation`` also while its breaker is half-open.
        in_flight: Leases that have not ended.
        cooling_s: Until it may be tried again (cooling, benched or open); 0.0 when it may.
        errors: Recent failures, 0 to 1.
        remaining: What was left of its scarcest rate limit at the last answer, 0 to 1; None: never said.
        uses: Leases given.
    """

    label: str
    state: Known
    in_flight: int
    cooling_s: float
    errors: float
    remaining: float | None
    uses: int


class Credentials:
    """The keys of one provider. Times are monotonic seconds.

    A lease goes: ``choose``, one verdict (``answered``, ``failed``, ``cooled`` or ``benched``; none when the
    client leaves), perhaps ``failed`` after a good one (a stream that broke), ``ended``.

    Args:
        keys: In any order; labels differ.
        breaker_rules: Of the breaker that each key has.
        rnd: Chance in [0, 1), for the breakers.
        probe_patience_s: A try in probation that has no verdict after this long makes room for the next one, for a
            refusal would have come by then, while a long answer without streaming may take minutes.

    Raises:
        ValueError: Two keys with one label.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        breaker_rules: BreakerRules,
        rnd: Callable[[], float],
        probe_patience_s: float = math.inf,
    ) -> None:
        self._keys = tuple(
            KeyState(index, key, Breaker(breaker_rules, rnd), probe_patience_s) for index, key in enumerate(keys)
        )
        self._by_label = {state.key.label: state for state in self._keys}
        if len(self._by_label) < len(self._keys):
            raise ValueError("two keys have one label")
        self._unruled = tuple(state for state in self._keys if not state.key.models)
        self._ruled = len(self._unruled) < len(self._keys)
        self._pools: dict[str, tuple[KeyState, ...]] = {}
        self._turn = 0.0

    def choose(
        self, model: str, conversation: bytes, now: float, tried: Collection[int] = frozenset()
    ) -> Lease | Later:
        """Lease the best key for one try.

        Args:
            model: As ``affinity.model`` found it; "" for a request without one, which any pool may serve if all
                keys are kept for models.
            conversation: As ``affinity.conversation`` named it; b"" for none.
            now: The clock.
            tried: Indices that failed this exchange already: used only when no other key is usable.
        """
        pool = self._pool(model)
        usable = [state for state in pool if state.usable(now)]
        if tried:
            usable = [state for state in usable if state.index not in tried] or usable
        if not usable:
            return self._later(pool, now)
        best = usable[0]
        if len(usable) > 1:
            best = (
                self._trial(usable, now)
                or (self._own(conversation, usable, now) if conversation else None)
                or self._least(usable, now)
            )
        self._turn = max(self._turn, best.turn)
        best.turn = self._turn + 1 / best.key.weight
        return best.lend(len(pool) == 1, now)

    def usable(self, model: str, now: float, without: Collection[int]) -> bool:
        """Whether another key than those could be leased now."""
        return any(state.index not in without and state.usable(now) for state in self._pool(model))

    def serves(self, model: str) -> bool:
        """Whether any key may serve this model, well or not."""
        return bool(self._pool(model))

    def answered(self, lease: Lease, now: float, counted: bool = True) -> Change | None:
        """The upstream answered, and it is not the key's fault. Not ``counted``: a 4xx, which proves nothing."""
        return self._keys[lease.index].answered(lease, counted, now)

    def failed(self, lease: Lease, now: float) -> Change | None:
        """A 5xx, a 529, an ``overloaded_error``, a broken connection; also a stream that broke after its head."""
        return self._keys[lease.index].failed(lease, now)

    def cooled(self, lease: Lease, until_at: float, now: float) -> Change | None:
        """A 429: the key rests until ``until_at``, or longer if it was told so before."""
        return self._keys[lease.index].cooled(lease, until_at, now)

    def benched(self, lease: Lease, status: int, now: float) -> Change | None:
        """A 401 or 403: the key is put out. None: it is not, see ``key_state``."""
        return self._keys[lease.index].benched(lease, status, now)

    def exonerate(self, index: int) -> Change | None:
        """A second key answered 403 too, so it is the request's fault: the first is put back."""
        return self._keys[index].exonerate()

    def limits(self, index: int, remaining: Remaining, now: float) -> None:
        """What an answer said of the key's rate limits."""
        self._keys[index].limits(remaining, now)

    def ended(self, lease: Lease) -> None:
        """The exchange is over. Without a verdict nothing is held for or against the key; twice is once."""
        self._keys[lease.index].ended(lease)

    def learn(self, label: str, kind: ChangeKind, until_at: float, now: float) -> None:
        """What another worker has found out of the key called ``label``, if there is one."""
        if state := self._by_label.get(label):
            state.learn(kind, until_at, now)

    def snapshot(self, now: float) -> tuple[CredentialStats, ...]:
        """All keys as they are now, in the order they were configured."""
        return tuple(_stats(state, now) for state in self._keys)

    def _pool(self, model: str) -> tuple[KeyState, ...]:
        if not self._ruled:
            return self._keys
        pool = self._pools.get(model)
        if pool is None:
            if len(self._pools) >= MOST_POOLS:
                self._pools.clear()
            pool = self._pools[model] = self._pool_of(model)
        return pool

    def _pool_of(self, model: str) -> tuple[KeyState, ...]:
        if not model:
            return self._unruled or self._keys
        kept = tuple(
            state for state in self._keys if any(fnmatchcase(model, pattern) for pattern in state.key.models)
        )
        return kept or self._unruled

    def _trial(self, usable: list[KeyState], now: float) -> KeyState | None:
        """A key that keeps failing while others are well, when it is time to see whether it still does."""
        failing = [state for state in usable if state.errors(now) >= ERRORS_BEARABLE]
        if not failing or len(failing) == len(usable):
            return None
        return next((one for one in failing if not one.in_flight and now >= one.lent_at + TRIAL_S), None)

    def _own(self, conversation: bytes, usable: list[KeyState], now: float) -> KeyState | None:
        """The key this conversation has of those it may have, if any."""
        in_flight = sum([state.in_flight for state in usable])
        weight = sum([state.key.weight for state in usable])
        fit = [
            state
            for state in usable
            if _bearable(state, in_flight, weight)
            and state.errors(now) < ERRORS_BEARABLE
            and not state.shortage(now)
        ]
        if not fit:
            return None
        return fit[rank(conversation, [(state.key.label, state.key.weight) for state in fit])[0]]

    def _least(self, usable: list[KeyState], now: float) -> KeyState:
        well = [state for state in usable if state.errors(now) < ERRORS_BEARABLE] or usable
        best = well[0]
        least = math.inf
        for state in well:
            load = _load(state, now)
            if load < least or (load == least and state.turn < best.turn):
                best, least = state, load
        return best

    def _later(self, pool: tuple[KeyState, ...], now: float) -> Later:
        if not pool:
            return Later(math.inf, "unserved")
        at, why = min((state.blocked(now) for state in pool), key=lambda blocked: blocked[0])
        return Later(at, why)


def _bearable(state: KeyState, in_flight: int, weight: float) -> bool:
    """Whether a key has at most twice the load of the others, and a little; all have these sums."""
    own = state.key.weight
    return state.in_flight <= OTHERS_FACTOR * own * (in_flight - state.in_flight) / (weight - own) + OTHERS_SLACK


def _load(state: KeyState, now: float) -> float:
    load = state.in_flight / state.key.weight
    penalty = ERROR_WEIGHT * state.errors(now) + SHORT_WEIGHT * state.shortage(now)
    return load + penalty * (1 + load) if penalty else load


def _stats(state: KeyState, now: float) -> CredentialStats:
    known = state.known(now)
    wait_s = state.blocked(now)[0] - now if known in ("cooling", "benched", "open") else 0.0
    return CredentialStats(
        state.key.label, known, state.in_flight, wait_s, state.errors(now), state.share, state.uses
    )
