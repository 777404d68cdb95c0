"""The frozen data that travels: what came in, what goes out, what came back, what it amounted to.

    Exchange   web -> gateway      one HTTP request as the client sent it
    Plan       gateway -> loop     what to send upstream, and by when
    Reply      loop -> gateway     the head of the answer; its body follows through the pipe
    Record     gateway -> observe  everything that is known at the end; logs and metrics are read off it

Header pairs are ``(name, value)`` in latin-1 text, in the order received, repeats kept. Instants (``*_at``) are
``time.monotonic()`` seconds; lengths carry their unit in the name.
Pure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Exchange:
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send upstream. Crosses the bridge downwards.

    Attributes:
        provider: Name of the provider in ``PROVIDERS``.
        method: HTTP method.
        origin: ``scheme://host[:port]`` of the upstream, from settings only.
        target: Path and query, sent as it stands.
        headers: Exactly the header pairs that reach the upstream (``host`` and framing excepted).
        body: Body bytes; ignored when an upload pipe is given alongside.
        deadline_at: Instant by which a non-stream exchange must be over.
        silence_s: Longest silence inside a streamed body.
        may_stream: The answer may be an event stream (false negatives are not allowed, false positives are).
        whole: The deadline covers the body too (false for file transfers, whose body only must not fall silent).
    """

    provider: str
    method: str
    origin: str
    target: str
    headers: Headers
    body: bytes
    deadline_at: float
    silence_s: float
    may_stream: bool = True
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Outbound:
    """One try as a transport sees it: ``body`` is bytes, or an async iterator for uploads."""

    method: str
    origin: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: what came of it (HTTP status or error slug) and how long it took.

    ``outcome`` is ``"200"``, ``"connect_failed"`` …; ``connection`` is ``new``, ``reused`` or ``""`` (not known).
    """

    outcome: str
    ms: float
    connection: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Head of the upstream's answer. Crosses the bridge upwards once.

    Attributes:
        status: HTTP status.
        headers: Header pairs as received.
        stream: The body is ``text/event-stream``.
        http_version: ``HTTP/2`` or ``HTTP/1.1``.
        attempts: The tries made, the successful one last.
        sent_at: Instant at which the last try was handed to the transport.
        head_at: Instant at which the head arrived on the loop.
    """

    status: int
    headers: Headers
    stream: bool
    http_version: str
    attempts: tuple[Attempt, ...]
    sent_at: float
    head_at: float


@dataclass(frozen=True, slots=True)
class Record:
    """Everything known about one finished exchange (B40). One is made per exchange, whatever happened.

    Times in milliseconds; None where that point was never reached. ``gateway_ms`` is what the gateway itself
    added: from receiving the request to handing it to the transport, plus from the upstream's head on the loop to
    the head in the worker, plus from the upstream's last byte to the end of the answer where the body was short.
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
    credential: str = ""
    queue_ms: float | None = None
    upstream_head_ms: float | None = None
    ttfb_ms: float | None = None
    total_ms: float = 0.0
    gateway_ms: float | None = None
    client_left: bool = False
    fallback: bool = False
    cause: str = ""
    tokens: dict[str, int] = field(default_factory=dict)
