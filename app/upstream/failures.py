"""Say what a transport's failure is in the gateway's terms, and what it is to the retry policy.

Pure.
"""

from __future__ import annotations

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
from app.policy.retry import Kind
from app.upstream.transport_base import NotProcessed


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


def kind_of(error: httpx.TransportError) -> Kind | None:
    """What a transport failure before the head is to the retry policy; None: the client's own fault.

    An upload that its client broke off fails with what ``client.read`` raised as its cause.
    """
    if isinstance(error, httpx.LocalProtocolError) or isinstance(error.__cause__, GatewayError):
        return None
    if isinstance(error, httpx.PoolTimeout):
        return "pool"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "connect"
    return "unprocessed" if isinstance(error, NotProcessed) else "broken"


def in_body(error: httpx.TransportError) -> UpstreamError:
    """What a transport failure after the head is called."""
    made = StreamBroken()
    made.__cause__ = error
    return made
