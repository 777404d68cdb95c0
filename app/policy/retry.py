"""Decide what follows a failed try: pass its answer on, or try again; when, and with whom (B30 to B33).

    failed try -> whole body still here, kind retryable, tries left, time left?   no: PassOn
               -> the credential's own failure, another is usable                 Again rotate, free
               -> the provider has no room, another credential is usable          Again rotate, charged
               -> another provider is left, and this one will not do, asks for    Again fallback, free
                  too long a wait, or the budget or the deadline is against one
               -> otherwise, after a delay within the deadline                    Again same, charged

A retry that repeats load is charged to the ``Budget``, whose refusal passes the answer on. Free are those that
cannot multiply load: a failing credential is out by then, a fallback goes elsewhere, and an unprocessed request
was none. The client's own retries count as tries made, so that client and gateway do not multiply.

Sources: RFC 9110 sections 5.6.7 (dates) and 10.2.3 (Retry-After); RFC 9113 section 8.7 (unprocessed requests);
``retry-after-ms`` and ``x-should-retry`` as Anthropic's SDKs read them.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Literal, Self

from app.policy.sliding import Sliding
from app.wire.headers import first

Kind = Literal["connect", "unprocessed", "broken", "status", "overloaded", "pool"]
Why = Literal["not_retryable", "tries_used_up", "retry_after_too_long", "deadline", "budget"]
Where = Literal["same", "rotate", "fallback"]

_ALWAYS = frozenset({"connect", "unprocessed", "overloaded"})
_NO_RIGHT = frozenset({401, 403})
_OWN = frozenset({401, 403, 429})  # the credential's own: another may do better at once
_NO_ROOM = frozenset({503, 529})
_AGAIN_4XX = frozenset({408, 409, 429})
_MAX_DOUBLINGS = 60  # beyond any cap; keeps the power a float
_MAX_JITTER_S = 0.25
# Nine digits are thirty years; what is longer is no delay that anybody meant.
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)")


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of one try.

    Attributes:
        kind: "connect": no connection, nothing was sent. "unprocessed": the upstream says that it did nothing
            (a GOAWAY below this stream, REFUSED_STREAM). "broken": broke before the head, perhaps processed.
            "status": an answer that says so. "overloaded": ``overloaded_error`` as the first event of a 200.
            "pool": no connection of ours was free in time.
        status: Of the answer; 0: there was none.
        retry_after_s: What the answer asks for, if it does.
        should_retry: What its ``x-should-retry`` says, if it does.
    """

    kind: Kind
    status: int = 0
    retry_after_s: float | None = None
    should_retry: bool | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How often, and how long apart.

    Attributes:
        max_attempts: Tries per exchange, the first included.
        base_s: Upper end of the first backoff, when the answer names no time; doubled from try to try.
        cap_s: Longest backoff, and the longest ``retry-after`` that is waited for here.
    """

    max_attempts: int = 3
    base_s: float = 1.0
    cap_s: float = 12.0


@dataclass(frozen=True, slots=True)
class State:
    """How far the tries of one exchange have come.

    Attributes:
        left: Tries that may still be made.
        made: Tries made.
    """

    left: int
    made: int = 0

    @classmethod
    def after(cls, made: int, rules: Rules, client_retries: int) -> Self:
        """After so many tries; ``client_retries`` is what the client says it has tried before (B32)."""
        return cls(max(1, rules.max_attempts - max(0, client_retries)) - made, made)


@dataclass(frozen=True, slots=True)
class Chances:
    """What could be done now.

    Attributes:
        repeatable: The same request may be processed twice without harm.
        resendable: Its body is still whole here, and nothing of an answer has gone to the client.
        another: Another credential of this provider is usable.
        fallback: Another provider is left.
        time_left_s: Until the exchange's deadline.
    """

    repeatable: bool
    resendable: bool
    another: bool
    fallback: bool
    time_left_s: float


@dataclass(frozen=True, slots=True)
class PassOn:
    """No further try: the client gets what came. ``why`` is a stable word for logs and metrics."""

    why: Why


@dataclass(frozen=True, slots=True)
class Again:
    """One try more.

    Attributes:
        after_s: To wait before it; less than the time that is left.
        where: "same": the credential is chosen as ever. "rotate": another credential. "fallback": the next
            provider.
        charged: It was taken from the budget.
    """

    after_s: float
    where: Where
    charged: bool


_FALLBACK: Final = Again(0.0, "fallback", charged=False)


def decide(
    state: State,
    failure: Failure,
    chances: Chances,
    rules: Rules,
    may_charge: Callable[[], bool],
    rnd: Callable[[], float],
) -> PassOn | Again:
    """What follows a failed try.

    Args:
        state: The failed try is counted.
        failure: What it came to.
        chances: What could be done now.
        rules: How often, and how long apart.
        may_charge: Takes one retry from the budget if it can; asked once, and only if all else is settled.
        rnd: Chance in [0, 1).
    """
    if not (chances.resendable and _retryable(failure, chances)):
        return PassOn("not_retryable")
    if state.left <= 0:
        return PassOn("tries_used_up")
    if chances.time_left_s <= 0:
        return PassOn("deadline")
    plan = _elsewhere(state, failure, chances) or _here(state, failure, rules, rnd)
    if isinstance(plan, Again):
        if plan.after_s >= chances.time_left_s:
            plan = PassOn("deadline")
        elif plan.charged and not may_charge():
            plan = PassOn("budget")
    if isinstance(plan, PassOn) and chances.fallback:  # exhausted here; elsewhere it is no repetition
        return _FALLBACK
    return plan


def _retryable(failure: Failure, chances: Chances) -> bool:
    """Whether a failure of this kind may be tried again by anyone."""
    if failure.kind == "status":
        # x-should-retry speaks of a repetition; with another credential, or elsewhere, it is none.
        if failure.status in _OWN and (chances.another or chances.fallback):
            return True
        if failure.status in _NO_RIGHT:
            return False
        if failure.should_retry is not None:
            return failure.should_retry
        return failure.status in _AGAIN_4XX or 500 <= failure.status <= 599
    return failure.kind in _ALWAYS or (failure.kind == "broken" and chances.repeatable)


def _elsewhere(state: State, failure: Failure, chances: Chances) -> Again | None:
    """At once with another credential or provider, where that promises more than waiting.

    Without either a 401 or 403 has been passed on before, so the rest of them never waits.
    """
    own = failure.kind == "status" and failure.status in _OWN
    no_room = failure.kind == "overloaded" or (failure.kind == "status" and failure.status in _NO_ROOM)
    if chances.another and (own or no_room):
        return Again(0.0, "rotate", charged=not own)
    if chances.fallback and (own or no_room or failure.kind == "connect" or state.left == 1):
        return _FALLBACK
    return None


def _here(state: State, failure: Failure, rules: Rules, rnd: Callable[[], float]) -> PassOn | Again:
    """The same again, after a while."""
    if failure.kind == "unprocessed" and state.made == 1:
        return Again(0.0, "same", charged=False)
    asked_s = failure.retry_after_s
    if asked_s is None:
        longest_s = min(rules.cap_s, rules.base_s * 2.0 ** min(state.made - 1, _MAX_DOUBLINGS))
        return Again(rnd() * longest_s, "same", charged=True)
    if asked_s > rules.cap_s:
        return PassOn("retry_after_too_long")
    return Again(asked_s + rnd() * min(_MAX_JITTER_S, 0.1 * asked_s), "same", charged=True)


def retry_after_s(pairs: Iterable[tuple[str, str]], wall_now: float) -> float | None:
    """Seconds that an answer's headers ask to wait, or None: they name no time that can be read.

    ``retry-after-ms`` is asked first. A time that has passed is 0.

    Args:
        pairs: Headers of the answer; names in any case.
        wall_now: Unix time, against which a date is read.
    """
    pairs = tuple(pairs)
    milliseconds = _number(first(pairs, "retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = first(pairs, "retry-after")
    seconds = _number(value)
    if seconds is None:
        at = _date(value)
        seconds = None if at is None else at - wall_now
    return None if seconds is None else max(0.0, seconds)


def _number(value: str | None) -> float | None:
    return float(value) if value is not None and _NUMBER.fullmatch(value := value.strip()) else None


def _date(value: str | None) -> float | None:
    """Unix time of an HTTP date in any of the three formats of RFC 9110."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
        # asctime names no zone, and means UTC
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def should_retry(pairs: Iterable[tuple[str, str]]) -> bool | None:
    """What ``x-should-retry`` says; None: nothing."""
    value = first(pairs, "x-should-retry")
    return None if value is None else {"true": True, "false": False}.get(value.strip().lower())


class Budget:
    """Retries that recent traffic can bear, so that they do not become the load themselves (B32).

    In any window there may be ``floor`` retries and one per ``1 / ratio`` requests. Times are monotonic seconds.

    Args:
        ratio: Retries per request.
        floor: Retries that are always allowed, for little traffic proves nothing.
        window_s: How far back requests and retries count.
    """

    __slots__ = ("_floor", "_ratio", "_recent")

    def __init__(self, ratio: float = 0.1, floor: int = 10, window_s: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._recent = Sliding(window_s)

    def on_request(self, now: float) -> None:
        """A client's request has come in; its retries are not told here."""
        self._recent.add(now, 1, 0)

    def take(self, now: float) -> bool:
        """Charge one retry, if one is left; whether it was."""
        if self.left(now) == 0:
            return False
        self._recent.add(now, 0, 1)
        return True

    def left(self, now: float) -> int:
        """Retries that may be charged now."""
        recent = self._recent
        recent.turn(now)
        return max(0, self._floor + int(self._ratio * recent.total) - recent.marked)
