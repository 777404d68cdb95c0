"""Request heads, bodies and routes are understood whatever protocol brought them."""

from __future__ import annotations

import hashlib
import json

import hpack
import pytest

from app.simulator.body import KEEP_BYTES, Body
from app.simulator.hpack_cache import HeadDecoder
from app.simulator.request import RequestHead
from app.simulator.routes import match


@pytest.mark.parametrize(
    ("method", "path", "name", "arg"),
    [
        ("POST", "/v1/messages", "messages", ""),
        ("POST", "/any/prefix/messages", "messages", ""),
        ("POST", "/v1/messages/count_tokens", "count_tokens", ""),
        ("POST", "/v1/messages/batches", "batch_create", ""),
        ("GET", "/v1/messages/batches", "batch_list", ""),
        ("GET", "/v1/messages/batches/b_1", "batch", "b_1"),
        ("GET", "/v1/messages/batches/b_1/results", "batch_results", "b_1"),
        ("POST", "/v1/messages/batches/b_1/cancel", "batch", "b_1"),
        ("GET", "/v1/models", "models", ""),
        ("GET", "/v1/models/claude-3.5", "model", "claude-3.5"),
        ("POST", "/v1/files", "file_upload", ""),
        ("GET", "/v1/files/f/content", "file_content", "f"),
        ("DELETE", "/v1/files/f", "file_delete", "f"),
        ("PATCH", "/deep/echo", "echo", ""),
        ("GET", "/__stats", "__stats", ""),
        ("GET", "/__keys", "__keys", ""),
        ("POST", "/__keys", "__keys", ""),
        ("POST", "/__stats", "missing", ""),
        ("GET", "/__nothing", "missing", ""),
        ("GET", "/v1/messages", "missing", ""),
        ("GET", "/", "missing", ""),
    ],
)
def test_routes_end_paths(method: str, path: str, name: str, arg: str) -> None:
    assert match(method, path) == (name, arg)
    assert match(method, path).control == name.startswith("__")


def test_a_head_finds_its_options_in_any_case() -> None:
    head = RequestHead("GET", "/a?b=c", [("Host", "h:1"), ("X-Sim-Scenario", "hang"), ("x-sim-replay", "3")], "h2")
    assert (head.path, head.authority, head.scenario, head.replay) == ("/a", "h:1", "hang", "3")
    assert head.get("x-sim-scenario") == "hang"
    assert head.get("absent") == ""
    assert head.base_url == "https://h:1"
    assert RequestHead("GET", "/", [("x-lab-scenario", "golden")], "http/1.1-plain", "a").base_url == "http://a"


def test_a_whole_body_is_read() -> None:
    body = Body()
    data = json.dumps({"model": "m", "stream": True, "metadata": {"user_id": "u"}}).encode()
    body.feed(data)
    assert body.asked() == ("m", True, "u")
    assert (body.first, body.last, body.size) == (data, data, len(data))
    assert body.sha256 == hashlib.sha256(data).hexdigest()


def test_a_model_in_the_prompt_is_not_the_model() -> None:
    body = Body()
    body.feed(json.dumps({"messages": [{"content": '"model": "no", "stream": true'}], "model": "yes"}).encode())
    assert body.asked() == ("yes", False, "")


@pytest.mark.parametrize("data", [b"", b"[1]", b"nonsense", b'{"model": 5}'])
def test_a_body_that_names_no_model(data: bytes) -> None:
    body = Body()
    body.feed(data)
    assert body.asked() == ("", False, "")


@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("size", [20_000, 400_000])
def test_a_large_body_keeps_its_ends_only(front: bool, size: int) -> None:
    fields, filler = b'"model": "m","stream":true,"metadata":{"user_id":"u"}', b'"x":"' + b"x" * size + b'"'
    data = b"{" + (fields + b"," + filler if front else filler + b"," + fields) + b"}"
    body = Body()
    for at in range(0, len(data), 1000):
        body.feed(data[at : at + 1000])
    assert body.asked() == ("m", True, "u")
    assert body.first == data[:KEEP_BYTES]
    assert body.sha256 == hashlib.sha256(data).hexdigest()
    assert len(body.last) <= KEEP_BYTES
    assert data.endswith(body.last)


def test_equal_header_blocks_share_a_head_while_the_table_stands_still() -> None:
    encoder, decoder = hpack.Encoder(), HeadDecoder()
    fields = [(":method", "GET"), (":path", "/v1/models"), (":authority", "a"), ("x-odd", "\xe9")]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    first = decoder.decode(encoder.encode(raw))
    block = encoder.encode(raw)
    second, third = decoder.decode(block), decoder.decode(block)
    assert first is not None
    assert second is third
    assert second is not None
    assert second.headers == first.headers == [("x-odd", "\xe9")]
    assert second.authority == "a"
    changed = decoder.decode(encoder.encode([*raw, (b"x-new", b"1")]))
    assert changed is not None
    assert changed.get("x-new") == "1"
    again = decoder.decode(encoder.encode(raw))
    assert again is not None
    assert again is not second
    assert again.headers == second.headers


def test_a_resized_table_is_followed() -> None:
    encoder, decoder = hpack.Encoder(), HeadDecoder()
    raw = [(b":method", b"GET"), (b":path", b"/a")]
    decoder.decode(encoder.encode(raw))
    encoder.header_table_size = 100
    assert decoder.decode(encoder.encode(raw)) is not None
    assert decoder.decode(hpack.Encoder().encode([(b"trailer", b"1")])) is None
