"""web/auth: who is let in; compared in constant time.

Pure.
"""

from __future__ import annotations

import hmac

import pytest

from app.errors import Unauthenticated
from app.web.auth import authenticate, caller_of, presented

KEYS = (("web", b"one"), ("batch", b"two"))


def test_keys_are_found_in_both_headers() -> None:
    pairs = [("X-Api-Key", " a "), ("Authorization", "BEARER b"), ("authorization", "Basic c"), ("other", "d")]
    assert presented(pairs) == [b"a", b"b"]


@pytest.mark.parametrize(
    ("pairs", "name"),
    [([("x-api-key", "two")], "batch"), ([("x-api-key", "no"), ("authorization", "Bearer one")], "web")],
)
def test_one_right_key_is_enough_and_names_the_caller(pairs: list[tuple[str, str]], name: str) -> None:
    assert authenticate(pairs, KEYS) == name


@pytest.mark.parametrize("pairs", [[], [("x-api-key", "")], [("x-api-key", "on")], [("x-api-key", "\u20ac")]])
def test_no_right_key_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthenticated):
        authenticate(pairs, KEYS)


def test_every_pair_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def digest(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", digest)
    authenticate([("x-api-key", "one"), ("x-api-key", "x")], KEYS)
    assert compared == [(b"one", b"one"), (b"one", b"two"), (b"x", b"one"), (b"x", b"two")]


def test_a_caller_without_gateway_key_is_told_apart_and_its_key_is_not_shown() -> None:
    one, same, other = (caller_of([("x-api-key", key)]) for key in ("sk-one", "sk-one", "sk-two"))
    assert one == same != other
    assert "sk" not in one and len(one) == 16
    assert caller_of([("accept", "*/*")]) == ""
