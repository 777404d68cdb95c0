"""A throw-away certificate authority and the server's TLS context.

Runs on: simulator loop.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1", "::1")


def make_context(folder: Path, alpn: Sequence[str]) -> tuple[ssl.SSLContext, Path]:
    """Makes a new authority, writes its certificate to ``folder``/ca.pem, and issues the server's.

    Returns:
        The server's context, and the path of ca.pem.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    ca_path = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    authority.issue_cert(*NAMES).configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context, ca_path
