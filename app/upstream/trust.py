"""Say whom the upstream's certificate may come from: one TLS context for every client of ours.

Runs on: loop.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi


def trust(ca_pem: bytes | None = None, *, http2: bool = True) -> ssl.SSLContext:
    """The TLS context of all connections: system store (certifi's where that is empty) plus ``ca_pem``.

    It reads files: make it once.

    Args:
        ca_pem: PEM certificates trusted besides the system's.
        http2: Offer HTTP/2 by ALPN, and not HTTP/1.1 alone.
    """
    context = ssl.create_default_context()
    system = _system_store()
    for place in system:  # OpenSSL leaves them out where SSL_CERT_FILE or SSL_CERT_DIR is set
        context.load_verify_locations(**place)
    if not system:
        context.load_verify_locations(cafile=certifi.where())
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return context


def _system_store() -> list[dict[str, str]]:
    """Where OpenSSL was built to look for certificates, as far as there are any."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    found = [{"cafile": str(file)}] if file.is_file() and file.stat().st_size else []
    if folder.is_dir() and any(folder.iterdir()):
        found.append({"capath": str(folder)})
    return found
