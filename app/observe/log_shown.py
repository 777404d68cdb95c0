"""Turn what was kept of an exchange into what a log may show: readable, cut where it was cut, and without secrets.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.exchange import Captured, Headers, Record
from app.observe.redact import Redactor

_KINDS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"%PDF-", "PDF"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"PK\x03\x04", "zip"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What log lines show of the bodies.

    Attributes:
        request_body: The request's.
        response_body: The answer's.
        most_bytes: So much of each, at most.
    """

    request_body: bool = False
    response_body: bool = False
    most_bytes: int = 0


def headers(kept: Captured, redactor: Redactor) -> dict[str, object]:
    """``request_headers`` and ``response_headers``: names in small letters, repeats joined by a comma."""
    return {
        "request_headers": _headers(kept.request_headers, redactor),
        "response_headers": _headers(kept.response_headers, redactor),
    }


def _headers(pairs: Headers, redactor: Redactor) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        name, shown = name.lower(), redactor.header(name, value)
        found[name] = f"{found[name]}, {shown}" if name in found else shown
    return found


def bodies(record: Record, shown: Shown, redactor: Redactor) -> dict[str, object]:
    """``request_body`` and ``response_body``, as far as they are asked for."""
    kept = record.captured
    found: dict[str, object] = {}
    if kept is None:
        return found
    if shown.request_body:
        found["request_body"] = body(kept.request_body, record.request_bytes, shown.most_bytes, redactor)
    if shown.response_body:
        found["response_body"] = body(kept.response_body, record.response_bytes, shown.most_bytes, redactor)
    return found


def body(start: bytes, whole_bytes: int, most_bytes: int, redactor: Redactor) -> str:
    """A body as text.

    Args:
        start: Its beginning, decompressed where that was possible.
        whole_bytes: Its size on the wire.
        most_bytes: Most that is kept of it.
        redactor: Takes secrets out.

    Returns:
        The text, with ``[cut: …]`` at its end if there is more of it; or in brackets what it is, for binary data
        and for what was not kept, as uploads that are passed on while they arrive.
    """
    if not start:
        return f"[not kept: {whole_bytes} bytes]" if whole_bytes else ""
    cut = len(start) >= most_bytes or len(start) < whole_bytes  # decompressed, it may be longer than on the wire
    text = _text(start, cut)
    if text is None:
        return f"[{_kind(start)}: {whole_bytes} bytes]"
    text = redactor.text(text, cut=cut)
    if not cut or len(start) == whole_bytes:
        return text
    if len(start) < whole_bytes:
        return f"{text}[cut: {whole_bytes - len(start)} of {whole_bytes} bytes are left out]"
    return f"{text}[cut: {whole_bytes} bytes compressed are more than these {len(start)}]"


def _text(start: bytes, cut: bool) -> str | None:
    """As text, without a character that was cut in two; None for binary data."""
    if b"\0" in start:
        return None
    try:
        return start.decode()
    except UnicodeDecodeError as error:
        if cut and error.reason == "unexpected end of data":
            return start[: error.start].decode()
        return None


def _kind(start: bytes) -> str:
    return next((name for magic, name in _KINDS if start.startswith(magic)), "binary")
