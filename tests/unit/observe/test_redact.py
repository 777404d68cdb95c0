"""observe/redact: no secret comes through, whatever it is in and wherever that is cut; the rest stays.

Pure.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.observe import redact
from app.observe.redact import MARK, Redactor, is_secret

PLAIN = Redactor()
NAMES = [
    "authorization",
    "Authorization",
    "proxy-authorization",
    "x-api-key",
    "X-Api-Key",
    "api_key",
    "apikey",
    "apiKey",
    "ANTHROPIC_API_KEY",
    "password",
    "db_password",
    "userPassword",
    "passwd",
    "passphrase",
    "secret",
    "client_secret",
    "clientSecret",
    "access_token",
    "refresh_token",
    "refreshToken",
    "token",
    "private_key",
    "secret_access_key",
    "cookie",
    "set-cookie",
    "Set-Cookie",
    "credentials",
]
HARMLESS = [
    "max_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "tokens",
    "tokenizer",
    "model",
    "key",
    "primary_key",
    "idempotency-key",
    "keyboard",
    "anthropic-ratelimit-tokens-remaining",
    "x-request-id",
    "secretary",
    "author",
    "compass",
]
LOOKS = [
    "sk-ant-api03-abcDEF_123-xyz",
    "sk-ant-x",
    "sk-proj-abcdefgh12345",
    "sk-abcdefghijklmnop",
    "Bearer abcdefghijk",
    "bearer abc.def-ghi_jkl",
    "BEARER  0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "gho_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijklmnop",
    "glpat-abcdefghij0123456789",
    "xoxb-1234567890-abcdef",
    "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
    "hvs.CAESIabcdefghijklmnop",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbU",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi",
]
# what a secret may consist of, each form with what its surroundings cannot tell from their own signs left out
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=4)
WORDS = st.text(string.ascii_letters + string.digits + "_.~+/=-", min_size=6, max_size=40)


@pytest.mark.parametrize("name", NAMES)
def test_a_secrets_name(name: str) -> None:
    assert is_secret(name)
    assert PLAIN.header(name, "anything") == MARK
    for text in (
        f'{{"{name}": "v4lue", "b": 1}}',
        f"{name}=v4lue&b=1",
        f"{name}: v4lue\nb",
        f"{{'{name}': 'v4lue'}}",
    ):
        assert "v4lue" not in PLAIN.text(text), text
        assert "b" in PLAIN.text(text) or "b" not in text


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_name(name: str) -> None:
    assert not is_secret(name)
    assert PLAIN.header(name, "anything") == "anything"
    for text in (f'{{"{name}": "v4lue", "b": 1}}', f"{name}=v4lue&b=1", f'{{"{name}":12}}'):
        assert PLAIN.text(text) == text


@pytest.mark.parametrize("secret", LOOKS)
def test_what_looks_like_a_secret(secret: str) -> None:
    for before, behind in (("", ""), ("see ", " there"), ('{"text":"', '"}'), ("(", ")"), ("\n", "\n")):
        assert PLAIN.text(before + secret + behind) == before + MARK + behind
    assert PLAIN.header("x-other", secret) == MARK


@pytest.mark.parametrize(
    "text",
    [
        "a task-management-system, a risk-assessment-form",
        "the token is used; a secret stays a secret, and a cookie is eaten",
        "https://example.com/a@b and mail@example.com",
        "monkeyJungleInTheForest",
        "bearer of bad news",
        '{"usage":{"input_tokens":12,"output_tokens":5},"stop_reason":"end_turn"}',
        "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
        "",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert PLAIN.text(text, cut=True) == text


def test_users_and_passwords_of_urls() -> None:
    assert PLAIN.text("redis://user:p4ss@host:6379/0") == f"redis://{MARK}@host:6379/0"
    assert PLAIN.text("https://:p@ss@host/x?y=z@w") == f"https://{MARK}@host/x?y=z@w"


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "])
def test_private_keys(kind: str) -> None:
    key = f"-----BEGIN {kind}PRIVATE KEY-----\nMIIabc\n-----END {kind}PRIVATE KEY-----"
    assert PLAIN.text(f"a {key} b {key} c") == f"a {MARK} b {MARK} c"
    assert PLAIN.text(json.dumps({"k": key})) == json.dumps({"k": MARK})
    for end in range(key.index("MII"), len(key)):
        assert PLAIN.text(f"a {key[:end]}", cut=True) == f"a {MARK}"


def nested(value: object, depth: int) -> str:
    """JSON in a string in JSON …"""
    text = json.dumps(value)
    for _ in range(depth):
        text = json.dumps({"inner": text})
    return text


def unnested(text: str, depth: int) -> Any:
    for _ in range(depth):
        text = json.loads(text)["inner"]
    return json.loads(text)


@given(VALUES, st.sampled_from(NAMES), st.integers(0, 3))
def test_in_json_the_value_goes_and_all_else_stays(secret: str, name: str, depth: int) -> None:
    text = nested({"a": "before", name: secret, "b": ["behind"]}, depth)
    assert unnested(PLAIN.text(text), depth) == {"a": "before", name: MARK, "b": ["behind"]}


@given(VALUES, st.integers(0, 3), st.data())
def test_in_json_that_is_cut_nothing_of_the_value_is_seen(secret: str, depth: int, data: st.DataObject) -> None:
    text = nested({"a": "before", "password": secret, "b": 1}, depth)
    start = text.index("password") + len("password")
    found = PLAIN.text(text[: data.draw(st.integers(start, len(text)))], cut=True)
    behind = found[found.index("password") + len("password") :].replace(MARK, "")
    assert re.fullmatch(r'[\\": ,b1}]*', behind), behind


JSON = st.recursive(
    VALUES | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(VALUES, inner),
)


@given(st.lists(JSON, min_size=1) | st.dictionaries(VALUES, JSON, min_size=1), st.integers(0, 2))
def test_objects_and_lists_go_as_a_whole(value: object, depth: int) -> None:
    text = nested({"a": "before", "secrets": value, "b": ["behind"]}, depth)
    found = PLAIN.text(text)
    head, tail = found.split(MARK)
    assert head.rstrip("\\").endswith(": ")
    assert re.sub(r"\\", "", tail).startswith(', "b": ["behind"]')


@given(VALUES, st.sampled_from(["password", "client_secret", "access_token"]))
def test_in_a_form(secret: str, name: str) -> None:
    text = urlencode({"a": "before", name: secret, "b": "behind"})
    assert PLAIN.text(text) == f"a=before&{name}={MARK}&b=behind"


@given(WORDS, st.sampled_from(["", "Bearer ", "Basic ", "Token "]))
def test_in_headers_as_text(secret: str, scheme: str) -> None:
    text = f"GET /\r\nAuthorization: {scheme}{secret}\r\ncookie: a={secret}; b={secret}\r\naccept: */*\r\n\r\n"
    assert PLAIN.text(text) == f"GET /\r\nAuthorization: {MARK}\r\ncookie: {MARK}\r\naccept: */*\r\n\r\n"
    assert PLAIN.text(f"authorization={scheme}{secret}&b=1") == f"authorization={MARK}&b=1"
    assert json.loads(PLAIN.text(json.dumps({"curl": text})))["curl"] == PLAIN.text(text)


@pytest.mark.parametrize(
    "text", ["api_key = 'v4lue'", 'API_KEY="v4lue"', "token => v4lue", "pwd:=v4lue", "password='a\"v4lue"]
)
def test_in_code_and_prose(text: str) -> None:
    found = PLAIN.text(text)
    assert "v4lue" not in found or text.startswith("password='a\"")
    assert MARK in found


@pytest.mark.parametrize("value", ["null", "true", "12"])
def test_values_without_quotes(value: str) -> None:
    assert PLAIN.text(f'{{"token":{value},"b":1}}') == f'{{"token":{MARK},"b":1}}'


def test_nothing_is_blanked_where_there_is_nothing() -> None:
    assert PLAIN.text('{"password":""}') == '{"password":""}'
    assert PLAIN.text("password=") == "password="


def test_an_object_ends_with_the_string_it_is_cut_in() -> None:
    text = r'{"partial":"{\"secrets\": {\"a\": 1"} {"next":1}'
    assert PLAIN.text(text) == r'{"partial":"{\"secrets\": ' + MARK + '"} {"next":1}'


def test_letters_that_grow_when_they_are_made_small_do_not_shift_anything() -> None:
    assert PLAIN.text('{"İİİ":1,"PassWord":"v4lue","b":2}') == f'{{"İİİ":1,"PassWord":"{MARK}","b":2}}'


@given(VALUES, st.text(max_size=30), st.text(max_size=30))
def test_what_the_gateway_was_configured_with(secret: str, before: str, behind: str) -> None:
    redactor = Redactor([secret, "short-of-it", ""])
    assume(secret not in before + MARK + behind)
    for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")):
        found = redactor.text(f"{before}\n{form}\n{behind}")
        assert form not in found.replace(MARK, "")


def test_of_two_secrets_one_in_the_other_nothing_is_left() -> None:
    assert Redactor(["abcd", "abcdefgh"]).text("abcdefgh abcd") == f"{MARK} {MARK}"


@pytest.mark.parametrize("length", range(4, 16))
def test_the_beginning_of_a_secret_at_a_cut(length: int) -> None:
    redactor = Redactor(["my-own-secret-12", "t-my-own"])
    text = "text my-own-secret-12"[: 5 + length]
    assert redactor.text(text, cut=True) == f"text {MARK}"
    assert redactor.text(text) == text or length == 16


def test_too_short_to_be_looked_for() -> None:
    assert Redactor(["abc"]).text("abc abcd") == "abc abcd"


def test_nothing_is_shown_by_its_repr() -> None:
    assert "my-own-secret" not in repr(Redactor(["my-own-secret"]))


# ---------------------------------------------------------------- linear time

SIZE = 1 << 20
HOSTILE = {
    "quotes": '"' * SIZE,
    "backslashes": "\\" * SIZE,
    "opened": '"password":"' + "\\" * SIZE,
    "escaped quotes": '"password":"' + '\\"' * (SIZE // 2),
    "single quotes": "password='" + '"' * SIZE,
    "other quotes": '"password":"' + "'" * SIZE,
    "names": "password" * (SIZE // 8),
    "names and colons": "token:" * (SIZE // 6),
    "opened names": 'token:"' * (SIZE // 7),
    "opened lists": "token:[" * (SIZE // 7),
    "brackets": "secret:" + "[" * SIZE,
    "brackets and quotes": "secret:" + '["' * (SIZE // 2),
    "brackets and escapes": "secret:" + '[\\"' * (SIZE // 3),
    "spaces": "password" + " " * SIZE,
    "jwt": "eyJ" * (SIZE // 3),
    "jwt parts": "eyJaaaaaaaaaa." * (SIZE // 14),
    "sk": "sk-" * (SIZE // 3),
    "urls": "://" * (SIZE // 3),
    "users": "://" + "a:" * (SIZE // 2),
    "keys": "-----BEGIN PRIVATE KEY-----" * (SIZE // 27),
    "half keys": "-----BEGIN " * (SIZE // 11),
    "big letters": "İ" * SIZE,
}


class Counting:
    """A pattern that counts how many characters its searches went over."""

    def __init__(self, pattern: re.Pattern[str], steps: list[int]) -> None:
        self._pattern = pattern
        self._steps = steps

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        found = self._pattern.search(text, start)
        self._steps.append((found.end() if found else len(text)) - start + 1)
        return found

    def match(self, text: str, start: int = 0) -> re.Match[str] | None:
        found = self._pattern.match(text, start)
        self._steps.append(found.end() - start + 1 if found else 1)
        return found

    def finditer(self, text: str, start: int = 0) -> Iterator[re.Match[str]]:
        last = start
        for found in self._pattern.finditer(text, start):
            self._steps.append(found.end() - last + 1)
            last = found.end()
            yield found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_gone_over_a_few_times_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    for one in ("KEY", "QUOTES", "PLAIN", "PLAIN_JSON", "LINE", "FORM", "BRACKETS", "PEM"):
        monkeypatch.setattr(redact, one, Counting(getattr(redact, one), steps))
    walk = redact._first_backslash

    def walked(text: str, at: int, start: int) -> int:
        found = walk(text, at, start)
        steps.append(at - found)
        return found

    monkeypatch.setattr(redact, "_first_backslash", walked)
    text = HOSTILE[name]
    PLAIN.text(text, cut=True)
    assert sum(steps) <= 4 * len(text) + 1000


def repeats(parsed: Any, last: bool = True) -> Iterator[tuple[str, int, bool]]:
    """Of each repeat in a parsed pattern: its kind, its upper bound, whether nothing behind it could fail."""
    items = list(parsed)
    for at, (kind, value) in enumerate(items):
        rest_may_be_nothing = last and all(_optional(one) for one in items[at + 1 :])
        name = str(kind)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            yield name, int(value[1]), rest_may_be_nothing
            yield from repeats(value[2], last=name == "POSSESSIVE_REPEAT" and rest_may_be_nothing)
        elif name == "BRANCH":
            for branch in value[1]:
                yield from repeats(branch, rest_may_be_nothing)
        elif name == "SUBPATTERN":
            yield from repeats(value[3], rest_may_be_nothing)
        elif name == "ATOMIC_GROUP":
            yield from repeats(value, rest_may_be_nothing)


def _optional(item: tuple[Any, Any]) -> bool:
    kind, value = item
    return str(kind) in ("MAX_REPEAT", "POSSESSIVE_REPEAT") and int(value[0]) == 0


PATTERNS = [redact.NAME, redact.KEY, redact.PEM, redact.PLAIN, redact.PLAIN_JSON, redact.LINE, redact.FORM]
PATTERNS += [pattern for _, pattern in redact.LOOKS]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: str(one.pattern)[:20])
def test_no_pattern_can_look_at_the_same_text_again_and_again(pattern: re.Pattern[str]) -> None:
    """A repeat is bounded; or it gives nothing back and ends the match, so the search goes on behind it."""
    from re import _parser  # type: ignore[attr-defined]  # how sre itself reads a pattern

    for kind, most, ends in repeats(_parser.parse(pattern.pattern, pattern.flags)):
        assert most <= 512 or (kind == "POSSESSIVE_REPEAT" and ends), (pattern.pattern, kind, most)


def test_the_rule_sees_a_pattern_that_could() -> None:
    from re import _parser  # type: ignore[attr-defined]

    for bad in (r"a+b", r"(?:a+)+", r"a++b", r"(?:a*+b)*+c"):
        assert any(
            most > 512 and not (kind == "POSSESSIVE_REPEAT" and ends)
            for kind, most, ends in repeats(_parser.parse(bad))
        ), bad
