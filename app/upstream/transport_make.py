"""Make the client of a lane: which library, which protocol, with which limits.

Runs on: loop.
"""

from __future__ import annotations

import importlib.util
import ssl
from dataclasses import dataclass
from typing import Literal

from app.upstream.lanes import Kind
from app.upstream.transport_base import Transport
from app.upstream.transport_h2 import H2Transport
from app.upstream.transport_httpcore import HttpcoreTransport, Opened
from app.upstream.trust import trust

HTTPCORE_H2_CONNECTIONS = 2
"""A lane on httpcore has one connection, and a successor when the peer says GOAWAY."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a pool is made with.

    Attributes:
        origin: ``scheme://host[:port]``.
        transport: ``UPSTREAM_TRANSPORT``.
        max_connections: ``ANTHROPIC_MAX_CONNECTIONS``.
        max_keepalive: ``ANTHROPIC_MAX_KEEPALIVE``.
        keepalive_expiry_s: ``ANTHROPIC_KEEPALIVE_EXPIRY``.
        connect_timeout_s: ``CONNECT_TIMEOUT``.
        pool_timeout_s: Longest wait for a slot.
        streams_per_connection: Streams one HTTP/2 lane takes.
        http2: ``PRODUCTION_ENABLE_HTTP2``.
        ca_pem: Certificates trusted besides the system's.
        write_timeout_s: Longest wait for the upstream to take a piece of an upload.
        ping_interval_s: ``UPSTREAM_PING_INTERVAL``; 0 is off.
        ping_timeout_s: ``UPSTREAM_PING_TIMEOUT``.
        tells_connections: Every connection that is opened, used again or closed is told.
    """

    origin: str
    transport: Literal["auto", "h2", "reqwest", "httpcore"] = "auto"
    max_connections: int = 200
    max_keepalive: int = 100
    keepalive_expiry_s: float = 30.0
    connect_timeout_s: float = 5.0
    pool_timeout_s: float = 2.0
    streams_per_connection: int = 100
    http2: bool = True
    ca_pem: bytes | None = None
    write_timeout_s: float = 15.0
    ping_interval_s: float = 15.0
    ping_timeout_s: float = 10.0
    tells_connections: bool = False


class Maker:
    """Makes clients for one pool; trust stores are read once.

    Attributes:
        name: ``h2``, ``reqwest`` or ``httpcore``: what carries HTTP/2. HTTP/1.1 is carried by the Rust client
            where it is installed (and httpcore was not chosen), else by httpcore.
        why: Why this one.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self.name, self.why = _choice(options)

    def own(self, kind: Kind) -> bool:
        """Whether a lane of this kind runs on Penstock's own HTTP/2 client."""
        return self.name == "h2" and kind == "h2"

    def rust(self, kind: Kind) -> bool:
        """Whether a lane of this kind runs on the Rust client."""
        return self.name != "httpcore" and kind != "exact" and not self.own(kind) and _rust_installed()

    def h2(self) -> H2Transport:
        """One of our own HTTP/2 clients: one connection at a time."""
        options = self._options
        return H2Transport(
            options.origin,
            context=self._context(http2=True),
            max_streams=options.streams_per_connection,
            keepalive_expiry_s=options.keepalive_expiry_s,
            connect_timeout_s=options.connect_timeout_s,
            write_timeout_s=options.write_timeout_s,
            ping_interval_s=options.ping_interval_s,
            ping_timeout_s=options.ping_timeout_s,
        )

    def httpcore(self, kind: Kind, opened: Opened) -> HttpcoreTransport:
        """An httpcore client; ``opened`` is told of every connection."""
        options = self._options
        http2 = kind == "h2"
        return HttpcoreTransport(
            http2=http2,
            max_connections=HTTPCORE_H2_CONNECTIONS if http2 else options.max_connections,
            max_keepalive=options.max_keepalive,
            keepalive_expiry_s=options.keepalive_expiry_s,
            connect_timeout_s=options.connect_timeout_s,
            write_timeout_s=options.write_timeout_s,
            context=self._context(http2=http2),
            opened=opened,
            probe_after_s=options.ping_interval_s,
            probe_for_s=options.ping_timeout_s,
        )

    def _context(self, *, http2: bool) -> ssl.SSLContext:
        if http2 not in self._contexts:
            self._contexts[http2] = trust(self._options.ca_pem, http2=http2)
        return self._contexts[http2]

    def reqwest(self, kind: Kind, mark: int) -> Transport:
        """A Rust client whose connections carry ``mark``."""
        from app.upstream.transport_reqwest import ReqwestTransport  # only where pyqwest is installed

        options = self._options
        return ReqwestTransport(
            http2=kind == "h2",
            max_connections=options.max_connections,
            max_keepalive=options.max_keepalive,
            keepalive_expiry_s=options.keepalive_expiry_s,
            connect_timeout_s=options.connect_timeout_s,
            write_timeout_s=options.write_timeout_s,
            ca_pem=options.ca_pem,
            mark=mark,
        )


def _rust_installed() -> bool:
    return importlib.util.find_spec("pyqwest") is not None


def _choice(options: PoolOptions) -> tuple[str, str]:
    if options.transport != "auto":
        return options.transport, "chosen by UPSTREAM_TRANSPORT"
    if options.http2 and options.origin.startswith("https"):
        return "h2", "auto: HTTP/2 over TLS"
    if _rust_installed():
        return "reqwest", "auto: HTTP/1.1, and pyqwest is installed"
    return "httpcore", "auto: HTTP/1.1, and pyqwest is not installed"
