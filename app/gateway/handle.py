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
from app.bridge.stream import LIMIT_BYTES
from app.errors import ClientGone, DeadlinePassed, Draining, GatewayError
from app.exchange import Exchange, Headers, Plan, Reply
from app.gateway.account import Account, Admission
from app.gateway.body import Body, BodyRules, EventStream, Watch, plain
from app.gateway.life import Life
from app.gateway.plan import Rules, make_plan
from app.gateway.records import Records
from app.gateway.results_url import LIMIT_BYTES as MOST_JSON_BYTES
from app.gateway.results_url import rewritten
from app.gateway.watching import USUAL, Watching
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
        write_timeout_s: Longest time the upstream may not take upload bytes.
        public_url: Where a batch's ``results_url`` is led to; "" leaves it alone (B18).
        watching: What is looked at of every exchange.
    """

    rules: Rules
    body: BodyRules
    write_timeout_s: float
    public_url: str = ""
    watching: Watching = USUAL


class Gateway:
    """The data plane of one process, worker side.

    Args:
        options: From the settings.
        bridge: Gives the process's bridge.
        dispatcher: Gives a loop's dispatcher; called on that loop.
        life: State of this worker.
        records: Makes the Records of what is over.
    """

    def __init__(
        self,
        options: Options,
        bridge: Callable[[], Bridge],
        dispatcher: Callable[[BackgroundLoop], Dispatcher],
        life: Life,
        records: Records,
    ) -> None:
        self.options = options
        self.bridge = bridge
        self.life = life
        self._dispatcher = dispatcher
        self.records = records

    def handle(
        self, exchange: Exchange, endpoint: Endpoint, client: Client, admission: Admission | None = None
    ) -> Answer:
        """Serve one exchange.

        Args:
            exchange: What the client sent.
            endpoint: It is for.
            client: The connection it came on.
            admission: What its caller's limits said; finished with the exchange, whatever happens.

        Raises:
            GatewayError: It is over already; its Record has been made.
        """
        account = Account(exchange, self.life, self.records, self.options.watching, admission)
        try:
            if self.life.draining:
                raise Draining
            plan = make_plan(exchange, self.options.rules, endpoint, exchange.received_at, account.trace)
            return self._cross(exchange, plan, client, account)
        except GatewayError as exc:
            exc.headers += account.headers(exc.journey)
            account.settle(exc, isinstance(exc, ClientGone), 0)
            raise
        except BaseException:
            account.settle(GatewayError(), False, 0)
            raise

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Record an exchange that ended before it could be handled."""
        Account(exchange, self.life, self.records, self.options.watching).settle(error, False, 0)

    def _cross(self, exchange: Exchange, plan: Plan, client: Client, account: Account) -> Answer:
        watch = Watch(client.gone, self.life.is_cut, plan.deadline_at + _NET_S)
        crossing = self.bridge().open(serving(self._dispatcher, plan, exchange.streamed))
        account.fallback = crossing.fallback
        try:
            if exchange.streamed:
                self._upload(crossing, client, watch, plan.deadline_at)
            return self._answer(exchange, plan, crossing, watch, client, account)
        except BaseException:
            crossing.close()
            raise

    def _upload(self, crossing: Crossing, client: Client, watch: Watch, deadline_at: float) -> None:
        """Feed the body down. Until some of it is taken the exchange may stand in line: its deadline counts."""
        fed_bytes = 0
        try:
            while data := client.read(_UPLOAD_PIECE_BYTES):
                begun = fed_bytes > LIMIT_BYTES  # more than can wait: some of it was taken
                wait_s = self.options.write_timeout_s if begun else deadline_at + _NET_S - time.monotonic()
                if not crossing.feed(data, watch, wait_s):
                    client.unread()
                    return
                fed_bytes += len(data)
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
        account: Account,
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
        pace = None
        headers = response_headers(reply.headers)
        headers += account.headers(reply.journey)
        if reply.stream and plan.method != "HEAD":
            watch = Watch(client.gone, self.life.is_cut, None)
            headers += _missing(headers)
            pace = account.paced(rules.heartbeat)
            if not account.coding:
                pieces = EventStream(crossing, watch, rules, exchange.id, account.erred).events()
            else:
                pieces = plain(crossing, watch, rules)
        else:
            pieces = plain(crossing, watch if plan.whole else Watch(client.gone, self.life.is_cut, None), rules)
            if self.options.public_url and exchange.route == "batches" and _is_plain_json(headers):
                headers, pieces = self._led_here(headers, pieces)
        account.sends(headers)
        return Answer(reply.status, headers, Body(pieces, crossing, account.settle, account.reader, pace))

    def _led_here(
        self, headers: list[tuple[str, str]], pieces: Iterator[bytes]
    ) -> tuple[list[tuple[str, str]], Iterator[bytes]]:
        """A batch's JSON with its ``results_url`` leading through this gateway."""
        options = self.options
        body = b""
        for piece in pieces:
            body += piece
            if len(body) > MOST_JSON_BYTES:  # no batch object is that large: passed on as it is
                return headers, chain((body,), pieces)
        body = rewritten(body, options.rules.origin, options.public_url)
        kept = [pair for pair in headers if pair[0].lower() != "content-length"]
        return [*kept, ("content-length", str(len(body)))], iter((body,))

    def _early_answer(
        self, exchange: Exchange, crossing: Crossing, client: Client, watch: Watch, account: Account
    ) -> Answer:
        free = Watch(client.gone, self.life.is_cut, None)
        stream = EventStream(crossing, free, self.options.body, exchange.id, account.erred)

        def head(timeout_s: float) -> Reply:
            reply = cast(Reply, crossing.head(watch, timeout_s))
            account.head(reply, crossing)
            return reply

        account.early = True
        headers = [*_STREAM_HEAD, *account.headers(None)]
        account.sends(headers)
        pace = account.paced(self.options.body.heartbeat)
        return Answer(200, headers, Body(stream.early(head), crossing, account.settle, account.reader, pace))


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
