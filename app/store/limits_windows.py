"""Decide by the ``limits`` library's windows, on the node's counters or in Redis, whether a caller may go on.

    requests     sliding window counter of a minute: what the minute before saw fades out evenly
    tokens       fixed window of a UTC day: asked before the request, booked after its answer
    concurrent   our own: places in the node's counters; in Redis leases in a sorted set, refreshed while they last

Both deciders look at all three before anything is counted, so what is refused counts against nothing. In Redis one
script does it all: each trip costs a worker some 80 us, and the library alone would make three. The script holds
the library's own, as functions, so the windows are its windows.

Only ``callers`` imports this, and only where there are limits: the library takes 60 ms and 5 MiB to import.
Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from limits import RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import RedisStorage, SlidingWindowCounterSupport, Storage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from app.store.counters import Entry, NodeCounters

MINUTE_S: Final = 60
DAY_S: Final = 86_400
LEASE_S: Final = 15
"""How long a place in Redis outlives a worker that is gone."""
_KEEP_S: Final = 2 * DAY_S
_BOUNDLESS: Final = 1 << 53
_KINDS: Final[tuple[Kind, ...]] = ("", "tokens", "concurrent", "requests")

Kind = Literal["", "tokens", "concurrent", "requests"]
Window = tuple[int, float, int, float]
"""Count of the window before and seconds until it is forgotten; the same of the current one."""


class Taken(NamedTuple):
    """What a decider said, and how things stand after it."""

    refused: Kind
    window: Window
    tokens: int
    running: int

    def left(self, limit: int) -> int:
        """How many of a minute's requests are left."""
        previous, previous_s, current, _ = self.window
        return max(0, limit - int(previous * previous_s / MINUTE_S) - current)

    @property
    def whole_in_s(self) -> float:
        """After how many seconds all of a minute's requests are free again, if nothing else comes."""
        _, previous_s, current, current_s = self.window
        return current_s if current else previous_s

    def free_in_s(self, limit: int) -> float:
        """After how many seconds a minute that is used up lets the next request in, if nothing else comes."""
        previous, previous_s, current, current_s = self.window
        if current < limit:  # what the minute before left has to fade to less than a whole request too many
            return max(0.0, previous_s - MINUTE_S * (limit - current) / previous) if previous else 0.0
        return current_s - MINUTE_S * min(1.0, limit / current)  # the same, once this minute is the one before


class _Minute(RateLimitItemPerMinute):
    """Its key is without the limit: a reload that changes the limit goes on counting."""

    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return self.namespace


class _Day(RateLimitItemPerDay):
    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return self.namespace


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller's limits (0: none) and the keys it is counted under."""

    name: str
    requests: int
    concurrent: int
    tokens: int
    minute: RateLimitItemPerMinute
    day: RateLimitItemPerDay
    places: str

    @classmethod
    def of(cls, name: str, requests: int, concurrent: int, tokens: int) -> Caller:
        """Make the keys once, not per request."""
        minute, day = _Minute(requests, namespace=f"requests/{name}"), _Day(tokens, namespace=f"tokens/{name}")
        return cls(name, requests, concurrent, tokens, minute, day, f"concurrent/{name}")


class NodeStorage(Storage, SlidingWindowCounterSupport):
    """Storage of the ``limits`` library on the node's counters. To be called inside their section.

    Windows begin at multiples of their length, so that of a day is the UTC day.
    """

    STORAGE_SCHEME = None

    def __init__(self, counters: NodeCounters, wall: Callable[[], float]) -> None:
        super().__init__()
        self._counters = counters
        self._wall = wall

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = self._wall()
        entry = self._counters.read(key, now)
        ends_at = entry.ends_at or (now // expiry + 1) * expiry
        self._counters.write(key, Entry(ends_at, 0, entry.current + amount, 0))
        return entry.current + amount

    def get(self, key: str) -> int:
        return self._counters.read(key, self._wall()).current

    def get_expiry(self, key: str) -> float:
        now = self._wall()
        return self._counters.read(key, now).ends_at or now

    def check(self) -> bool:
        return not self._counters.fault

    def reset(self) -> int | None:
        raise NotImplementedError  # the counters belong to all workers

    def clear(self, key: str) -> None:
        self._counters.write(key, Entry())

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = self._wall()
        previous, previous_s, current, _ = self._window(key, expiry, now)
        if int(previous * previous_s / expiry) + current + amount > limit:
            return False
        window = int(now // expiry)
        self._counters.write(key, Entry((window + 2.0) * expiry, window, current + amount, previous))
        return True

    def get_sliding_window(self, key: str, expiry: int) -> Window:
        return self._window(key, expiry, self._wall())

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        self.clear(key)

    def _window(self, key: str, expiry: int, now: float) -> Window:
        entry = self._counters.read(key, now)
        window = int(now // expiry)
        left_s = (window + 1) * expiry - now
        if entry.window == window:
            return entry.previous, left_s, entry.current, left_s + expiry
        if entry.window == window - 1:
            return entry.current, left_s, 0, 0.0
        return 0, 0.0, 0, 0.0


class NodeLimits:
    """Decides by the node's counters.

    Args:
        counters: Of the node, or of this process alone.
        wall: Seconds since 1970.
    """

    def __init__(self, counters: NodeCounters, wall: Callable[[], float]) -> None:
        self._counters = counters
        self._wall = wall
        self._storage = NodeStorage(counters, wall)
        self._sliding = SlidingWindowCounterRateLimiter(self._storage)
        self._fixed = FixedWindowRateLimiter(self._storage)

    def take(self, caller: Caller) -> Taken:
        """Admit the request and count it, or refuse it and count nothing."""
        with self._counters:
            refused = self._refused(caller)
            if not refused and caller.concurrent:
                self._enter(caller)
            return Taken(
                refused,
                self._storage.get_sliding_window(caller.minute.key_for(), MINUTE_S)
                if caller.requests
                else _NO_WINDOW,
                self._storage.get(caller.day.key_for()) if caller.tokens else 0,
                self._counters.running(caller.places) if caller.concurrent else 0,
            )

    def book(self, caller: Caller) -> None:
        """Count a request that was admitted elsewhere."""
        with self._counters:
            if caller.requests:
                self._storage.acquire_sliding_window_entry(caller.minute.key_for(), _BOUNDLESS, MINUTE_S)
            if caller.concurrent:
                self._enter(caller)

    def tokens(self, caller: Caller) -> int:
        """Tokens booked on this node today."""
        with self._counters:
            return self._storage.get(caller.day.key_for())

    def give_back(self, caller: Caller, tokens: int) -> None:
        """The request is over."""
        if not caller.concurrent and not tokens:
            return
        with self._counters:
            if caller.concurrent:
                self._counters.leave(caller.places)
            if tokens:
                self._fixed.hit(caller.day, cost=tokens)

    def reap(self) -> None:
        """Give back what workers had under way that are gone."""
        with self._counters:
            self._counters.reap()

    def _refused(self, caller: Caller) -> Kind:
        if caller.tokens and not self._fixed.test(caller.day):
            return "tokens"
        if caller.concurrent and self._full(caller) and (not self._counters.reap() or self._full(caller)):
            return "concurrent"
        if caller.requests and not self._sliding.hit(caller.minute):
            return "requests"
        return ""

    def _full(self, caller: Caller) -> bool:
        return self._counters.running(caller.places) >= caller.concurrent

    def _enter(self, caller: Caller) -> None:
        now = self._wall()
        self._counters.enter(caller.places, (now // DAY_S + 1) * DAY_S + _KEEP_S)


_NO_WINDOW: Final[Window] = (0, 0.0, 0, 0.0)

_TAKE: Final = """
local function hit(KEYS, ARGV)
{acquire}
end
local function look(KEYS, ARGV)
{window}
end
local requests, concurrent, tokens = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local refused, used, running = 0, 0, 0
local seen = {{}}
if tokens > 0 then
  used = math.max(tonumber(redis.call('get', KEYS[3]) or 0), tonumber(ARGV[4]))
end
local time = redis.call('time')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if concurrent > 0 then
  redis.call('zremrangebyscore', KEYS[4], '-inf', now_ms)
  running = redis.call('zcard', KEYS[4])
end
if tokens > 0 and used >= tokens then
  refused = 1
elseif concurrent > 0 and running >= concurrent then
  refused = 2
elseif requests > 0 and not hit({{KEYS[1], KEYS[2]}}, {{requests, ARGV[5], 1}}) then
  refused = 3
elseif concurrent > 0 then
  redis.call('zadd', KEYS[4], now_ms + tonumber(ARGV[6]), ARGV[7])
  redis.call('pexpire', KEYS[4], ARGV[6])
  running = running + 1
end
if requests > 0 then
  seen = look({{KEYS[1], KEYS[2]}}, {{ARGV[5]}})
end
local said = {{refused, used, running}}
for place = 1, 4 do
  said[place + 3] = tonumber(seen[place] or 0) or 0
end
return said
"""
_GIVE_BACK: Final = """
local function add(KEYS, ARGV)
{add}
end
if ARGV[1] ~= '' then
  redis.call('zrem', KEYS[1], ARGV[1])
end
if tonumber(ARGV[2]) > 0 then
  add({{KEYS[2]}}, {{ARGV[3], ARGV[2]}})
end
"""
_REFRESH: Final = """
local time = redis.call('time')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
for place = 2, #ARGV do
  redis.call('zadd', KEYS[1], until_ms, ARGV[place])
end
redis.call('pexpire', KEYS[1], ARGV[1])
"""


class RedisLimits:
    """Decides in Redis, for all nodes. Whatever goes wrong there is raised as one of ``errors``.

    Args:
        client: A redis-py client.
        wall: Seconds since 1970; names the day.
    """

    def __init__(self, client: Any, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._client = client
        storage = RedisStorage("redis://", connection_pool=client.connection_pool, key_prefix="penstock")
        found = storage.base_exceptions
        self.errors: tuple[type[Exception], ...] = (OSError, *(found if isinstance(found, tuple) else (found,)))
        self._named = storage.prefixed_key
        parts = {
            "acquire": storage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode(),
            "window": storage.SCRIPT_SLIDING_WINDOW.decode(),
            "add": storage.SCRIPT_INCR_EXPIRE.decode(),
        }
        self._take = client.register_script(_TAKE.format(**parts))
        self._give_back = client.register_script(_GIVE_BACK.format(**parts))
        self._refresh = client.register_script(_REFRESH)

    def take(self, caller: Caller, lease: str, tokens: int) -> Taken:
        """Admit the request under ``lease`` and count it, or refuse it and count nothing.

        Args:
            caller: Whose request it is.
            lease: Names its concurrent place.
            tokens: What the node knows of today's tokens: a Redis that lost its data may know less.
        """
        key = self._key(caller, "requests")
        keys = [f"{key}/-1", key, self._today(caller), self._key(caller, "concurrent")]
        limits = [caller.requests, caller.concurrent, caller.tokens]
        said = self._take(keys, [*limits, tokens, MINUTE_S, LEASE_S * 1000, lease])
        refused, used, running, previous, previous_ms, current, current_ms = (int(number) for number in said)
        window = (previous, max(0, previous_ms) / 1000, current, max(0, current_ms) / 1000)
        return Taken(_KINDS[refused], window, used, running)

    def give_back(self, caller: Caller, lease: str, tokens: int) -> bool:
        """The request under ``lease`` ("": none) is over and has used ``tokens``. True: noted."""
        keys = [self._key(caller, "concurrent"), self._today(caller)]
        self._give_back(keys, [lease, tokens, DAY_S])
        return True

    def refresh(self, leases: Mapping[str, Caller], live: Mapping[str, Caller]) -> None:
        """Let leases last on, or make them anew in a Redis that does not know them.

        Args:
            leases: A copy of ``live``.
            live: Looked at again afterwards: a lease that ended meanwhile must not come back.
        """
        by_caller: dict[str, list[str]] = {}
        for lease, caller in leases.items():
            by_caller.setdefault(self._key(caller, "concurrent"), []).append(lease)
        for key, of_caller in by_caller.items():
            self._refresh([key], [LEASE_S * 1000, *of_caller])
            ended: Sequence[str] = [lease for lease in of_caller if lease not in live]
            if ended:
                self._client.zrem(key, *ended)

    def ping(self) -> None:
        """Raises where Redis does not answer."""
        self._client.ping()

    def _key(self, caller: Caller, what: str) -> str:
        return self._named(f"{{{caller.name}}}/{what}")

    def _today(self, caller: Caller) -> str:
        return self._key(caller, f"tokens/{int(self._wall() // DAY_S)}")
