"""Take one exchange through: plan it, cross, hand back its answer, and record it at the end whatever happened.

Runs on: worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, cast

from app.bridge.call import Bridge, Crossing
from app.bridge.loop import BackgroundLoop
from app.errors import ClientGone, DeadlinePassed, Draining, GatewayError
from app.exchange import Attempt, Exchange, Headers, Plan, Record, Reply
from app.gateway.body import Body, BodyRules, EventStream, Watch, plain
from app.gateway.life import Life
from app.gateway.plan import Rules, make_plan, model_of
from app.gateway.results_url import LIMIT_BYTES, rewritten
from app.providers.base import Endpoint
from app.upstream.dispatch import Dispatcher, serving
from app.wire.headers import first, response_headers

_NET_S = 5.0
_UPLOAD_PIECE_BYTES = 65536
_STREAM_HEAD: Headers = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)


class Client(Protocol):
    """The client, as the web side knows it."""

    def gone(self) -> bool:
        """The client's connection is closed."""
        ...

    def read(self, size: int) -> bytes:
        """Next part of the request body, b"" at its end.

        Raises:
            RequestError: It broke off, stalled, or is too large.
        """
        ...

    def unread(self) -> None:
        """The rest of the request body will not be read."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes to the client."""

    status: int
    headers: list[tuple[str, str]]
    body: Body


@dataclass(frozen=True, slots=True)
class Options:
    """What all exchanges have in common; from the settings.

    Attributes:
        rules: Of the provider.
        body: Of bodies.
        keys: Our own credentials, label and value.
        write_timeout_s: Longest time the upstream may not take upload bytes.
        public_url: Where a batch's ``results_url`` is led to; "" leaves it alone (B18).
    """

    rules: Rules
    body: BodyRules
    keys: tuple[tuple[str, str], ...]
    write_timeout_s: float
    public_url: str = ""


class Gateway:
    """The data plane of one process, worker side.

    Args:
        options: From the settings.
        bridge: Gives the process's bridge.
        dispatcher: Gives a loop's dispatcher; called on that loop.
        life: State of this worker.
        observers: Called with every Record.
    """

    def __init__(
        self,
        options: Options,
        bridge: Callable[[], Bridge],
        dispatcher: Callable[[BackgroundLoop], Dispatcher],
        life: Life,
        observers: tuple[Callable[[Record], None], ...],
    ) -> None:
        self.options = options
        self.bridge = bridge
        self.life = life
        self._dispatcher = dispatcher
        self._observers = observers
        self._turn = 0

    def handle(self, exchange: Exchange, endpoint: Endpoint, client: Client) -> Answer:
        """Serve one exchange.

        Raises:
            GatewayError: It is over already; its Record has been made.
        """
        account = _Account(self, exchange)
        try:
            if self.life.draining:
                raise Draining
            label, key = self._credential()
            plan = make_plan(exchange, self.options.rules, endpoint, key, exchange.received_at)
            account.credential = label
            return self._cross(exchange, plan, client, account)
        except GatewayError as exc:
            account.settle(exc, isinstance(exc, ClientGone), 0)
            raise
        except BaseException:
            account.settle(GatewayError(), False, 0)
            raise

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Record an exchange that ended before it could be handled."""
        _Account(self, exchange).settle(error, False, 0)

    def _credential(self) -> tuple[str, str | None]:
        keys = self.options.keys
        if not keys:
            return "", None
        self._turn += 1
        return keys[self._turn % len(keys)]

    def _cross(self, exchange: Exchange, plan: Plan, client: Client, account: _Account) -> Answer:
        watch = Watch(client.gone, self.life.is_cut, plan.deadline_at + _NET_S)
        crossing = self.bridge().open(serving(self._dispatcher, plan, exchange.streamed))
        account.fallback = crossing.fallback
        try:
            if exchange.streamed:
                self._upload(crossing, client, watch)
            return self._answer(exchange, plan, crossing, watch, client, account)
        except BaseException:
            crossing.close()
            raise

    def _upload(self, crossing: Crossing, client: Client, watch: Watch) -> None:
        try:
            while data := client.read(_UPLOAD_PIECE_BYTES):
                if not crossing.feed(data, watch, self.options.write_timeout_s):
                    client.unread()
                    return
        except TimeoutError:
            raise DeadlinePassed("The upstream stopped taking the request body.") from None
        except GatewayError as exc:
            crossing.upload.abort(exc)
            raise
        crossing.upload.end()

    def _answer(
        self,
        exchange: Exchange,
        plan: Plan,
        crossing: Crossing,
        watch: Watch,
        client: Client,
        account: _Account,
    ) -> Answer:
        beat_s = self.options.body.heartbeat_s
        try:
            reply = cast(Reply, crossing.head(watch, beat_s or None))
        except TimeoutError:
            if asks_for_stream(exchange.body):
                return self._early_answer(exchange, crossing, client, watch, account)
            reply = cast(Reply, crossing.head(watch))
        account.head(reply, crossing)
        rules = self.options.body
        pieces: Iterator[bytes]
        headers = response_headers(reply.headers)
        if reply.stream and plan.method != "HEAD":
            watch = Watch(client.gone, self.life.is_cut, None)
            headers += _missing(headers)
            if first(reply.headers, "content-encoding") is None:
                pieces = EventStream(crossing, watch, rules, exchange.id).events()
            else:
                pieces = plain(crossing, watch, rules)
        else:
            pieces = plain(crossing, watch if plan.whole else Watch(client.gone, self.life.is_cut, None), rules)
            if self.options.public_url and exchange.route == "batches" and _is_plain_json(headers):
                headers, pieces = self._led_here(headers, pieces)
        return Answer(reply.status, headers, Body(pieces, crossing, account.settle))

    def _led_here(
        self, headers: list[tuple[str, str]], pieces: Iterator[bytes]
    ) -> tuple[list[tuple[str, str]], Iterator[bytes]]:
        """A batch's JSON with its ``results_url`` leading through this gateway."""
        options = self.options
        body = b""
        for piece in pieces:
            body += piece
            if len(body) > LIMIT_BYTES:  # no batch object is that large: passed on as it is
                return headers, chain((body,), pieces)
        body = rewritten(body, options.rules.origin, options.public_url)
        kept = [pair for pair in headers if pair[0].lower() != "content-length"]
        return [*kept, ("content-length", str(len(body)))], iter((body,))

    def _early_answer(
        self, exchange: Exchange, crossing: Crossing, client: Client, watch: Watch, account: _Account
    ) -> Answer:
        free = Watch(client.gone, self.life.is_cut, None)
        stream = EventStream(crossing, free, self.options.body, exchange.id)

        def head(timeout_s: float) -> Reply:
            reply = cast(Reply, crossing.head(watch, timeout_s))
            account.head(reply, crossing)
            return reply

        account.early = True
        return Answer(200, list(_STREAM_HEAD), Body(stream.early(head), crossing, account.settle))


def _cause(error: GatewayError | None) -> str:
    """What a library said was wrong, for the log."""
    below = error.__cause__ if error is not None else None
    return f"{type(below).__name__}: {below}"[:300] if below is not None else ""


def _is_plain_json(headers: list[tuple[str, str]]) -> bool:
    kind = first(headers, "content-type") or ""
    return kind.startswith("application/json") and first(headers, "content-encoding") is None


def asks_for_stream(body: bytes) -> bool:
    """Whether a JSON body says ``"stream": true`` at its top level. Parses it; only for requests already slow."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and parsed.get("stream") is True


def _missing(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What an event stream needs so that nothing in front buffers it, where the upstream did not say so itself."""
    return [] if first(headers, "x-accel-buffering") is not None else [("x-accel-buffering", "no")]


class _Account:
    """Gathers one exchange's facts and makes its Record, once."""

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._reply: Reply | None = None
        self._crossing: Crossing | None = None
        self._head_up_at = 0.0
        self._settled = False
        self.credential = ""
        self.fallback = False
        self.early = False
        gateway.life.in_flight += 1
        gateway.life.served += 1

    def head(self, reply: Reply, crossing: Crossing) -> None:
        """The head has reached the worker."""
        self._reply = reply
        self._crossing = crossing
        self._head_up_at = time.monotonic()

    def settle(self, error: GatewayError | None, left: bool, sent_bytes: int) -> None:
        """The exchange is over: make the Record and show it to the observers."""
        if self._settled:
            return
        self._settled = True
        self._gateway.life.in_flight -= 1
        record = self._record(error, left, sent_bytes, time.monotonic())
        for observe in self._gateway._observers:
            observe(record)

    def _record(self, error: GatewayError | None, left: bool, sent_bytes: int, now: float) -> Record:
        exchange, reply = self._exchange, self._reply
        received_at = exchange.received_at
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
            attempts=reply.attempts if reply else cast("tuple[Attempt, ...]", error.attempts if error else ()),
            credential=self.credential,
            queue_ms=0.0 if reply else None,
            upstream_head_ms=(reply.head_at - reply.sent_at) * 1000.0 if reply else None,
            ttfb_ms=(self._head_up_at - received_at) * 1000.0 if reply else None,
            total_ms=(now - received_at) * 1000.0,
            gateway_ms=self._added_s(reply) * 1000.0 if reply else None,
            client_left=left,
            fallback=self.fallback,
            cause=_cause(error),
        )

    def _added_s(self, reply: Reply) -> float:
        """Seconds the gateway itself added, down and up."""
        up = self._crossing.up if self._crossing is not None else None
        # a short answer is held until it is whole: that wait is the upstream's, not ours
        held = not reply.stream and up is not None and 0.0 < up.ended_at <= self._head_up_at
        there_at = up.ended_at if held and up is not None else reply.head_at
        return (reply.sent_at - self._exchange.received_at) + max(0.0, self._head_up_at - there_at)
