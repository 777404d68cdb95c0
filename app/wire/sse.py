"""Find event boundaries in server-sent events, and write the few events that the gateway itself may send.

A boundary is a blank line; a line ends with LF, CR LF or CR (WHATWG HTML, section 9.2.5).
Pure.
"""

from __future__ import annotations

import json
import re

COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")


def complete(data: bytes) -> int:
    """How many leading bytes of ``data`` are whole events (0: none)."""
    if data.endswith(b"\n\n"):
        return len(data)
    last = 0
    for end in _ENDS:
        at = data.rfind(end)
        if at >= 0:
            last = max(last, at + len(end))
    return last


_FIRST_DATA = re.compile(rb"(?:^|[\r\n])data: ?([^\r\n]*)")
_NAME = re.compile("[a-z_]{1,64}")


def is_overloaded(data: bytes) -> bool:
    """Whether the first event of a stream is an ``overloaded_error`` (a 529 that came after its 200).

    Args:
        data: The stream's beginning, at least its first event.
    """
    return b"overloaded_error" in data and _stated(data) == "overloaded_error"


def error_type(data: bytes) -> str:
    """The type that an error event states (``api_error`` …), ``error`` where it states none that is a plain name.

    Args:
        data: Begins with that event, or with its data.
    """
    stated = _stated(data)
    return stated if isinstance(stated, str) and _NAME.fullmatch(stated) else "error"


def _stated(data: bytes) -> object:
    """``error.type`` of the first event with data, if that is an error."""
    found = _FIRST_DATA.search(data)
    try:
        event = json.loads(found.group(1)) if found is not None else None
    except (ValueError, RecursionError):
        return None
    error = event.get("error") if isinstance(event, dict) and event.get("type") == "error" else None
    return error.get("type") if isinstance(error, dict) else None


def error_event(kind: str, message: str, request_id: str) -> bytes:
    """A terminal Anthropic ``event: error``.

    Args:
        kind: ``error.type``, for example ``api_error`` or ``overloaded_error``.
        message: For people.
        request_id: The gateway's id of the exchange.
    """
    payload = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    return b"event: error\ndata: " + json.dumps(payload).encode() + b"\n\n"


def error_event_from(body: bytes) -> bytes:
    """A terminal ``event: error`` that carries an upstream's own error object verbatim, on one line.

    Raises:
        ValueError: ``body`` is not a JSON object of type ``error``.
    """
    parsed = json.loads(body)
    if not isinstance(parsed, dict) or parsed.get("type") != "error":
        raise ValueError("not an error object")
    return b"event: error\ndata: " + json.dumps(parsed, ensure_ascii=False).encode() + b"\n\n"
