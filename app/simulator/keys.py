"""Programs per upstream key: what the pretended provider answers to whom, and when; and what each key met.

    POST /__keys {"<x-api-key or bearer value>": [rule, ...]}   replaces all programs, starts the clock at 0
    GET  /__keys {"<key>": [[t_s, status], ...]}                messages requests since then, in order of arrival

    rule      {"from_s": 0, "to_s": 3.0 | null, "status": 529, "retry_after": "2", "after": 5, "times": 1,
               "headers": {...}, "body": {...} | "..."}
              status 200 (default): the ordinary answer. ``after``: the first N requests that reach it pass.
              ``times``: only that many are answered so, then the rule is used up.
    rate      {"rate": {"limit": 10, "window_s": 2.0}, "from_s": 0, "to_s": null}
              The window opens with the first request that finds none open. Beyond ``limit`` in it: 429 with
              retry-after; all answers carry anthropic-ratelimit-requests-*. As the API does, the times are whole
              seconds, rounded up: who waits that long is let in. What was refused does not count.

The first rule of a key that applies decides, before any scenario the model names. A status of 0 in the record is
an exchange that has no answer (yet).

Pure.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from app.simulator import content
from app.simulator.heads import Head, Pairs

KEPT = 20_000
_KEYS = 1000
_OTHERS = "other"
_LIMITED = "anthropic-ratelimit-requests-"


class Attempt:
    """One messages request and how it was answered.

    Attributes:
        t_s: Arrival, seconds since the programs were set.
        status: Of the answer's head; 0 before it.
        limits: Rate-limit headers to answer with instead of the usual ones.
    """

    __slots__ = ("limits", "status", "t_s")

    def __init__(self, t_s: float) -> None:
        self.t_s = t_s
        self.status = 0
        self.limits: Pairs = ()

    def answered(self, status: int, head: Head, extra: Pairs) -> tuple[Head, Pairs]:
        """Notes the answer; returns the header fields it is to carry."""
        self.status = status
        if not self.limits:
            return head, extra
        return content.UNLIMITED.get(head, head), (*extra, *self.limits)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a rule gives.

    Attributes:
        status: Never 200.
        retry_after: Value of the header, or None for the status's own.
        headers: Further header fields.
        body: Instead of the API's error body, if not empty.
    """

    status: int
    retry_after: str | None = None
    headers: Pairs = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Rate:
    """``limit`` requests in ``window_s`` seconds."""

    limit: int
    window_s: float


@dataclass(slots=True)
class Rule:
    """One entry of a program; fields as in the module's grammar.

    Attributes:
        met: Requests that reached it in its span.
        taken: Requests let in by the open window of a rate.
        ends_s: When that window closes.
    """

    from_s: float = 0.0
    to_s: float | None = None
    status: int = 200
    retry_after: str | None = None
    after: int = 0
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    rate: Rate | None = None
    met: int = 0
    taken: int = 0
    ends_s: float = -math.inf

    def applies(self, t_s: float) -> bool:
        """Whether a request that arrives at ``t_s`` is this rule's; counts it among those it met."""
        if t_s < self.from_s or (self.to_s is not None and t_s >= self.to_s):
            return False
        self.met += 1
        return self.met > self.after and (self.times is None or self.met <= self.after + self.times)

    def answer(self, attempt: Attempt, wall_s: float) -> Answer | None:
        """What this rule answers; None is the ordinary answer."""
        if self.rate is not None:
            return self._rated(attempt, self.rate, wall_s)
        if self.status == 200:
            return None
        body = self.body if isinstance(self.body, str) else json.dumps(self.body)
        text = b"" if self.body is None else body.encode()
        return Answer(self.status, self.retry_after, tuple(self.headers.items()), text)

    def _rated(self, attempt: Attempt, rate: Rate, wall_s: float) -> Answer | None:
        """Lets ``limit`` requests in until the window closes."""
        if attempt.t_s >= self.ends_s:
            self.ends_s, self.taken = attempt.t_s + rate.window_s, 0
        refused = self.taken >= rate.limit
        self.taken += not refused
        left_s = self.ends_s - attempt.t_s
        reset = datetime.fromtimestamp(math.ceil(wall_s + left_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        attempt.limits = (
            (f"{_LIMITED}limit", str(rate.limit)),
            (f"{_LIMITED}remaining", str(rate.limit - self.taken)),
            (f"{_LIMITED}reset", reset),
        )
        return Answer(429, str(math.ceil(left_s))) if refused else None


class Programs:
    """The programs of all keys, and the record of what they met."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Rule]] = {}
        self._seen: dict[str, deque[Attempt]] = {}
        self._began_s: float | None = None

    def load(self, data: object, now_s: float) -> None:
        """Replaces all programs and forgets the record.

        Raises:
            ValueError: ``data`` is not what the grammar says; nothing was changed.
        """
        if not isinstance(data, Mapping):
            raise ValueError("an object of key to list of rules is needed")
        self._rules = {key: _program(key, rules) for key, rules in data.items()}
        self._seen = {}
        self._began_s = now_s

    def meet(self, key: str, now_s: float, wall_s: float) -> tuple[Attempt, Answer | None]:
        """Notes a messages request with ``key``; what its program answers, None for the ordinary answer."""
        if self._began_s is None:
            self._began_s = now_s
        attempt = Attempt(now_s - self._began_s)
        seen = self._seen.get(key)
        if seen is None:
            name = key if len(self._seen) < _KEYS else _OTHERS
            seen = self._seen.setdefault(name, deque(maxlen=KEPT))
        seen.append(attempt)
        for rule in self._rules.get(key, ()):
            if rule.applies(attempt.t_s):
                return attempt, rule.answer(attempt, wall_s)
        return attempt, None

    def record(self) -> dict[str, list[tuple[float, int]]]:
        """Per key, arrival and status of its last 20,000 messages requests."""
        return {key: [(round(one.t_s, 6), one.status) for one in seen] for key, seen in self._seen.items()}


_GIVEN = {one.name for one in fields(Rule)} - {"met", "taken", "ends_s"}


def _program(key: str, rules: object) -> list[Rule]:
    """The rules of one key."""
    if not isinstance(rules, list):
        raise ValueError(f"{key}: a list of rules is needed")
    return [_rule(f"{key}[{index}]", rule) for index, rule in enumerate(rules)]


def _rule(where: str, given: object) -> Rule:
    """One rule, its values checked: a program that was misread would make a test pass for nothing."""
    if not isinstance(given, dict) or set(given) - _GIVEN:
        raise ValueError(f"{where}: an object with members of {sorted(_GIVEN)} is needed")
    try:
        values = {name: _TYPES[name](value) for name, value in given.items() if value is not None}
    except (TypeError, ValueError, KeyError, AttributeError) as fault:
        raise ValueError(f"{where}: {fault!r}") from fault
    return Rule(**values)


def _rate(given: dict[str, Any]) -> Rate:
    """The inner object of a rate rule."""
    return Rate(int(given["limit"]), float(given["window_s"]))


def _headers(given: dict[str, Any]) -> dict[str, str]:
    """Header fields as text."""
    return {str(name): str(value) for name, value in given.items()}


_TYPES: dict[str, Any] = {
    "from_s": float,
    "to_s": float,
    "status": int,
    "retry_after": str,
    "after": int,
    "times": int,
    "headers": _headers,
    "body": lambda given: given,
    "rate": _rate,
}
