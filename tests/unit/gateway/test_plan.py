"""gateway/plan: targets, headers, credentials and deadlines of an exchange (B10-B12).

Pure.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.errors import InvalidRequest
from app.exchange import Exchange, Plan
from app.gateway.plan import Rules, check_target, endpoint_of, make_plan, may_stream, model_of
from app.providers.table import PROVIDERS

PROVIDER = PROVIDERS["anthropic"]
RULES = Rules.of(
    PROVIDER,
    "https://up.example:8443/base/",
    version="2023-06-01",
    strip_credentials=False,
    request_timeout_s=600.0,
    stream_timeout_s=300.0,
)
HEADERS = (("Host", "gw"), ("X-Api-Key", "caller"), ("Authorization", "Bearer caller"))
EXCHANGE = Exchange("r", "POST", "/v1/messages?beta=true", HEADERS, b'{"b":1,"a":2}', False, 13, "messages", 0.0)


def plan(exchange: Exchange = EXCHANGE, rules: Rules = RULES, key: str | None = None, now: float = 100.0) -> Plan:
    return make_plan(exchange, rules, endpoint_of(PROVIDER, exchange.target.split("\r")[0]), key, now)


@pytest.mark.parametrize(
    "target", ["/v1/messages", "/v1//a", "/v1/%41%2F?x=%zz&y=../..", "/v1/...", "/v1/.a/b.", "/v1/a%2e.b"]
)
def test_b11_targets_pass_as_they_are(target: str) -> None:
    check_target(target)
    assert plan(replace(EXCHANGE, target=target)).target == "/base" + target


@pytest.mark.parametrize(
    "target",
    ["", "v1", "*", "http://evil/v1", "/v1/\xe9", "/v1/a b", "/v1/a\r\nb", "/v1/a#b", "/v1/a\\..\\b"]
    + [
        f"/v1/{dots}{end}"
        for dots in (".", "..", "%2e", "%2E.", ".%2e", "%2e%2E")
        for end in ("", "/x", "%2fx", "%5cx")
    ],
)
def test_bad_targets_are_refused(target: str) -> None:
    with pytest.raises(InvalidRequest):
        plan(replace(EXCHANGE, target=target))


def test_b10_b12_the_callers_own_key_passes_and_only_the_version_is_added() -> None:
    made = plan()
    assert made.headers == (
        ("x-api-key", "caller"),
        ("authorization", "Bearer caller"),
        ("anthropic-version", "2023-06-01"),
    )
    assert made.body is EXCHANGE.body
    assert (made.origin, made.deadline_at, made.silence_s, made.whole) == (
        "https://up.example:8443",
        700.0,
        300.0,
        True,
    )


def test_b12_our_key_takes_the_place_of_theirs() -> None:
    made = plan(rules=replace(RULES, strip_credentials=True), key="ours")
    assert made.headers == (("x-api-key", "ours"), ("anthropic-version", "2023-06-01"))


def test_b12_a_version_that_is_there_stays() -> None:
    made = plan(replace(EXCHANGE, headers=(("Anthropic-Version", "2099-01-01"),)))
    assert made.headers == (("anthropic-version", "2099-01-01"),)


def test_header_injection_ends_here() -> None:
    with pytest.raises(InvalidRequest, match="'x'"):
        plan(replace(EXCHANGE, headers=(("x", "a\r\nb: c"),)))


@pytest.mark.parametrize(("length", "added"), [(5, True), (None, False)])
def test_b16_a_streamed_body_keeps_its_declared_length(length: int | None, added: bool) -> None:
    made = plan(replace(EXCHANGE, target="/v1/files", streamed=True, content_length=length))
    assert (("content-length", "5") in made.headers) is added
    assert not made.whole


def test_models_are_found_near_either_end_and_never_parsed() -> None:
    pad = b" " * 10_000
    assert model_of(b'{"model": "a"}') == "a"
    assert model_of(b"{" + pad + b'"model":"b"}') == "b"
    assert model_of(pad + b'"model":"c"' + pad) == ""
    assert model_of(b"\xff") == ""
    assert model_of(b'"model":"\xff"') == "\ufffd"


def test_only_bodies_that_say_so_may_stream_and_large_ones() -> None:
    assert may_stream(b'{"stream": false}')
    assert not may_stream(b"{}")
    assert may_stream(b" " * ((1 << 20) + 1))


def test_b11_a_backslash_in_a_query_is_passed() -> None:
    check_target("/v1/a?x=\\..\\")
