"""gateway/watching: what is kept of an exchange for its log line, as much as was asked for and readable.

Pure.
"""

from __future__ import annotations

import gzip
import zlib

import pytest

from app.exchange import Captured, Exchange
from app.gateway.watching import Capture, Kept, readable

HEADERS = (("Host", "gw"), ("X-Api-Key", "secret"))
EXCHANGE = Exchange("r1", "POST", "/v1/messages", HEADERS, b"0123456789", False, 10, "messages", 0.0)
WORDS = b'{"text": "' + b"all work and no play " * 500 + b'"}'


def kept(capture: Capture, *pieces: bytes, exchange: Exchange = EXCHANGE, coding: str = "") -> Captured:
    made = Kept(capture)
    made.sent_headers = [("content-type", "x")]
    for piece in pieces:
        made.feed(piece)
    return made.captured(exchange, coding)


def test_only_what_was_asked_for_is_kept() -> None:
    assert kept(Capture(), b"answer") == Captured()
    assert kept(Capture(headers=True), b"answer") == Captured(HEADERS, (("content-type", "x"),))
    assert kept(Capture(request_body_bytes=4), b"answer") == Captured(request_body=b"0123")
    assert kept(Capture(response_body_bytes=4), b"an", b"sw", b"er") == Captured(response_body=b"answ")
    assert kept(Capture(response_body_bytes=99), b"an", b"swer") == Captured(response_body=b"answer")


@pytest.mark.parametrize("coding", ["gzip", "X-GZip", " deflate "])
@pytest.mark.parametrize("size", [30, 200, 100_000])
def test_a_coding_is_undone_as_far_as_it_goes_and_no_further_than_the_limit(coding: str, size: int) -> None:
    packed = zlib.compress(WORDS) if "deflate" in coding else gzip.compress(WORDS)
    found = kept(Capture(response_body_bytes=size), packed, coding=coding).response_body
    assert WORDS.startswith(found)
    assert len(found) <= size
    assert size < 200 or len(found) >= min(200, size)


def test_a_coded_request_is_readable_too() -> None:
    body = gzip.compress(WORDS)
    exchange = EXCHANGE._replace(body=body, headers=(("Content-Encoding", "gzip"),))
    assert kept(Capture(request_body_bytes=300), exchange=exchange).request_body == WORDS[:300]


@pytest.mark.parametrize("coding", ["br", "identity", "", "gzip"])
def test_what_cannot_be_undone_stays_as_it_is(coding: str) -> None:
    assert readable(b"\x1f\x8bnonsense", coding, 100) == b"\x1f\x8bnonsense"
