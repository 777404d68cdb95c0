"""Try: send one plan, say in the gateway's terms what failed, and note how each try went.

What a failure means for the caller (may it be sent again?) is decided here by exception type, never by text.

Runs on: loop.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx

from app.errors import (
    ConnectFailed,
    DeadlinePassed,
    GatewayError,
    InvalidRequest,
    ProtocolBroken,
    QueueTimeout,
    StreamBroken,
    UpstreamError,
)
from app.exchange import Attempt, Outbound, Plan
from app.upstream.pool import Pool
from app.upstream.transport_base import Inbound


def before_head(error: httpx.TransportError) -> GatewayError:
    """What a transport failure before the head is called. ConnectFailed and QueueTimeout: nothing was sent.

    The client is not told the transport's words, which name addresses; the log is (``Record.cause``).
    """
    made: GatewayError
    if isinstance(error, httpx.PoolTimeout):
        made = QueueTimeout("No upstream connection became free in time.")
    elif isinstance(error, httpx.ConnectTimeout):
        made = ConnectFailed("The upstream could not be reached in time.")
    elif isinstance(error, httpx.ConnectError):
        made = ConnectFailed()
    elif isinstance(error, httpx.TimeoutException):
        made = DeadlinePassed()
    elif isinstance(error, httpx.LocalProtocolError):
        made = InvalidRequest("The request cannot be sent on: its method, target or a header is not valid HTTP.")
    else:
        made = ProtocolBroken()
    made.__cause__ = error
    return made


def in_body(error: httpx.TransportError) -> UpstreamError:
    """What a transport failure after the head is called."""
    made = StreamBroken()
    made.__cause__ = error
    return made


class Attempts:
    """The tries of one exchange.

    Attributes:
        made: What each try came to, in order.
        sent_at: Instant at which the last try went to the transport.
    """

    def __init__(self, pool: Pool, plan: Plan) -> None:
        self._pool = pool
        self._plan = plan
        self.made: list[Attempt] = []
        self.sent_at = 0.0

    async def send(self, body: bytes | AsyncIterator[bytes]) -> Inbound:
        """Send the plan; returns once the head is there.

        Raises:
            GatewayError: What failed, and by its branch whether anything may have been sent.
        """
        plan = self._plan
        outbound = Outbound(plan.method, plan.origin, plan.target, plan.headers, body)
        self.sent_at = began = time.monotonic()
        try:
            inbound = await self._pool.send(outbound, streaming=plan.may_stream, download=not plan.whole)
        except httpx.TransportError as exc:
            error = before_head(exc)
            self._note(error.slug, began)
            error.attempts = tuple(self.made)
            raise error from exc
        self._note(str(inbound.status), began, inbound.connection)
        return inbound

    def out_of_time(self) -> DeadlinePassed:
        """The deadline struck while the last try was under way."""
        error = DeadlinePassed()
        self._note(error.slug, self.sent_at)
        error.attempts = tuple(self.made)
        return error

    def _note(self, outcome: str, began: float, connection: str = "") -> None:
        self.made.append(Attempt(outcome, (time.monotonic() - began) * 1000.0, connection))
