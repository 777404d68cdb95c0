"""Describe the Anthropic API.

Sources: Anthropic's API reference (paths, headers, 32 MB for messages, 256 MB for batches, 500 MB for files).
Pure.
"""

from __future__ import annotations

import re

from app.providers.base import Endpoint, Provider


def _row(name: str, pattern: str, *, transfer: bool = False, repeatable: bool = False) -> Endpoint:
    return Endpoint(name, re.compile(pattern), transfer, repeatable)


PROVIDER = Provider(
    name="anthropic",
    dialect="anthropic",
    credential_headers=frozenset({"x-api-key", "authorization"}),
    key_header="x-api-key",
    version_header="anthropic-version",
    endpoints=(
        _row("messages", r"/v1/messages/?", repeatable=True),
        _row("count_tokens", r"/v1/messages/count_tokens/?", repeatable=True),
        _row("batches", r"/v1/messages/batches(/.*)?", transfer=True),
        _row("files", r"/v1/files(/.*)?", transfer=True),
        _row("skills", r"/v1/skills(/.*)?", transfer=True),
        _row("models", r"/v1/models(/.*)?", repeatable=True),
        _row("complete", r"/v1/complete/?", repeatable=True),
        _row("other", r".*"),
    ),
)
