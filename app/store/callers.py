"""Hold callers to the limits of their gateway keys: requests a minute, requests at once, tokens a day.

Without Redis the node's counters decide, for all its workers. With Redis it decides for all nodes:

    starting --pump: it answers--> shared --it fails, in a request or in pump--> degraded
    starting --pump: it does not--> degraded --pump, at most once a second: it answers--> shared

Until it is shared the node's counters decide, requests do not go near Redis, and the tokens they use are noted and
brought to it afterwards. The counters are kept up in both states, so a node goes on from what it has seen. A Redis
that comes back empty forgets the minute and the other nodes' tokens of the day, never this node's own.

The first failure is the only one that requests wait for, at most for the client's timeout: it must not try again
by itself. As many requests of a worker are at Redis at a time as the client has connections; the others wait in
line, for as long at most, and find out there; whoever waits longer than that is decided by the node.

Requests a minute: in no minute of the clock more than the limit; after a burst at the end of one the next fills
up at the pace of the limit (the library's sliding window counter).

Runs on: worker.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from app.errors import CallerLimited
from app.store.counters import NodeCounters

if TYPE_CHECKING:
    from app.store.limits_windows import Caller, RedisLimits, Taken

Tell = Callable[[dict[str, object]], None]
Pairs = list[tuple[str, str]]
T = TypeVar("T")

TIMEOUT_S: Final = 0.25
_RETRY_S: Final = 1.0
_REFRESH_S: Final = 5.0
_AT_ONCE: Final = 4  # redis.CALLERS_CONNECTIONS
_DAY_S: Final = 86_400
_MOST_TOKENS: Final = 10**12  # of one exchange: whatever an upstream states, a day's sum fits its counter
_WORTH_WAITING_S: Final = 60  # the official SDKs wait no longer, and would ask again at once


@dataclass(frozen=True, slots=True)
class CallerRule:
    """What one gateway key allows; 0 is no limit.

    Attributes:
        name: Of the key, as ``admit`` gets it.
    """

    name: str
    requests_per_minute: int = 0
    concurrent_requests: int = 0
    tokens_per_day: int = 0

    @property
    def limits(self) -> bool:
        """Some limit is set."""
        return bool(self.requests_per_minute or self.concurrent_requests or self.tokens_per_day)


class Admission:
    """One request that was let in.

    Attributes:
        headers: What is left to its caller.
        counts_tokens: Its tokens have to be told to ``finish``.
    """

    __slots__ = ("_desk", "_lease", "_open", "counts_tokens", "headers")

    def __init__(
        self, headers: Pairs, desk: CallerLimits | None = None, caller: Caller | None = None, lease: str = ""
    ) -> None:
        self.headers = headers
        self._desk = desk
        self._lease = lease
        self._open = {} if caller is None else {lease: caller}
        self.counts_tokens = caller is not None and caller.tokens > 0

    def finish(self, tokens: int) -> None:
        """Give the concurrent place back and book the tokens, once. Also when the exchange failed."""
        caller = self._open.pop(self._lease, None)  # found by one thread only
        if caller is not None and self._desk is not None:
            self._desk.finish(caller, self._lease, min(max(0, tokens), _MOST_TOKENS) if caller.tokens else 0)


class CallerLimits:
    """The limits of all callers, seen from one worker.

    Args:
        rules: One per gateway key.
        path: The file that the node's workers share (``counters``). None: this process counts alone.
        redis_client: Gives a redis-py client, or None while there is none; itself None: no Redis.
        tell: Takes the events ``caller_limits_degraded``, ``caller_limits_restored`` and what ``counters`` says.
        wall: Seconds since 1970.
        clock: Monotonic seconds.

    Attributes:
        any: Some rule limits something; otherwise nothing here costs anything.
    """

    def __init__(
        self,
        rules: Sequence[CallerRule],
        path: str | None,
        redis_client: Callable[[], Any | None] | None,
        tell: Tell,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limited = [rule for rule in rules if rule.limits]
        self.any = bool(limited)
        self._wall = wall
        self._callers: dict[str, Caller] = {}
        self._counters: NodeCounters | None = None
        self._shared: _Shared | None = None
        if limited:
            from app.store import limits_windows  # imports ssl, and much more: only where it is needed

            for rule in limited:
                self._callers[rule.name] = limits_windows.Caller.of(
                    rule.name, rule.requests_per_minute, rule.concurrent_requests, rule.tokens_per_day
                )
            self._counters = NodeCounters(path, len(limited), tell)
            self._node = limits_windows.NodeLimits(self._counters, wall)
            if redis_client is not None:
                make = limits_windows.RedisLimits
                self._shared = _Shared(redis_client, lambda client: make(client, wall), tell, clock)

    @property
    def degraded(self) -> str:
        """Why limits hold for less than they should: a node without Redis, a worker without the node; or ""."""
        if self._shared is not None and self._shared.degraded:
            return self._shared.degraded
        return "counters_unavailable" if self._counters is not None and self._counters.fault else ""

    def counts_tokens(self, name: str) -> bool:
        """The tokens of this caller's requests have to be told to ``finish``."""
        caller = self._callers.get(name)
        return caller is not None and caller.tokens > 0

    def admit(self, name: str) -> Admission:
        """Let a request in, counting it, or refuse it, counting nothing.

        Raises:
            CallerLimited: A limit of ``name`` is used up.
        """
        caller = self._callers.get(name)
        if caller is None:
            return Admission([])
        lease, taken = "", None
        if self._shared is not None:
            known = self._node.tokens(caller) if caller.tokens else 0
            lease, taken = self._shared.take(caller, known)
        if taken is None:
            taken = self._node.take(caller)
            if taken.refused and self._shared is not None:
                self._shared.forget(lease)
        elif not taken.refused:
            self._node.book(caller)
        headers = _headers(caller, taken, self._wall())
        if taken.refused:
            raise _refusal(caller, taken, headers, self._wall())
        return Admission(headers, self, caller, lease)

    def finish(self, caller: Caller, lease: str, tokens: int) -> None:
        """What ``Admission.finish`` does, once."""
        self._node.give_back(caller, tokens)
        if self._shared is not None:
            self._shared.give_back(caller, lease, tokens)

    def pump(self) -> None:
        """To be called about every quarter second: leases last on, the dead give back, Redis is tried again."""
        if self.any:
            self._node.reap()
            if self._shared is not None:
                self._shared.pump()

    def close(self) -> None:
        """Give everything back that this worker has under way."""
        if self._shared is not None:
            self._shared.close()
        if self._counters is not None:
            self._counters.close()


class _Shared:
    """What Redis decides, for as long as it does; see the module.

    Args:
        client: As ``CallerLimits`` gets it.
        make: Makes the decider for a client.
        tell: Takes events.
        clock: Monotonic seconds.

    Attributes:
        degraded: Why the node decides: ``redis_starting``, ``redis_unreachable``, ``redis_timeout``,
            ``redis_refused``; or "".
    """

    def __init__(
        self,
        client: Callable[[], Any | None],
        make: Callable[[Any], RedisLimits],
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self.degraded = "redis_starting"
        self._client = client
        self._make = make
        self._tell = tell
        self._clock = clock
        self._redis: RedisLimits | None = None
        self._made_for: Any = None
        self._gate = threading.BoundedSemaphore(_AT_ONCE)
        self._guard = threading.Lock()
        self._leases: dict[str, Caller] = {}
        self._owed: dict[str, tuple[Caller, int]] = {}
        self._ids = itertools.count()
        self._prefix = uuid.uuid4().hex[:12]
        self._pid = os.getpid()
        self._next_at = -math.inf
        self._lost_at: float | None = None

    def take(self, caller: Caller, known_tokens: int) -> tuple[str, Taken | None]:
        """Ask Redis. None: it did not say; the lease is noted all the same, for it may have been taken."""
        lease = ""
        if caller.concurrent:
            lease = f"{self._prefix}-{os.getpid()}-{next(self._ids)}"
            self._leases[lease] = caller
        taken = self._ask(lambda redis: redis.take(caller, lease, known_tokens))
        if taken is not None and taken.refused:
            self.forget(lease)
        return lease, taken

    def forget(self, lease: str) -> None:
        """This lease is not refreshed any more."""
        self._leases.pop(lease, None)

    def give_back(self, caller: Caller, lease: str, tokens: int) -> None:
        """End a lease and book tokens; where Redis does not take them, they are owed."""
        self.forget(lease)
        if not lease and not tokens:
            return
        if self._ask(lambda redis: redis.give_back(caller, lease, tokens)) is None and tokens:
            self._owe(caller, tokens)

    def pump(self) -> None:
        """Refresh what is due; while degraded, see once a second whether Redis answers again."""
        if self._pid != os.getpid():  # a fork: what was under way is the parent's
            self._pid = os.getpid()
            self._leases, self._owed = {}, {}
        now = self._clock()
        if now < self._next_at and (self.degraded or not self._owed):
            return
        self._next_at = now + (_RETRY_S if self.degraded else _REFRESH_S)
        if self._call(self._catch_up) is None or not self.degraded:
            return
        with self._guard:
            lost_at, self._lost_at, self.degraded = self._lost_at, None, ""
        if lost_at is not None:
            self._tell({"event": "caller_limits_restored", "degraded_s": round(now - lost_at, 3)})

    def close(self) -> None:
        """End this worker's leases, where Redis is there to hear it."""
        leases, self._leases = self._leases, {}
        for lease, caller in leases.items():
            self.give_back(caller, lease, 0)

    def _catch_up(self, redis: RedisLimits) -> bool:
        redis.ping()
        redis.refresh(dict(self._leases), self._leases)
        while self._owed:
            with self._guard:
                _, (caller, tokens) = self._owed.popitem()
            try:
                redis.give_back(caller, "", tokens)
            except redis.errors:
                self._owe(caller, tokens)
                raise
        return True

    def _owe(self, caller: Caller, tokens: int) -> None:
        with self._guard:
            _, before = self._owed.get(caller.name, (caller, 0))
            self._owed[caller.name] = (caller, before + tokens)

    def _ask(self, what: Callable[[RedisLimits], T]) -> T | None:
        """What Redis says, in a request: None without delay where it is known not to answer."""
        if self.degraded or not self._gate.acquire(timeout=TIMEOUT_S):
            return None
        try:
            return None if self.degraded else self._call(what)
        finally:
            self._gate.release()

    def _call(self, what: Callable[[RedisLimits], T]) -> T | None:
        client = self._client()
        if client is None:
            self._lost("redis_unreachable", "no connection")
            return None
        redis = self._redis
        if redis is None or client is not self._made_for:
            redis = self._redis = self._make(client)
            self._made_for = client
        try:
            return what(redis)
        except redis.errors as error:
            self._lost(_reason(error), f"{type(error).__name__}: {error}")
            return None

    def _lost(self, reason: str, error: str) -> None:
        with self._guard:
            first, self.degraded = self._lost_at is None, reason
            if first:
                self._lost_at = self._clock()
                self._next_at = self._lost_at + _RETRY_S
        if first:
            self._tell({"event": "caller_limits_degraded", "reason": reason, "error": error})


def _reason(error: Exception) -> str:
    """The word for ``degraded``, low in number. By name: ``redis`` itself is only imported where it is used."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "TimeoutError" in names:
        return "redis_timeout"
    return "redis_refused" if "ResponseError" in names else "redis_unreachable"


def _headers(caller: Caller, taken: Taken, now: float) -> Pairs:
    """What is left, after the vendor's model: ``reset`` is when a limit is whole again (RFC 3339)."""
    pairs: Pairs = []
    if caller.requests:
        pairs += (
            ("x-penstock-ratelimit-requests-limit", str(caller.requests)),
            ("x-penstock-ratelimit-requests-remaining", str(taken.left(caller.requests))),
            ("x-penstock-ratelimit-requests-reset", _at(now + taken.whole_in_s)),
        )
    if caller.tokens:
        pairs += (
            ("x-penstock-ratelimit-tokens-limit", str(caller.tokens)),
            ("x-penstock-ratelimit-tokens-remaining", str(max(0, caller.tokens - taken.tokens))),
            ("x-penstock-ratelimit-tokens-reset", _at(now + _day_left_s(now))),
        )
    if caller.concurrent:
        pairs += (
            ("x-penstock-ratelimit-concurrent-limit", str(caller.concurrent)),
            ("x-penstock-ratelimit-concurrent-remaining", str(max(0, caller.concurrent - taken.running))),
        )
    return pairs


def _refusal(caller: Caller, taken: Taken, headers: Pairs, now: float) -> CallerLimited:
    """Which limit it was, its value, and when it is free again."""
    if taken.refused == "concurrent":
        wait_s, free = 1, "one is free when one of them ends"
        what = f"has all of its {caller.concurrent} concurrent requests under way"
    else:
        if taken.refused == "tokens":
            left_s, what = _day_left_s(now), f"has used up its {caller.tokens} tokens per day"
        else:
            left_s = taken.free_in_s(caller.requests)
            what = f"has used up its {caller.requests} requests per minute"
        wait_s = int(left_s) + 1
        free = f"free again in {wait_s} s, at {_at(now + wait_s)}"
    error = CallerLimited(f"Gateway key {caller.name} {what}; {free}.", retry_after_s=wait_s)
    error.headers = tuple(headers)
    error.should_retry = wait_s <= _WORTH_WAITING_S
    return error


def _day_left_s(now: float) -> float:
    return _DAY_S - now % _DAY_S


def _at(instant: float) -> str:
    return _stamp(math.ceil(instant))


@lru_cache(maxsize=256)
def _stamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
