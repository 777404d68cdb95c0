"""The provider's texts: JSON bodies, event streams, header sets. All made up, all in the real shapes.

Pure.
"""

from __future__ import annotations

import itertools
import json
from functools import lru_cache

from app.simulator.heads import Head, Pairs

_RESET_AT = "2026-01-01T00:00:00Z"


def _limits(name: str, limit: int, left: int) -> list[tuple[str, str]]:
    """The three rate-limit headers of one kind of token."""
    prefix = f"anthropic-ratelimit-{name}"
    return [(f"{prefix}-limit", str(limit)), (f"{prefix}-remaining", str(left)), (f"{prefix}-reset", _RESET_AT)]


_OTHER_HEADERS: Pairs = (
    *_limits("input-tokens", 400_000, 400_000),
    *_limits("output-tokens", 80_000, 80_000),
    *_limits("tokens", 480_000, 480_000),
    ("anthropic-organization-id", "5e0f6c1a-9d3b-4c57-8a21-0000000051f0"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("x-robots-tag", "none"),
    ("cf-cache-status", "DYNAMIC"),
    ("server", "cloudflare"),
)
PROVIDER_HEADERS: Pairs = (*_limits("requests", 4000, 3999), *_OTHER_HEADERS)
_JSON: Pairs = (("content-type", "application/json"),)
_SSE: Pairs = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
JSON_HEAD = Head([*_JSON, *PROVIDER_HEADERS])
SSE_HEAD = Head([*_SSE, *PROVIDER_HEADERS])
# The same without a limit on requests, for a key whose program states its own.
UNLIMITED = {JSON_HEAD: Head([*_JSON, *_OTHER_HEADERS]), SSE_HEAD: Head([*_SSE, *_OTHER_HEADERS])}
OCTETS_HEAD = Head([("content-type", "application/octet-stream"), *PROVIDER_HEADERS])
JSONL_HEAD = Head([("content-type", "application/x-jsonl"), *PROVIDER_HEADERS])
HTML_HEAD = Head(
    [("content-type", "text/html; charset=UTF-8"), ("server", "cloudflare"), ("cf-ray", "sim0000000000000-AMS")]
)

TEXT = (
    "A penstock is the gated pipe that leads water under pressure to a turbine. "
    "Its gate decides how much may pass, and when."
)
WORDS = ("A", " penstock", " is", " the", " gated", " pipe", " that", " leads", " water", " to", " a", " turbine.")

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ERROR_TEXTS = {
    400: "The request body is not valid.",
    401: "invalid x-api-key",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not found",
    413: "Request exceeds the maximum size",
    429: "This request would exceed your organization's rate limit.",
    529: "Overloaded",
}
_ids = itertools.count(1)


def request_id() -> bytes:
    """A new ``request-id``, always 26 bytes."""
    return b"req_011SIM%016d" % next(_ids)


def message_id() -> bytes:
    """A new message id."""
    return b"msg_01SIM%017d" % next(_ids)


@lru_cache(maxsize=1024)
def quoted(text: str) -> bytes:
    """``text`` as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")


@lru_cache(maxsize=16)
def text_of(size_kib: int) -> bytes:
    """The answer's text, JSON-escaped; filler of ``size_kib`` KiB unless 0."""
    return b"x" * (size_kib * 1024) if size_kib else TEXT.encode()


def message(model: str, text: bytes, input_tokens: int = 25, output_tokens: int = 21) -> bytes:
    """A message as the API answers it without streaming; ``text`` is JSON-escaped already."""
    return (
        b'{"model":"%s","id":"%s","type":"message","role":"assistant","content":[{"type":"text","text":"%s"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},'
        b'"output_tokens":%d,"service_tier":"standard"}}'
        % (quoted(model), message_id(), text, input_tokens, output_tokens)
    )


def error(status: int, identifier: bytes, detail: str = "") -> bytes:
    """The API's error body."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    text = detail or _ERROR_TEXTS.get(status, "Internal server error" if status >= 500 else "Invalid request")
    return b'{"type":"error","error":{"type":"%s","message":"%s"},"request_id":"%s"}' % (
        kind.encode(),
        quoted(text),
        identifier,
    )


def html_error(status: int) -> bytes:
    """What an edge in front of the API answers when it cannot reach it."""
    return (
        f"<html>\r\n<head><title>{status} Bad Gateway</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} Bad Gateway</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
        "</body>\r\n</html>\r\n"
    ).encode()


# ---- event streams; the API pads the end of each data object with spaces, so these do too

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_PADS = tuple(b" " * size for size in (5, 1, 9, 3, 12, 0, 7, 2))
_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}%s}\n\n'
)
OVERLOADED = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}        }\n\n'
)
HALF_EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_de'


def stream_start(model: str, input_tokens: int = 25) -> bytes:
    """message_start, the opening of the text block, and a ping."""
    return (
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"%s","id":"%s","type":"message",'
        b'"role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":%d,'
        b'"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,'
        b'"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard"}}          }\n\n'
        b"event: content_block_start\n"
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}    }\n\n'
        b"%s" % (quoted(model), message_id(), input_tokens, PING)
    )


def delta(index: int, text: bytes) -> bytes:
    """The ``index``-th text delta; ``text`` is JSON-escaped already."""
    return _DELTA % (text, _PADS[index & 7])


def stream_stop(output_tokens: int, input_tokens: int = 25) -> bytes:
    """The end of the block, the cumulative usage and message_stop."""
    return (
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0             }\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
        b'"stop_sequence":null},"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":0,"output_tokens":%d}'
        b"   }\n\n"
        b'event: message_stop\ndata: {"type":"message_stop"          }\n\n' % (input_tokens, output_tokens)
    )
