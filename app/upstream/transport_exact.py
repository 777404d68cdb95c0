"""Decide which requests the Rust client cannot send byte for byte; those go out through httpcore.

Sources: the WHATWG URL standard, sections 1.3 (percent-encode sets) and 4.4 (path state), which reqwest's ``url``
crate follows; and what the echo endpoint showed with pyqwest 0.12 (the contract suite repeats it):
``'`` in a query becomes %27, a backslash in a path becomes ``/``, dot segments (``..``, ``%2e``) are resolved,
space, ``"<>`` ``{}`` and non-ASCII are encoded, tab and newline vanish, ``#`` ends the target.
Header values leave as UTF-8, so those with characters above U+007E go elsewhere; methods other than the six below
get a ``content-length: 0``; over HTTP/1.1 ``accept: */*`` cannot be kept from being added.
Pure.
"""

from __future__ import annotations

import re

from app.exchange import Outbound

_SAFE_TARGET = re.compile(
    r"/[!$&'()*+,\-./0-9:;=@A-Z\[\]^_a-z|~%]*(?:\?[!$&()*+,\-./0-9:;=?@A-Z\[\\\]^_`{|}a-z~%]*)?"
)
"""Characters that the path and special-query percent-encode sets leave alone."""

_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


def exact_only(outbound: Outbound, http1: bool) -> bool:
    """Whether this request has to be sent by httpcore to arrive as planned.

    Args:
        outbound: The request.
        http1: The Rust client would, or might, send it over HTTP/1.1.
    """
    if outbound.method not in _METHODS or not plain_target(outbound.target):
        return True
    accepts = False
    for name, value in outbound.headers:
        if not value.isascii() or not name.isascii():
            return True
        if name.lower() == "accept":
            accepts = True
    return http1 and not accepts


def plain_target(target: str) -> bool:
    """Whether the WHATWG parser leaves this path and query as they are."""
    if _SAFE_TARGET.fullmatch(target) is None:
        return False
    path = target.partition("?")[0]
    if path.startswith("//"):
        return False
    return ("." not in path and "%2" not in path) or _DOT_SEGMENT.search(path) is None
