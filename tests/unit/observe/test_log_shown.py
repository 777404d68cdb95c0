"""observe/log_shown: bodies readable, cut where they were cut, binary named, secrets out.

Pure.
"""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exchange import Captured, Record
from app.observe.log_shown import Shown, bodies, body, headers
from app.observe.redact import Redactor

PLAIN = Redactor()
RECORD = Record("r", "messages", "POST", "/v1/messages", 200, "", request_bytes=20, response_bytes=30)


def test_a_whole_body() -> None:
    assert body(b'{"a":1}', 7, 100, PLAIN) == '{"a":1}'
    assert body(b"", 0, 100, PLAIN) == ""


def test_a_body_of_exactly_the_limit_is_whole() -> None:
    assert body(b"12345", 5, 5, PLAIN) == "12345"


def test_a_cut_body_says_how_much_is_left_out() -> None:
    assert body(b"12345", 105, 5, PLAIN) == "12345[cut: 100 of 105 bytes are left out]"


def test_a_compressed_body_that_is_cut_says_so() -> None:
    """How long it is decompressed is not known."""
    assert body(b"12345", 3, 5, PLAIN) == "12345[cut: 3 bytes compressed are more than these 5]"
    assert body(b"1234", 3, 5, PLAIN) == "1234"


def test_an_upload_that_passed_is_named() -> None:
    assert body(b"", 1000, 5, PLAIN) == "[not kept: 1000 bytes]"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd"),
        (b"%PDF-1.7\x00", "PDF"),
        (b"\x89PNG\r\n\x1a\n\x00", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"PK\x03\x04\x00", "zip"),
        (b"a\0b", "binary"),
        (b"\xfe\xfe", "binary"),
        (b"caf\xe9 au lait", "binary"),
    ],
)
def test_binary_is_named_not_dumped(start: bytes, kind: str) -> None:
    assert body(start, 999, len(start), PLAIN) == f"[{kind}: 999 bytes]"


@given(st.text(min_size=1), st.data())
def test_text_is_text_wherever_it_is_cut(text: str, data: st.DataObject) -> None:
    whole = text.replace("\0", "").encode(errors="ignore") + "€".encode()
    most = data.draw(st.integers(1, len(whole) - 1))
    found = body(whole[:most], len(whole), most, PLAIN)
    shown, _, mark = found.rpartition("[cut: ")
    assert mark == f"{len(whole) - most} of {len(whole)} bytes are left out]"
    assert whole.startswith(shown.encode()) or "[redacted]" in shown
    assert most - len(shown.encode()) < 4 or "[redacted]" in shown


def test_half_a_character_in_the_middle_is_no_text() -> None:
    assert body("€".encode()[:2] + b"abc", 10, 5, PLAIN) == "[binary: 10 bytes]"


def test_half_a_character_at_the_end_of_a_whole_body_is_no_text() -> None:
    assert body(b"abc" + "€".encode()[:2], 5, 100, PLAIN) == "[binary: 5 bytes]"


def test_a_secret_at_the_cut_is_not_shown() -> None:
    assert body(b'{"x":"my-own-', 40, 13, Redactor(["my-own-secret"])).startswith('{"x":"[redacted][cut')
    assert body(b'{"password":"hun', 40, 16, PLAIN).startswith('{"password":"[redacted][cut')


@pytest.mark.parametrize("request_body", [False, True])
@pytest.mark.parametrize("response_body", [False, True])
def test_only_what_is_asked_for_is_shown(request_body: bool, response_body: bool) -> None:
    record = RECORD._replace(captured=Captured(request_body=b"q" * 20, response_body=b"a" * 30))
    found = bodies(record, Shown(request_body, response_body, 100), PLAIN)
    wanted = {"request_body": "q" * 20} if request_body else {}
    wanted |= {"response_body": "a" * 30} if response_body else {}
    assert found == wanted
    assert bodies(RECORD, Shown(True, True, 100), PLAIN) == {}


def test_headers_have_small_names_repeats_joined_and_no_secrets() -> None:
    kept = Captured(
        (("X-Api-Key", "k"), ("Accept", "a"), ("accept", "b"), ("x", "Bearer abcdefghij")),
        (("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("request-id", "req_1")),
    )
    assert headers(kept, PLAIN) == {
        "request_headers": {"x-api-key": "[redacted]", "accept": "a, b", "x": "[redacted]"},
        "response_headers": {"set-cookie": "[redacted], [redacted]", "request-id": "req_1"},
    }
