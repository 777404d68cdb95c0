"""Gather one exchange's facts, tell the client what it waited for, and make the Record once it is over.

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
from app.gateway.records import CALM, FAILED, OWN_FAULT, Records
from app.gateway.timing import timing
from app.gateway.watching import Kept, Watching
from app.wire import router
from app.wire.headers import first
from app.wire.trace import NO_TRACE, begin
from app.wire.usage import NO_TERMS, Stated, Tap, usage_tap

# Kinds of tokens that count against a caller's day, as the provider's own limits count: cache reads do not.
_COUNTED = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
# Where an answer's usage is what this very exchange used: ``count_tokens`` estimates, other objects report.
_USING: Final = frozenset({"messages"})
_NOTHING: Final = Stated({}, False, NO_TERMS)
_NOWHERE: Final = Journey()
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


def _cause(error: GatewayError) -> str:
    """What a library said was wrong, for the log."""
    below = error.__cause__
    return f"{type(below).__name__}: {below}"[:300] if below is not None else ""


def _router_ms(started: str, received_at: float) -> float | None:
    """What a request waited in the platform's router, by what that one says."""
    return router.waited_ms(started, time.time() - (time.monotonic() - received_at))


def _told(reply: Reply) -> dict[str, str]:
    """What is asked of every answer's headers, in one pass; of repeats the first one.

    HTTP/2 has no names but lower-case ones (RFC 9113, 8.2.1): half the time.
    """
    headers = reply.headers
    if reply.http_version == "HTTP/2":
        return dict(headers[::-1])
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
        records: Has the Record made.
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
        records: Records,
        watching: Watching,
        admission: Admission | None = None,
    ) -> None:
        self._exchange = exchange
        self._life = life
        self._records = records
        self._watching = watching
        self._admission = admission
        self._reply: Reply | None = None
        self._upstream_id = ""
        self._crossing: Crossing | None = None
        self._head_up_at = 0.0
        self._settled = False
        self._error: GatewayError | None = None
        self._left = False
        self._sent_bytes = 0
        self._ended_at = self._up_ended_at = 0.0
        self._used: Stated | None = None
        self._tap: Tap | None = None
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
        told = _told(reply)
        self._upstream_id = told.get("request-id", "")
        if not self.early:  # a coding is undone by then
            self.coding = told.get("content-encoding", "")
        admission = self._admission
        reads = self._watching.reads_usage or (admission is not None and admission.counts_tokens)
        if reads and self._exchange.route in _USING:
            self._tap = usage_tap(told.get("content-type", ""), self.coding)

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
                found.append(("server-timing", self._timing(journey)))
        if self._admission is not None:
            found += self._admission.headers
        return tuple(found)

    def _timing(self, journey: Journey) -> str:
        reply = self._reply
        sent_at = reply.sent_at if reply is not None else time.monotonic()
        added_ms = (sent_at - self._exchange.received_at) * 1000.0
        if len(journey.attempts) > 1:
            added_ms -= _in_vain_ms(journey)
        upstream_ms = (reply.head_at - sent_at) * 1000.0 if reply is not None else 0.0
        return timing(journey, added_ms, upstream_ms, self._router_ms)

    def settle(self, error: GatewayError | None, left: bool, sent_bytes: int) -> None:
        """The exchange is over: its Record is made and shown, now or a little later."""
        if self._settled:
            return
        self._settled = True
        self._life.in_flight -= 1
        self._error, self._left, self._sent_bytes = error, left, sent_bytes
        crossing, reply = self._crossing, self._reply
        if crossing is not None:
            self._up_ended_at = crossing.up.ended_at
            self._crossing = None
        now = self._ended_at = time.monotonic()
        hurry = CALM
        if error is not None:
            hurry = OWN_FAULT if error.slug == GatewayError.slug else FAILED
        elif reply is None or reply.status >= 400:
            hurry = FAILED
        try:
            if self._admission is not None:
                self._finish(self._admission)
        finally:
            self._records.add(self._record, now, hurry, len(self._exchange.body) + sent_bytes)

    def _finish(self, admission: Admission) -> None:
        """Tell the caller's limits what was used."""
        used = self._stated() if admission.counts_tokens else _NOTHING
        admission.finish(sum(used.tokens.get(kind, 0) for kind in _COUNTED))

    def _stated(self) -> Stated:
        """What was used; read once."""
        used = self._used
        if used is None:
            tap = self._tap
            used = _NOTHING if tap is None else tap.stated(self._error is None and not self._left)
            self._used = used
        return used

    def _record(self, epoch_s: float) -> Record:
        """Everything there is to know; ``epoch_s`` is what an instant lacks to seconds since the epoch."""
        exchange, reply, pace, error, left = self._exchange, self._reply, self._pace, self._error, self._left
        received_at = exchange.received_at
        told = reply.journey if reply is not None else error.journey if error is not None else None
        journey = cast(Journey, told) if told is not None else _NOWHERE
        model = model_of(exchange.body)
        price, shown = self._watching.price, self._watching.shown
        tokens, complete, terms = self._stated()
        return Record(  # in order: by name they would take twenty times as long
            exchange.id,
            exchange.route,
            exchange.method,
            shown(exchange.target.partition("?")[0]),
            self._status(error, left),
            ClientGone.slug if left else error.slug if error is not None else "",
            shown(model),
            self._upstream_id,
            len(exchange.body) or exchange.content_length or 0,
            self._sent_bytes,
            reply is not None and reply.stream,
            reply.http_version if reply is not None else "",
            journey.attempts,
            journey.provider,
            journey.credential,
            exchange.caller,
            journey.queue_ms if told is not None else None,
            (reply.head_at - reply.sent_at) * 1000.0 if reply is not None else None,
            (self._head_up_at - received_at) * 1000.0 if reply is not None else None,
            (self._ended_at - received_at) * 1000.0,
            self._added_s(reply) * 1000.0 if reply is not None else None,
            left,
            self.fallback,
            _cause(error) if error is not None else "",
            tokens,
            complete,
            price(model, tokens, terms) if tokens and price is not None else None,
            epoch_s + self._ended_at,
            self._router_ms,
            pace.first_ms(received_at) if pace is not None else None,
            pace.gaps if pace is not None else (),
            pace.gaps_ms if pace is not None else 0.0,
            self.trace.own,
            self.trace.parent,
            self._kept.captured(exchange, self.coding) if self._kept is not None else None,
            self._stream_error,
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
        # a short answer is held until it is whole, a stream until it is judged: that wait is the upstream's
        ended_at, head_up_at = self._up_ended_at, self._head_up_at
        there_at = ended_at if not reply.stream and 0.0 < ended_at <= head_up_at else reply.judged_at
        down_s = reply.sent_at - self._exchange.received_at - _in_vain_ms(reply.journey) / 1000.0
        return down_s + (head_up_at - there_at if head_up_at > there_at else 0.0)
