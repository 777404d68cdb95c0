"""wire/headers: what passes and what ends here (B12, B13; RFC 9110 sections 5.5 and 7.6.1).

Pure.
"""

from __future__ import annotations

import pytest

from app.wire import headers
from app.wire.headers import HOP_BY_HOP, fault, first, request_headers, response_headers

ENDS_HERE = sorted(HOP_BY_HOP | {"host", "content-length", "expect", "cookie", "forwarded", "x-forwarded-for"})


def test_b12_order_repeats_and_values_are_kept() -> None:
    pairs = (
        ("Anthropic-Beta", "a,b"),
        ("user-agent", "sdk/1"),
        ("ANTHROPIC-BETA", " c ; d"),
        ("x-stainless-retry-count", "1"),
    )
    assert request_headers(pairs) == [(name.lower(), value) for name, value in pairs]


@pytest.mark.parametrize("name", ENDS_HERE)
def test_b12_what_belongs_to_the_last_hop_ends_here(name: str) -> None:
    assert request_headers(((name.title(), "x"), ("accept", "*/*"))) == [("accept", "*/*")]


def test_b12_gateway_credentials_end_here() -> None:
    pairs = (("X-Api-Key", "k"), ("Authorization", "Bearer k"), ("x-api-key-2", "kept"))
    assert request_headers(pairs, frozenset({"x-api-key", "authorization"})) == [("x-api-key-2", "kept")]


@pytest.mark.parametrize("connection", [("close, X-Mine",), ("keep-alive", "x-mine ,te"), ("X-MINE",)])
def test_b12_what_connection_names_ends_here(connection: tuple[str, ...]) -> None:
    pairs = (("X-Mine", "1"), *(("Connection", value) for value in connection), ("x-mine", "2"), ("a", "b"))
    assert request_headers(pairs) == [("a", "b")]
    assert response_headers(pairs) == [("a", "b")]


def test_b12_a_plain_keep_alive_names_nothing() -> None:
    assert request_headers((("connection", "keep-alive"), ("a", "b"))) == [("a", "b")]


def test_b13_answers_keep_order_case_repeats_cookies_and_length() -> None:
    pairs = (("Set-Cookie", "a=1"), ("request-id", "r"), ("Set-Cookie", "b=2"), ("content-length", "3"))
    assert response_headers(pairs) == list(pairs)


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_b13_hop_by_hop_answer_headers_end_here(name: str) -> None:
    assert response_headers(((name.upper(), "x"), ("retry-after", "1"))) == [("retry-after", "1")]


def test_first_is_the_first() -> None:
    pairs = (("A", "1"), ("a", "2"))
    assert (first(pairs, "a"), first(pairs, "b")) == ("1", None)


@pytest.mark.parametrize("good", ["", "plain", "tab\tbed", "caf\xe9", "~ !"])
def test_allowed_values(good: str) -> None:
    assert fault([("x", good), ("y", good)]) == ""


@pytest.mark.parametrize("bad", ["a\r\nevil: 1", "a\nb", "nul\0", "\x7f", "\x80\x1f", "\u0100", "\ud800"])
def test_header_injection_is_named_without_its_value(bad: str) -> None:
    said = fault([("ok", "fine"), ("X-Bad", bad)])
    assert "'x-bad'" in said
    assert bad not in said


@pytest.mark.parametrize("name", ["Transfer-Encoding", "X-Forwarded-For", "X-Anything", "x" * 100])
def test_b12_a_name_meets_the_same_fate_again(name: str) -> None:
    pairs = ((name, "v"), ("Connection", "x-named"), ("X-Named", "1"), ("a", "b"))
    assert request_headers(pairs) == request_headers(pairs)
    assert response_headers(pairs) == response_headers(pairs)
    assert ("x-anything", "v") in request_headers(pairs) or name != "X-Anything"


def test_names_are_remembered_within_bounds() -> None:
    """Values never: they may be secret."""
    pairs = tuple((f"x-{number}", "secret") for number in range(2000))
    assert len(request_headers(pairs)) == len(response_headers(pairs)) == 2000
    assert max(len(headers._fates), len(headers._harmless)) <= headers._REMEMBERED
    assert not any("secret" in text for text in (*headers._fates, *headers._fates.values(), *headers._harmless))
    headers._harmless.clear()
