"""Gather one exchange's facts, tell the client what it waited for, and make the Record at the end, once.

Runs on: worker.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol, cast

from app.bridge.call import Crossing
from app.errors import ClientGone, GatewayError
from app.exchange import Exchange, Headers, Journey, Record, Reply
from app.gateway.life import Life
from app.gateway.plan import model_of
from app.wire.headers import first
from app.wire.usage import UsageTap

_UNQUOTABLE = re.compile(r"[^\w.@:/ -]", re.ASCII)
# Kinds of tokens that count against a caller's day, as the provider's own limits count: cache reads do not.
_COUNTED = ("input_tokens", "cache_creation_input_tokens", "output_tokens")


class Admission(Protocol):
    """What a caller's limits said to one request."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """What is left to the caller, as headers."""

    @property
    def counts_tokens(self) -> bool:
        """Its tokens have to be counted."""

    def finish(self, tokens: int) -> None:
        """The exchange is over and has used so many tokens."""


def timing(journey: Journey, gateway_ms: float, upstream_ms: float) -> str:
    """A ``Server-Timing`` value (W3C Server Timing): where the time went, and each try that was in vain.

    Args:
        journey: Of the exchange.
        gateway_ms: From receiving the request to handing its last try to the transport, waits included, the
            upstream's own time for tries in vain not.
        upstream_ms: From there to the upstream's head.
    """
    parts = [f"gateway;dur={gateway_ms:.2f}, queue;dur={journey.queue_ms:.2f}, upstream;dur={upstream_ms:.2f}"]
    parts += [f'try;dur={a.ms:.2f};desc="{_quotable(a.outcome, a.credential)}"' for a in journey.attempts[:-1]]
    waited_ms = sum(attempt.waited_ms for attempt in journey.attempts)
    if waited_ms >= 1.0:
        parts.append(f"wait;dur={waited_ms:.2f}")
    if journey.credential:
        parts.append(f'credential;desc="{_quotable(journey.credential)}"')
    return ", ".join(parts)


@lru_cache(maxsize=1024)
def _quotable(*words: str) -> str:
    """Words as they may stand in a quoted string of a header."""
    return _UNQUOTABLE.sub("_", " ".join(word for word in words if word))


def _in_vain_ms(journey: Journey) -> float:
    """What the upstream took for tries that came to nothing: not the gateway's own time."""
    return sum(attempt.ms for attempt in journey.attempts[:-1]) if len(journey.attempts) > 1 else 0.0


def _cause(error: GatewayError | None) -> str:
    """What a library said was wrong, for the log."""
    below = error.__cause__ if error is not None else None
    return f"{type(below).__name__}: {below}"[:300] if below is not None else ""


class Account:
    """Of one exchange.

    Args:
        exchange: What the client sent.
        life: Of this worker; counts what is under way.
        observers: Are shown the Record.
        admission: Of its caller.

    Attributes:
        fallback: Served by the thread pool.
        early: Status 200 was committed before the upstream's head.
        tap: Reads the answer's tokens, where they are counted.
    """

    def __init__(
        self,
        exchange: Exchange,
        life: Life,
        observers: Sequence[Callable[[Record], None]],
        admission: Admission | None = None,
    ) -> None:
        self._exchange = exchange
        self._life = life
        self._observers = observers
        self._admission = admission
        self._reply: Reply | None = None
        self._crossing: Crossing | None = None
        self._head_up_at = 0.0
        self._settled = False
        self.fallback = False
        self.early = False
        self.tap: UsageTap | None = None
        life.in_flight += 1
        life.served += 1

    def head(self, reply: Reply, crossing: Crossing) -> None:
        """The head has reached the worker."""
        self._reply = reply
        self._crossing = crossing
        self._head_up_at = time.monotonic()
        if self._admission is not None and self._admission.counts_tokens:
            kind = first(reply.headers, "content-type") or ""
            coding = "" if self.early else first(reply.headers, "content-encoding") or ""  # undone by then
            self.tap = UsageTap(kind, coding)

    def feed(self, piece: bytes) -> None:
        """A piece of the answer on its way to the client."""
        if self.tap is not None:
            self.tap.feed(piece)

    @property
    def reader(self) -> Callable[[bytes], None] | None:
        """What wants to see the answer pass, if anything does."""
        return self.feed if self._admission is not None and self._admission.counts_tokens else None

    def headers(self, journey: object) -> Headers:
        """What the gateway adds to an answer: who served it, where the time went, what is left to the caller."""
        found: list[tuple[str, str]] = []
        if isinstance(journey, Journey):
            reply, now = self._reply, time.monotonic()
            sent_at, head_at = (reply.sent_at, reply.head_at) if reply is not None else (now, now)
            added_ms = (sent_at - self._exchange.received_at) * 1000.0 - _in_vain_ms(journey)
            found.append(("x-penstock-provider", journey.provider))
            found.append(("server-timing", timing(journey, added_ms, (head_at - sent_at) * 1000.0)))
        if self._admission is not None:
            found += self._admission.headers
        return tuple(found)

    def settle(self, error: GatewayError | None, left: bool, sent_bytes: int) -> None:
        """The exchange is over: make the Record and show it to the observers."""
        if self._settled:
            return
        self._settled = True
        self._life.in_flight -= 1
        tokens = self.tap.result() if self.tap is not None else {}
        if self._admission is not None:
            self._admission.finish(sum(tokens.get(kind, 0) for kind in _COUNTED))
        record = self._record(error, left, sent_bytes, time.monotonic(), tokens)
        for observe in self._observers:
            observe(record)

    def _record(
        self, error: GatewayError | None, left: bool, sent_bytes: int, now: float, tokens: dict[str, int]
    ) -> Record:
        exchange, reply = self._exchange, self._reply
        received_at = exchange.received_at
        told = reply.journey if reply is not None else error.journey if error is not None else None
        journey = cast(Journey, told) if told is not None else Journey()
        if reply is not None:
            status = 200 if self.early else reply.status
        elif left:
            status = ClientGone.status
        else:
            status = error.status if error is not None else 0
        return Record(
            request_id=exchange.id,
            route=exchange.route,
            method=exchange.method,
            path=exchange.target.partition("?")[0],
            status=status,
            slug=ClientGone.slug if left else error.slug if error is not None else "",
            model=model_of(exchange.body),
            upstream_request_id=(first(reply.headers, "request-id") or "") if reply else "",
            request_bytes=len(exchange.body) or exchange.content_length or 0,
            response_bytes=sent_bytes,
            stream=reply is not None and reply.stream,
            http_version=reply.http_version if reply else "",
            attempts=journey.attempts,
            provider=journey.provider,
            credential=journey.credential,
            caller=exchange.caller,
            queue_ms=journey.queue_ms if told is not None else None,
            upstream_head_ms=(reply.head_at - reply.sent_at) * 1000.0 if reply else None,
            ttfb_ms=(self._head_up_at - received_at) * 1000.0 if reply else None,
            total_ms=(now - received_at) * 1000.0,
            gateway_ms=self._added_s(reply) * 1000.0 if reply else None,
            client_left=left,
            fallback=self.fallback,
            cause=_cause(error),
            tokens=tokens,
        )

    def _added_s(self, reply: Reply) -> float:
        """Seconds the gateway itself added, down and up."""
        up = self._crossing.up if self._crossing is not None else None
        # a short answer is held until it is whole: that wait is the upstream's, not ours
        held = not reply.stream and up is not None and 0.0 < up.ended_at <= self._head_up_at
        there_at = up.ended_at if held and up is not None else reply.head_at
        down_s = reply.sent_at - self._exchange.received_at - _in_vain_ms(reply.journey) / 1000.0
        return down_s + max(0.0, self._head_up_at - there_at)
