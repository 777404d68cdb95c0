"""Look at the world for ``penstock check``: the upstream's TLS and HTTP/2, gunicorn's settings, the file limit.

No request is sent to the upstream: only a TLS handshake and the HTTP/2 connection preface.
Runs on: start-up.
"""

from __future__ import annotations

import json
import resource
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from app.settings import Settings

PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
)  # RFC 9113 section 3.4
GOODBYE: Final = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00" + b"\x00\x00\x08\x07\x00" + bytes(12)  # ACK, then GOAWAY
SETTINGS_FRAME: Final = 0x4
MAX_CONCURRENT_STREAMS: Final = 0x3  # RFC 9113 section 6.5.2


class Peer(NamedTuple):
    """What a handshake with the upstream showed. ``max_streams`` None: the peer sets no limit."""

    origin: str
    fault: str = ""
    is_untrusted: bool = False
    tls: str = ""
    protocol: str = ""
    max_streams: int | None = None


class Server(NamedTuple):
    """gunicorn's effective configuration, and what gevent said when it patched after loading it."""

    fault: str = ""
    has_config: bool = True
    worker_class: str = "gevent"
    is_gevent: bool = True
    keepalive_s: int = 0
    graceful_timeout_s: int = 0
    max_requests: int = 0
    worker_connections: int = 0
    hosts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    early: tuple[str, ...] = ()


# Does what gunicorn does up to the import of the application, in the same order. gunicorn itself imports ssl
# in the master, which gevent copes with; what counts is that nothing has taken names out of it, or made a loop.
_LOOK: Final = """
import json, os, sys, warnings
sys.argv = ["gunicorn", "wsgi:app"]
from gunicorn.app.wsgiapp import WSGIApplication
cfg = WSGIApplication().cfg
early = [name for name in ("asyncio", "httpx", "urllib3", "requests", "pyqwest", "grpc") if name in sys.modules]
cfg.worker_class
name = cfg.worker_class_str
is_gevent = "gevent" in name
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if is_gevent:
        from gevent import monkey
        monkey.patch_all()
print(json.dumps({
    "has_config": bool(cfg.config) and os.path.exists(cfg.config.removeprefix("file:")),
    "worker_class": name, "is_gevent": is_gevent, "keepalive_s": cfg.keepalive,
    "graceful_timeout_s": cfg.graceful_timeout, "max_requests": cfg.max_requests,
    "worker_connections": cfg.worker_connections, "early": early,
    "hosts": [address[0] for address in cfg.address if isinstance(address, tuple)],
    "warnings": [str(w.message).splitlines()[0] for w in caught if "MonkeyPatch" in w.category.__name__],
}))
"""


def server(environ: Mapping[str, str]) -> Server:
    """Load gunicorn's configuration of the current folder in a process of its own, and patch."""
    done = subprocess.run(  # noqa: S603 - this interpreter, a constant script
        [sys.executable, "-c", _LOOK], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
    )
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode != 0 or not last.startswith("{"):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Server(fault=said)
    found: dict[str, Any] = json.loads(last)
    found |= {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return Server(**found)


def open_files() -> int:
    """How many files this process may open (soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def upstream(settings: Settings) -> Peer:
    """Connect to the upstream, handshake, read its HTTP/2 settings, say goodbye."""
    url = urlsplit(settings.anthropic_upstream_url)
    host, is_tls = url.hostname or "", url.scheme == "https"
    port = url.port or (443 if is_tls else 80)
    origin = f"{url.scheme}://{url.netloc}"
    try:
        with socket.create_connection((host, port), timeout=settings.connect_timeout_s) as plain:
            if not is_tls:
                return Peer(origin)
            with context(settings).wrap_socket(plain, server_hostname=host) as secure:
                protocol = secure.selected_alpn_protocol() or "http/1.1"
                limit = _max_streams(secure) if protocol == "h2" else None
                return Peer(origin, tls=secure.version() or "TLS", protocol=protocol, max_streams=limit)
    except ssl.SSLCertVerificationError as error:
        return Peer(origin, fault=f"certificate not trusted: {error.verify_message}", is_untrusted=True)
    except (OSError, ValueError) as error:
        return Peer(origin, fault=f"cannot be reached: {error}")


def context(settings: Settings) -> ssl.SSLContext:
    """The system's trust store plus SSL_CERT_FILE, offering what the gateway would offer."""
    made = ssl.create_default_context()
    if settings.ssl_cert_file:
        made.load_verify_locations(settings.ssl_cert_file)
    made.set_alpn_protocols(["h2", "http/1.1"] if settings.production_enable_http2 else ["http/1.1"])
    return made


def _max_streams(secure: ssl.SSLSocket) -> int | None:
    """Exchange connection prefaces and read SETTINGS_MAX_CONCURRENT_STREAMS.

    Raises:
        OSError: The peer closed, or was silent for longer than the connect timeout.
    """
    secure.sendall(PREFACE)
    seen = b""
    while (values := settings_of(seen)) is None:
        piece = secure.recv(65536)
        if not piece:
            raise ConnectionError("closed before its HTTP/2 settings came")
        seen += piece
    secure.sendall(GOODBYE)
    return values.get(MAX_CONCURRENT_STREAMS)


def settings_of(seen: bytes) -> dict[int, int] | None:
    """The peer's HTTP/2 settings by identifier, out of the bytes it sent; None while they are not complete.

    Raises:
        ValueError: The first frame is not SETTINGS, so this is not HTTP/2 (RFC 9113 section 3.4).
    """
    if len(seen) < 9:
        return None
    length, kind = int.from_bytes(seen[:3]), seen[3]
    if kind != SETTINGS_FRAME:
        raise ValueError("the first HTTP/2 frame is not SETTINGS")
    if len(seen) < 9 + length:
        return None
    return dict(struct.iter_unpack(">HI", seen[9 : 9 + length - length % 6]))
