"""Be one provider to this loop: its connections, slots, breaker and keys; admit tries and learn from them.

    enter  slots: run now or wait for a slot
    admit  gates, in order: breaker, then a key -> Ticket
    rest   wait, outside the room, for a key that cools
    judge  what came of the try, once: breaker and key learn of it, and other workers are told
    end    the exchange is over: the key's place is free

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.errors import BreakerOpen, NoCredential, UnservedModel
from app.exchange import Headers, Plan
from app.policy.breaker import Breaker, Permit
from app.policy.credentials import Credentials, CredentialStats, Later
from app.policy.key_state import Change, Lease
from app.policy.retry import Failure
from app.store.facts import Fact
from app.upstream.pool import Pool, PoolStats
from app.upstream.slots import Slots, SlotStats
from app.upstream.target_options import TargetOptions, mark_of, place_of
from app.wire import ratelimit

_COOL_S = 1.0
SOON_S = 12.0
"""A key that cools for longer than this is of no use to a request that comes now."""
_PASSING = frozenset({"cooling", "probing"})
READ_EVERY_S = 0.05
"""A key's rate-limit headers are read this often: reading costs 15 us, and what was used since is reckoned."""
PROBE_PATIENCE_S = 5.0
"""A probe without a verdict after this long makes room for the next: a whole answer may take minutes to come."""


@dataclass(frozen=True, slots=True)
class TargetStats:
    """A target as of now (B37)."""

    name: str
    slots: SlotStats
    breaker: str
    breaker_retry_in_s: float
    credentials: tuple[CredentialStats, ...]
    pool: PoolStats

    @property
    def usable(self) -> bool:
        """Some request could be sent now, or within seconds."""
        if self.breaker == "open":
            return False
        return not self.credentials or any(_serves_soon(one) for one in self.credentials)


def _serves_soon(one: CredentialStats) -> bool:
    return one.state not in ("benched", "open") and (one.state != "cooling" or one.cooling_s <= SOON_S)


class Ticket:
    """Leave to make one try: the breaker's permit and the key to use. Judged at most once, ended exactly once."""

    __slots__ = ("judged", "lease", "permit")

    def __init__(self, permit: Permit, lease: Lease | None) -> None:
        self.permit: Permit | None = permit
        self.lease = lease
        self.judged = False


class Target:
    """One provider on one loop.

    Args:
        options: See ``TargetOptions``.
        pool: Its connections.
        rnd: Random numbers in [0, 1).
        events: What is to be logged and counted on the worker side.
        share: Called with what other workers should know.
    """

    def __init__(
        self,
        options: TargetOptions,
        pool: Pool,
        rnd: Callable[[], float],
        events: deque[dict[str, object]],
        share: Callable[[Fact], None],
    ) -> None:
        self.options = options
        self.name = options.name
        self.pool = pool
        self.slots = Slots(options.concurrency, options.buffer_size, options.drop)
        self.breaker = Breaker(options.breaker, rnd)
        keys = [secret.key for secret in options.secrets]
        self.credentials = Credentials(keys, options.breaker, rnd, PROBE_PATIENCE_S) if keys else None
        self.place = place_of(options)
        self._marks = {secret.key.label: mark_of(secret) for secret in options.secrets}
        self._read_at = [-math.inf] * len(keys)
        self._labels = {mark: label for label, mark in self._marks.items()}
        self._events = events
        self._share = share
        self._waiting: set[asyncio.Future[None]] = set()

    # --- before a try

    def admit(self, plan: Plan, tried: frozenset[int], now: float) -> Ticket:
        """Leave to send ``plan`` now.

        Args:
            plan: What is to be sent.
            tried: Keys that have failed this exchange.
            now: Monotonic s.

        Raises:
            BreakerOpen, NoCredential: Not now; ``retry_after_s`` says when. Nothing was sent.
            UnservedModel: No key may serve this model.
        """
        lease = None
        if self.credentials is not None:
            if not self.breaker.would_admit(now):
                raise BreakerOpen(retry_after_s=_soon(self.breaker.retry_at - now))
            found = self._key(self.credentials, plan, tried, now)
            if isinstance(found, Later):
                raise _refusal(found, now)
            lease = found
        permit = self.breaker.admit(now)
        if permit is None:
            raise BreakerOpen(retry_after_s=_soon(self.breaker.retry_at - now))
        if permit.probe:
            asyncio.get_running_loop().call_later(PROBE_PATIENCE_S, self.breaker.release, permit)
        return Ticket(permit, lease)

    async def rest(self, plan: Plan, tried: frozenset[int], until: float) -> None:
        """Wait until it is worth asking for a key again; holds nothing meanwhile.

        Raises:
            NoCredential: That would be after ``until``, or waiting does not mend it.
        """
        while self.credentials is not None:
            now = time.monotonic()
            found = self._key(self.credentials, plan, tried, now)
            if not isinstance(found, Later):
                self.credentials.ended(found)
                return
            await self._cooled(found, until, now)

    def pair(self, ticket: Ticket) -> tuple[str, str] | None:
        """The header pair of the ticket's key."""
        return self.options.secrets[ticket.lease.index].pair if ticket.lease is not None else None

    def has_another(self, plan: Plan, ticket: Ticket, tried: frozenset[int], now: float) -> bool:
        """Another key than those tried, the ticket's among them, could be used now."""
        if self.credentials is None or ticket.lease is None:
            return False
        return self.credentials.usable(plan.model, now, tried | {ticket.lease.index})

    @staticmethod
    def _key(credentials: Credentials, plan: Plan, tried: frozenset[int], now: float) -> Lease | Later:
        found = credentials.choose(plan.model, plan.conversation, now, tried)
        if isinstance(found, Later) and found.why == "unserved":
            raise UnservedModel(f"No upstream credential of this gateway serves model {plan.model[:100]!r}.")
        return found

    async def _cooled(self, later: Later, until: float, now: float) -> None:
        """Wait until it is worth asking again: a rest and a probe end by themselves, nothing else is waited for.

        Raises:
            NoCredential: That would be after ``until``, or waiting does not mend it.
        """
        at = min(later.at, until) if later.why == "probing" else later.at
        if now >= until or at > until or later.why not in _PASSING:
            raise _refusal(later, now)
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(max(0.0, at - now) + 0.001, _settle, told)
        self._waiting.add(told)
        try:
            await told
        finally:
            self._waiting.discard(told)
            timer.cancel()

    # --- after a try

    def judge(self, ticket: Ticket, failure: Failure | None, status: int, headers: Headers, now: float) -> None:
        """Learn from a try.

        Args:
            ticket: Of the try.
            failure: What went wrong, None if nothing did (or what did was the client's fault).
            status: Of the answer, 0 without one.
            headers: Of the answer.
            now: Monotonic s.
        """
        ticket.judged = True
        self._judge_provider(ticket, failure, status, now)
        if self.credentials is not None and ticket.lease is not None:
            self._judge_key(self.credentials, ticket.lease, failure, status, headers, now)
        if self._waiting:
            self._rouse()

    def broke(self, ticket: Ticket) -> None:
        """The answer's body broke off after its head had been judged well."""
        now = time.monotonic()
        if self.breaker.fail(now) == "opened":
            self._breaker_opened()
        if self.credentials is not None and ticket.lease is not None:
            self._changed(self.credentials.failed(ticket.lease, now), now)

    def end(self, ticket: Ticket) -> None:
        """The try, or the exchange it served, is over."""
        if not ticket.judged and ticket.permit is not None:
            self.breaker.release(ticket.permit)
        if self.credentials is not None and ticket.lease is not None:
            self.credentials.ended(ticket.lease)
        if self._waiting:
            self._rouse()

    def exonerate(self, indices: frozenset[int]) -> None:
        """These keys were benched for a 403 that another key gave too: the request was at fault."""
        if self.credentials is not None:
            for index in indices:
                self._changed(self.credentials.exonerate(index), time.monotonic())
            self._rouse()

    def _judge_provider(self, ticket: Ticket, failure: Failure | None, status: int, now: float) -> None:
        permit = ticket.permit
        if permit is None:
            return
        if failure is None and 0 < status < 400:
            changed = self.breaker.record(permit, True, now)
        elif failure is not None and _is_providers(failure):
            changed = self.breaker.record(permit, False, now)
        else:
            self.breaker.release(permit)
            return
        if changed == "opened":
            self._breaker_opened()
        elif changed == "closed":
            self._tell("breaker_closed")
            self._share(Fact("closed", self.place, "", 0.0))

    def _breaker_opened(self) -> None:
        until = self.breaker.retry_at
        self._tell("breaker_opened", retry_in_s=round(until - time.monotonic(), 3))
        self._share(Fact("open", self.place, "", until))

    def _judge_key(
        self,
        credentials: Credentials,
        lease: Lease,
        failure: Failure | None,
        status: int,
        headers: Headers,
        now: float,
    ) -> None:
        if status and now >= self._read_at[lease.index] + READ_EVERY_S and len(self.options.secrets) > 1:
            self._read_at[lease.index] = now
            remaining = ratelimit.read(headers, time.time())
            if remaining is not None:
                credentials.limits(lease.index, remaining, now)
        if failure is None:
            change = credentials.answered(lease, now, counted=0 < status < 400)
        elif failure.status == 429:
            change = credentials.cooled(lease, now + _rest_s(failure, headers), now)
        elif failure.status in (401, 403):
            change = credentials.benched(lease, failure.status, now)
        elif failure.kind in ("status", "overloaded", "broken") and _is_providers(failure):
            change = credentials.failed(lease, now)
        else:
            change = credentials.answered(lease, now, counted=False)
        self._changed(change, now, status)

    def _changed(self, change: Change | None, now: float, status: int = 0) -> None:
        """Say what has become of a key, here and to the other workers."""
        if change is None:
            return
        facts: dict[str, object] = {"credential": change.label}
        if change.until_at:
            facts["for_s"] = round(change.until_at - now, 3)
        if status:
            facts["status"] = status
        self._tell(f"credential_{change.kind}", **facts)
        self._share(Fact(change.kind, self.place, self._marks[change.label], change.until_at))

    # --- what others learned, and what is known

    def learn(self, fact: Fact, now: float) -> None:
        """What another worker found out about this target."""
        if fact.credential:
            label = self._labels.get(fact.credential)
            if self.credentials is not None and label is not None:
                self.credentials.learn(label, fact.kind, fact.until_at, now)
        elif fact.kind == "open":
            self.breaker.force_open(fact.until_at, now)
        elif fact.kind == "closed":
            self.breaker.force_closed()
        self._rouse()

    def stats(self, now: float) -> TargetStats:
        """As of now."""
        return TargetStats(
            name=self.name,
            slots=self.slots.stats(now),
            breaker=self.breaker.state(now),
            breaker_retry_in_s=max(0.0, self.breaker.retry_at - now) if self.breaker.state(now) == "open" else 0.0,
            credentials=self.credentials.snapshot(now) if self.credentials is not None else (),
            pool=self.pool.stats(),
        )

    def _rouse(self) -> None:
        for told in self._waiting:
            _settle(told)

    def _tell(self, event: str, **facts: object) -> None:
        self._events.append({"event": event, "provider": self.name, **facts})


_REFUSALS: Mapping[str, str] = {
    "cooling": "Every usable upstream credential is rate-limited right now.",
    "probing": "Every usable upstream credential is rate-limited right now.",
    "benched": "The upstream has rejected every configured credential.",
    "open": "The upstream is failing for every configured credential.",
}


def _refusal(later: Later, now: float) -> NoCredential:
    wait_s = later.at - now if math.isfinite(later.at) else _COOL_S
    return NoCredential(_REFUSALS.get(later.why), retry_after_s=_soon(wait_s))


def _is_providers(failure: Failure) -> bool:
    """The provider failed, rather than the request, the key or our own pool."""
    if failure.kind == "status":
        return failure.status >= 500
    return failure.kind in ("connect", "broken", "overloaded")


def _rest_s(failure: Failure, headers: Headers) -> float:
    """How long a 429 puts a key to rest: as it says, else until the reset of what is used up, else a second."""
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    remaining = ratelimit.read(headers, time.time())
    return _COOL_S if remaining is None or remaining.exhausted_for_s is None else remaining.exhausted_for_s


def _soon(seconds: float) -> float:
    """A ``retry-after`` in whole seconds, at least one: what every client understands."""
    return float(max(1, math.ceil(seconds)))


def _settle(told: asyncio.Future[None]) -> None:
    if not told.done():
        told.set_result(None)
