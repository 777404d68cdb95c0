"""Gather one exchange's facts, tell the client what it waited for, and make the Record at the end, once.

Runs on: worker.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from app.bridge.call import Crossing
from app.errors import ClientGone, GatewayError
from app.exchange import Exchange, Headers, Journey, Record, Reply
from app.gateway.life import Life
from app.gateway.pace import Pace
from app.gateway.plan import model_of
from app.gateway.timing import timing
from app.gateway.watching import Kept, Watching
from app.wire import router
from app.wire.headers import first
from app.wire.trace import NO_TRACE, begin
from app.wire.usage import NO_TERMS, Stated, UsageTap

# Kinds of tokens that count against a caller's day, as the provider's own limits count: cache reads do not.
_COUNTED = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
# Where an answer's usage is what this very exchange used: ``count_tokens`` estimates, other objects report.
_USING: Final = frozenset({"messages"})
_NOTHING: Final = Stated({}, False, NO_TERMS)
_TOLD: Final = frozenset({len("request-id"), len("content-type"), len("content-encoding")})


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


def _in_vain_ms(journey: Journey) -> float:
    """What the upstream took for tries that came to nothing: not the gateway's own time."""
    return sum(attempt.ms for attempt in journey.attempts[:-1]) if len(journey.attempts) > 1 else 0.0


def _cause(error: GatewayError | None) -> str:
    """What a library said was wrong, for the log."""
    below = error.__cause__ if error is not None else None
    return f"{type(below).__name__}: {below}"[:300] if below is not None else ""


def _router_ms(started: str, received_at: float) -> float | None:
    """What a request waited in the platform's router, by what that one says."""
    return router.waited_ms(started, time.time() - (time.monotonic() - received_at))


def _told(headers: Headers) -> dict[str, str]:
    """What is asked of every answer's headers, in one pass; of repeats the first one."""
    found: dict[str, str] = {}
    for name, value in headers:
        if len(name) in _TOLD:
            found.setdefault(name.lower(), value)
    return found


class Account:
    """Of one exchange.

    Args:
        exchange: What the client sent.
        life: Of this worker; counts what is under way.
        observers: Are shown the Record.
        watching: What is looked at besides.
        admission: Of its caller.

    Attributes:
        fallback: Served by the thread pool.
        early: Status 200 was committed before the upstream's head.
        coding: ``content-encoding`` of the answer, "" if there is none.
        trace: Its place in its trace.
    """

    def __init__(
        self,
        exchange: Exchange,
        life: Life,
        observers: Sequence[Callable[[Record], None]],
        watching: Watching,
        admission: Admission | None = None,
    ) -> None:
        self._exchange = exchange
        self._life = life
        self._observers = observers
        self._watching = watching
        self._admission = admission
        self._reply: Reply | None = None
        self._upstream_id = ""
        self._crossing: Crossing | None = None
        self._head_up_at = 0.0
        self._settled = False
        self._tap: UsageTap | None = None
        self._pace: Pace | None = None
        self._kept = Kept(watching.capture) if watching.capture is not None else None
        started = first(exchange.headers, router.NAME)
        self._stream_error = ""
        self._router_ms = _router_ms(started, exchange.received_at) if started is not None else None
        self.fallback = False
        self.early = False
        self.coding = ""
        self.trace = begin(exchange.headers, random.getrandbits) if watching.spans else NO_TRACE
        life.in_flight += 1
        life.served += 1

    def head(self, reply: Reply, crossing: Crossing) -> None:
        """The head has reached the worker."""
        self._reply = reply
        self._crossing = crossing
        self._head_up_at = time.monotonic()
        told = _told(reply.headers)
        self._upstream_id = told.get("request-id", "")
        if not self.early:  # a coding is undone by then
            self.coding = told.get("content-encoding", "")
        admission = self._admission
        reads = self._watching.reads_usage or (admission is not None and admission.counts_tokens)
        if reads and self._exchange.route in _USING:
            tap = UsageTap(told.get("content-type", ""), self.coding)
            self._tap = tap if tap.known else None

    def feed(self, piece: bytes) -> None:
        """A piece of the answer on its way to the client."""
        if self._tap is not None:
            self._tap.feed(piece)
        if self._kept is not None:
            self._kept.feed(piece)

    @property
    def reader(self) -> Callable[[bytes], None] | None:
        """What wants to see the answer pass, if anything does; the tap alone for most, since it is asked often."""
        if self.early or self._kept is not None:
            return self.feed
        return self._tap.feed if self._tap is not None else None

    def erred(self, kind: str) -> None:
        """The upstream's stream ended in an error event of this type."""
        self._stream_error = kind

    def paced(self, heartbeat: bytes) -> Pace:
        """The answer is an event stream: what times its pieces.

        Args:
            heartbeat: The piece that is not the upstream's.
        """
        self._pace = Pace(heartbeat)
        return self._pace

    def sends(self, headers: Sequence[tuple[str, str]]) -> None:
        """These go to the client; what is added to them until the end is seen as well."""
        if self._kept is not None:
            self._kept.sent_headers = headers

    def headers(self, journey: object) -> Headers:
        """What the gateway adds to an answer: who served it, where the time went, what is left to the caller."""
        found: list[tuple[str, str]] = []
        if isinstance(journey, Journey):
            found.append(("x-penstock-provider", journey.provider))
            if self._watching.server_timing:
                reply, now = self._reply, time.monotonic()
                sent_at, head_at = (reply.sent_at, reply.head_at) if reply is not None else (now, now)
                added_ms = (sent_at - self._exchange.received_at) * 1000.0 - _in_vain_ms(journey)
                value = timing(journey, added_ms, (head_at - sent_at) * 1000.0, self._router_ms)
                found.append(("server-timing", value))
        if self._admission is not None:
            found += self._admission.headers
        return tuple(found)

    def settle(self, error: GatewayError | None, left: bool, sent_bytes: int) -> None:
        """The exchange is over: make the Record and show it to the observers."""
        if self._settled:
            return
        self._settled = True
        self._life.in_flight -= 1
        used = self._tap.stated(error is None and not left) if self._tap is not None else _NOTHING
        if self._admission is not None:
            self._admission.finish(sum(used.tokens.get(kind, 0) for kind in _COUNTED))
        record = self._record(error, left, sent_bytes, time.monotonic(), used)
        for observe in self._observers:
            observe(record)

    def _record(self, error: GatewayError | None, left: bool, sent_bytes: int, now: float, used: Stated) -> Record:
        exchange, reply, pace = self._exchange, self._reply, self._pace
        received_at = exchange.received_at
        told = reply.journey if reply is not None else error.journey if error is not None else None
        journey = cast(Journey, told) if told is not None else Journey()
        model = model_of(exchange.body)
        tokens, price, shown = used.tokens, self._watching.price, self._watching.shown
        return Record(
            request_id=exchange.id,
            route=exchange.route,
            method=exchange.method,
            path=shown(exchange.target.partition("?")[0]),
            status=self._status(error, left),
            slug=ClientGone.slug if left else error.slug if error is not None else "",
            model=shown(model),
            upstream_request_id=self._upstream_id,
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
            usage_complete=used.complete,
            cost_micro_usd=price(model, tokens, used.terms) if tokens and price is not None else None,
            at=time.time(),
            router_ms=self._router_ms,
            first_event_ms=pace.first_ms(received_at) if pace is not None else None,
            gaps=pace.gaps if pace is not None else (),
            gaps_ms=pace.gaps_ms if pace is not None else 0.0,
            trace=self.trace.own,
            trace_parent=self.trace.parent,
            captured=self._kept.captured(exchange, self.coding) if self._kept is not None else None,
            stream_error=self._stream_error,
        )

    def _status(self, error: GatewayError | None, left: bool) -> int:
        """What the client was answered, or would have been."""
        if self._reply is not None:
            return 200 if self.early else self._reply.status
        if left:
            return ClientGone.status
        return error.status if error is not None else 0

    def _added_s(self, reply: Reply) -> float:
        """Seconds the gateway itself added, down and up."""
        up = self._crossing.up if self._crossing is not None else None
        # a short answer is held until it is whole, a stream until it is judged: that wait is the upstream's
        held = not reply.stream and up is not None and 0.0 < up.ended_at <= self._head_up_at
        there_at = up.ended_at if held and up is not None else reply.judged_at
        down_s = reply.sent_at - self._exchange.received_at - _in_vain_ms(reply.journey) / 1000.0
        return down_s + max(0.0, self._head_up_at - there_at)
