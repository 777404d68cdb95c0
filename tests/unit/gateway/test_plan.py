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
RULES = Rules(
    provider=PROVIDER,
    origin="https://up.example:8443",
    version="2023-06-01",
    strip_credentials=False,
    request_timeout_s=600.0,
    stream_timeout_s=300.0,
)
HEADERS = (("Host", "gw"), ("X-Api-Key", "caller"), ("Authorization", "Bearer caller"))
EXCHANGE = Exchange("r", "POST", "/v1/messages?beta=true", HEADERS, b'{"b":1,"a":2}', False, 13, "messages", 0.0)


def plan(exchange: Exchange = EXCHANGE, rules: Rules = RULES, now: float = 100.0) -> Plan:
    return make_plan(exchange, rules, endpoint_of(PROVIDER, exchange.target.split("\r")[0]), now)


@pytest.mark.parametrize(
    "target", ["/v1/messages", "/v1//a", "/v1/%41%2F?x=%zz&y=../..", "/v1/...", "/v1/.a/b.", "/v1/a%2e.b"]
)
def test_b11_targets_pass_as_they_are(target: str) -> None:
    check_target(target)
    assert plan(EXCHANGE._replace(target=target)).target == target


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
        plan(EXCHANGE._replace(target=target))


def test_b10_b12_the_callers_own_key_passes_and_only_the_version_is_added() -> None:
    made = plan()
    assert made.headers == (
        ("x-api-key", "caller"),
        ("authorization", "Bearer caller"),
        ("anthropic-version", "2023-06-01"),
    )
    assert made.body is EXCHANGE.body
    assert made.request_id == EXCHANGE.id
    assert (made.deadline_at, made.silence_s, made.whole) == (700.0, 300.0, True)


def test_b12_where_we_hold_keys_the_callers_own_ends_here() -> None:
    made = plan(rules=replace(RULES, strip_credentials=True))
    assert made.headers == (("anthropic-version", "2023-06-01"),)


@pytest.mark.parametrize(
    ("told", "counted"), [("0", 0), ("2", 2), ("-1", 0), ("x", 0), ("\xb2", 0), ("9" * 30, 1000), (None, 0)]
)
def test_b32_the_clients_own_retries_are_known(told: str | None, counted: int) -> None:
    pairs = HEADERS if told is None else (*HEADERS, ("X-Stainless-Retry-Count", told))
    assert plan(EXCHANGE._replace(headers=pairs)).client_retries == counted


@pytest.mark.parametrize(
    ("method", "target", "repeatable"),
    [
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/count_tokens", True),
        ("POST", "/v1/messages/batches", False),
        ("GET", "/v1/messages/batches/x", True),
        ("POST", "/v1/files", False),
        ("DELETE", "/v1/files/x", False),
        ("POST", "/v1/new", False),
    ],
)
def test_b30_what_may_be_processed_twice(method: str, target: str, repeatable: bool) -> None:
    assert plan(EXCHANGE._replace(method=method, target=target)).repeatable is repeatable


def test_b34_conversation_and_model_are_looked_for_only_where_keys_differ() -> None:
    body = b'{"model":"claude-x","messages":[{"role":"user","content":"hi"}]}'
    exchange = EXCHANGE._replace(body=body, caller="batch")
    made = plan(exchange)
    assert (made.conversation, made.model, made.caller) == (b"", "", "batch")
    made = plan(exchange, replace(RULES, affine=True, by_model=True))
    assert (len(made.conversation), made.model) == (16, "claude-x")


def test_b12_a_version_that_is_there_stays() -> None:
    made = plan(EXCHANGE._replace(headers=(("Anthropic-Version", "2099-01-01"),)))
    assert made.headers == (("anthropic-version", "2099-01-01"),)


def test_header_injection_ends_here() -> None:
    with pytest.raises(InvalidRequest, match="'x'"):
        plan(EXCHANGE._replace(headers=(("x", "a\r\nb: c"),)))


@pytest.mark.parametrize(("length", "added"), [(5, True), (None, False)])
def test_b16_a_streamed_body_keeps_its_declared_length(length: int | None, added: bool) -> None:
    made = plan(EXCHANGE._replace(target="/v1/files", streamed=True, content_length=length))
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
