"""The frozen data that travels: what came in, what goes out, what came back, what it amounted to.

    Exchange   web -> gateway      one HTTP request as the client sent it
    Plan       gateway -> loop     what to send upstream, and by when
    Reply      loop -> gateway     the head of the answer; its body follows through the pipe
    Record     gateway -> observe  everything that is known at the end; logs and metrics are read off it

Header pairs are ``(name, value)`` in latin-1 text, in the order received, repeats kept. Instants (``*_at``) are
``time.monotonic()`` seconds; lengths carry their unit in the name.

Named tuples: as frozen as a frozen dataclass, and made in a third of its time (a dozen of them per exchange). The
Record is msgspec's struct: made in a sixth of a named tuple's time, read in a third, and of no concern to the
cyclic collector.
Pure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import msgspec

Headers = tuple[tuple[str, str], ...]


class Exchange(NamedTuple):
    """One request as the client sent it.

    Attributes:
        id: The gateway's request id (the client's ``X-Request-ID`` where it is valid).
        method: HTTP method, verbatim.
        target: Path and query for the upstream, percent-encoding as received, mount prefix removed.
        headers: End-to-end and hop-by-hop headers as received.
        body: Whole body; empty when ``streamed`` is set and the body comes through a pipe.
        streamed: The body is too large to buffer and follows through an upload pipe.
        content_length: Declared length in bytes, or None for chunked.
        route: Low-cardinality name of the route, for labels.
        received_at: Instant at which the worker took the request.
        caller: Who sends it, for fair turns and limits: a gateway key's name, or a digest of what was presented.
    """

    id: str
    method: str
    target: str
    headers: Headers
    body: bytes
    streamed: bool
    content_length: int | None
    route: str
    received_at: float
    caller: str = ""


class Plan(NamedTuple):
    """What to send upstream. Crosses the bridge downwards.

    Attributes:
        provider: Name of the target it goes to first.
        method: HTTP method.
        target: Path and query; a target's base path goes in front.
        headers: Exactly the header pairs that reach the upstream (``host``, framing and our own credential
            excepted, which the loop chooses).
        body: Body bytes; ignored when an upload pipe is given alongside.
        deadline_at: Instant by which a non-stream exchange must be over.
        silence_s: Longest silence inside a streamed body.
        may_stream: The answer may be an event stream (false negatives are not allowed, false positives are).
        whole: The deadline covers the body too (false for file transfers, whose body only must not fall silent).
        caller: As in the exchange.
        model: As the body names it, for keys that serve some models only; "" if not known.
        conversation: Digest of the conversation this belongs to (B34), b"" for none.
        repeatable: Processing it twice does no harm beyond its cost.
        proves_key: A 401 or 403 speaks of the key: the endpoint is one that every key may use.
        client_retries: How often the client's SDK has sent it before (``x-stainless-retry-count``, B32).
        request_id: Of the exchange, for what is told of its connection.
    """

    provider: str
    method: str
    target: str
    headers: Headers
    body: bytes
    deadline_at: float
    silence_s: float
    may_stream: bool = True
    whole: bool = True
    caller: str = ""
    model: str = ""
    conversation: bytes = b""
    repeatable: bool = False
    proves_key: bool = True
    client_retries: int = 0
    request_id: str = ""


class Outbound(NamedTuple):
    """One try as a transport sees it: ``body`` is bytes, or an async iterator for uploads."""

    method: str
    origin: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]


class Attempt(NamedTuple):
    """One try: what came of it, how long it took, and who was asked.

    Attributes:
        outcome: HTTP status or error slug: ``"200"``, ``"connect_failed"``, ``"overloaded_error"`` ….
        ms: From handing it to the transport to its head or failure.
        connection: ``new``, ``reused`` or ``""`` (not known).
        provider: Target that was asked.
        credential: Label of our own key; "" where the caller's passes through.
        waited_ms: Pause before this try: backoff, or waiting for a key that cools.
        connect_ms: Of ``ms``, what went into getting a connection; 0 where it was open.
    """

    outcome: str
    ms: float
    connection: str = ""
    provider: str = ""
    credential: str = ""
    waited_ms: float = 0.0
    connect_ms: float = 0.0


class Journey(NamedTuple):
    """How an exchange came to its answer, or how far it came.

    Attributes:
        provider: Target that served it, or was asked last.
        credential: Label of the key that served it, or was used last.
        queue_ms: Wait for a slot.
        attempts: The tries made, in order.
    """

    provider: str = ""
    credential: str = ""
    queue_ms: float = 0.0
    attempts: tuple[Attempt, ...] = ()


class Reply(NamedTuple):
    """Head of the upstream's answer. Crosses the bridge upwards once.

    Attributes:
        status: HTTP status.
        headers: Header pairs as received.
        stream: The body is ``text/event-stream``.
        http_version: ``HTTP/2`` or ``HTTP/1.1``.
        journey: How it was come by; the try that brought it is the last one.
        sent_at: Instant at which the last try was handed to the transport.
        head_at: Instant at which the head arrived on the loop.
        judged_at: Instant from which it could be handed up: ``head_at``, or once as much of a stream was there as
            it is judged by, its first event.
    """

    status: int
    headers: Headers
    stream: bool
    http_version: str
    journey: Journey
    sent_at: float
    head_at: float
    judged_at: float


class Captured(NamedTuple):
    """What was kept of an exchange for the log, where a switch asks for it; not redacted yet.

    Attributes:
        request_headers: As received.
        response_headers: As sent to the client.
        request_body: Its beginning.
        response_body: Its beginning, as it came from the upstream.
    """

    request_headers: Headers = ()
    response_headers: Headers = ()
    request_body: bytes = b""
    response_body: bytes = b""


class Record(msgspec.Struct, frozen=True, gc=False):
    """Everything known about one finished exchange (B40). One is made per exchange, whatever happened.

    Times in milliseconds; None where that point was never reached. ``gateway_ms`` is what the gateway added: from
    receiving the request to handing its last try to the transport (waits for a slot, a key or a backoff included,
    the upstream's time for tries in vain not), plus from the upstream's head on the loop (of a stream that is
    judged by its first event, from that) to the head in the worker, plus from the upstream's last byte to the end
    of the answer where the body was short.

    ``gaps`` counts an event stream's pauses between the pieces handed to the server, by the bit length of their
    whole milliseconds: below 1 ms, below 2, below 4 …; ``gaps_ms`` is their sum. ``router_ms`` is the time since
    the platform router's ``X-Request-Start``; ``at`` is the end, in seconds since the epoch. ``trace`` is the
    exchange's own W3C ``traceparent`` where spans are made, ``trace_parent`` the caller's. ``cost_micro_usd`` is
    None where there is no price or nothing was used.

    ``stream_error`` is the type of the error event in which the upstream's own stream ended (``overloaded_error``,
    ``api_error`` …; ``error`` where it names none), "" for none. Streams that pass compressed are not looked into.
    """

    request_id: str
    route: str
    method: str
    path: str
    status: int
    slug: str
    model: str = ""
    upstream_request_id: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    stream: bool = False
    http_version: str = ""
    attempts: tuple[Attempt, ...] = ()
    provider: str = ""
    credential: str = ""
    caller: str = ""
    queue_ms: float | None = None
    upstream_head_ms: float | None = None
    ttfb_ms: float | None = None
    total_ms: float = 0.0
    gateway_ms: float | None = None
    client_left: bool = False
    fallback: bool = False
    cause: str = ""
    tokens: Mapping[str, int] = msgspec.field(default_factory=dict)
    usage_complete: bool = False
    cost_micro_usd: int | None = None
    at: float = 0.0
    router_ms: float | None = None
    first_event_ms: float | None = None
    gaps: tuple[int, ...] = ()
    gaps_ms: float = 0.0
    trace: str = ""
    trace_parent: str = ""
    captured: Captured | None = None
    stream_error: str = ""

    def _replace(self, **changes: Any) -> Record:
        """Another one that differs in these, as a named tuple's."""
        return msgspec.structs.replace(self, **changes)
