"""From a host name to an HTTP/2 connection that is ready for requests: DNS, TCP, TLS, the peer's SETTINGS.

The peer's SETTINGS are waited for, so that its limits are known before the first request and a peer that accepts
and hangs up is a failed connect, at which nothing was sent. Price: up to one round trip more on a new connection.
Everything happens on the loop (uvloop looks names up in libuv's own threads).
Runs on: loop.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.upstream.h2_connection import CLOSE_LIMIT_S, H2Connection


class NoHttp2Error(Exception):
    """The peer does not speak HTTP/2: nothing was sent."""


class NoConnectionError(Exception):
    """No connection came about: nothing was sent."""


class ConnectTooSlowError(Exception):
    """No connection came about in time: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Opened:
    """How a connection came about.

    Attributes:
        connect_ms: DNS and TCP.
        tls_ms: TLS handshake.
        settings_ms: From there to the peer's SETTINGS.
    """

    connect_ms: float
    tls_ms: float
    settings_ms: float


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection that was opened came to its end.

    Attributes:
        reason: In words.
        age_s: Since its beginning.
        streams: Opened on it, ever.
        broken: Of those, the ones that were not over.
        unresponsive: It owed the answer to a PING.
    """

    reason: str
    age_s: float
    streams: int
    broken: int
    unresponsive: bool


async def connect(
    host: str,
    port: int,
    context: ssl.SSLContext,
    timeout_s: float,
    closed: Callable[[str], None],
    capacity: int,
) -> tuple[H2Connection, Opened]:
    """A connection that takes requests.

    Args:
        host: Name or address; the certificate must be for it.
        port: TCP port.
        context: From ``trust``.
        timeout_s: For everything together.
        closed: Called with the reason when the connection is over.
        capacity: Most streams at a time.

    Raises:
        ConnectTooSlowError: It took longer than ``timeout_s``.
        NoHttp2Error: ALPN chose something else.
        NoConnectionError: Anything else; the text says what.
    """
    loop = asyncio.get_running_loop()
    connection = H2Connection(loop, closed, capacity)
    try:
        async with asyncio.timeout(timeout_s):
            return connection, await _open(loop, connection, host, port, context)
    except TimeoutError:
        raise ConnectTooSlowError(f"No connection to {host}:{port} within {timeout_s:g} s.") from None
    except ssl.SSLCertVerificationError as error:
        raise NoConnectionError(f"The certificate of {host} is not trusted: {error.verify_message}") from error
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA forbids
        raise NoConnectionError(f"No connection to {host}:{port}: {type(error).__name__}: {error}") from error


async def _open(
    loop: asyncio.AbstractEventLoop, connection: H2Connection, host: str, port: int, context: ssl.SSLContext
) -> Opened:
    began = time.monotonic()
    plain, _ = await loop.create_connection(asyncio.Protocol, host, port)
    connected = time.monotonic()
    secure: asyncio.Transport | None = None
    try:
        secure = await loop.start_tls(
            plain, connection, context, server_hostname=host, ssl_shutdown_timeout=CLOSE_LIMIT_S
        )
        if secure is None:
            raise ConnectionResetError("the peer closed it during the TLS handshake")
        handshaken = time.monotonic()
        chosen = secure.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen != "h2":
            raise NoHttp2Error(f"{host}:{port} offers {chosen or 'no protocol'} where HTTP/2 is asked for.")
        connection.attach(secure)
        await connection.ready
        if connection.ended:
            raise ConnectionResetError(connection.why)
    except NoHttp2Error:
        (secure or plain).close()  # politely: a reset may overtake the end of the handshake
        raise
    except BaseException:
        (secure or plain).abort()
        raise
    return Opened(
        (connected - began) * 1000.0, (handshaken - connected) * 1000.0, (time.monotonic() - handshaken) * 1000.0
    )
