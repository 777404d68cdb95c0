"""wire/skim: members of a JSON object found in its bytes, lazily and without copies.

Pure.
"""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire import skim
from app.wire.skim import first_element, members, trailing

NASTY = st.text(st.sampled_from('\\"{}[],:a \n\u00e9'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NASTY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NASTY, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NASTY, VALUES, max_size=5)
STYLES = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 2, "\t"]),
        "separators": st.sampled_from([(",", ":"), (" , ", " : ")]),
        "ensure_ascii": st.booleans(),
    }
)


def _read(body: bytes, limit_bytes: int | None = None) -> list[tuple[str, Any]]:
    found = members(body, len(body) if limit_bytes is None else limit_bytes)
    return [(json.loads(b'"%b"' % name), json.loads(body[start:end])) for name, start, end in found if end >= 0]


@given(OBJECTS, STYLES, st.sampled_from([b"", b" \r\n"]))
def test_every_member_is_found(value: dict[str, Any], style: dict[str, Any], around: bytes) -> None:
    body = around + json.dumps(value, **style).encode() + around
    assert _read(body) == list(value.items())


@given(OBJECTS, STYLES, st.data())
def test_a_limit_cuts_the_last_one_off(value: dict[str, Any], style: dict[str, Any], data: st.DataObject) -> None:
    body = json.dumps(value, **style).encode()
    limit = data.draw(st.integers(0, len(body) - 1))
    found = list(members(body, limit))
    whole = [span for span in members(body, len(body)) if span[2] <= limit]
    assert len(found) - len(whole) in (-1, 0, 1)  # a number that ends at the limit might go on
    assert [span for span in found if span[2] >= 0] == whole[: len([span for span in found if span[2] >= 0])]
    assert all(end >= 0 for _, _, end in found[:-1])
    assert found == list(members(body[:limit], limit))


@given(OBJECTS, STYLES, NASTY)
def test_a_cut_or_damaged_body_never_raises(value: dict[str, Any], style: dict[str, Any], junk: str) -> None:
    body = json.dumps(value, **style).encode()
    for at in range(0, len(body), 3):
        list(members(body[:at] + junk.encode() + body[at:], len(body)))
        trailing(body[:at] + junk.encode() + body[at:], b"a", len(body))


@given(st.dictionaries(st.sampled_from(["a", "b", "ab", "c"]), VALUES, max_size=4), STYLES)
def test_a_trailing_member_is_the_top_level_one(value: dict[str, Any], style: dict[str, Any]) -> None:
    for shape in (
        value,
        {"outer": value, **value},
        {**value, "outer": [value]},
        {**value, "z": json.dumps(value)},
    ):
        body = json.dumps(shape, **style).encode()
        span = trailing(body, b"a", len(body))
        assert (json.loads(body[slice(*span)]) if span else "none") == shape.get("a", "none")


def test_trailing_looks_no_further_back_than_told() -> None:
    body = b'{"a":1,"b":"%b"}' % (b"x" * 100)
    assert trailing(body, b"a", 115) == (5, 6)
    assert trailing(body, b"a", 112) is None


@pytest.mark.parametrize(
    "body",
    [
        b'[{"a":1}]',
        b'{"b":{"a":1},"c"}',
        b'{"b":1,"a":1}}',
        b'{"b":1,"a":tru',
        b'{"a":1} x',
        b"[,",
    ],
)
def test_trailing_takes_no_nested_member_for_a_top_level_one(body: bytes) -> None:
    assert trailing(body, b"a", len(body)) is None


def test_trailing_gives_up_where_there_are_many() -> None:
    body = b'{"a":1,"z":[%b]}' % b",".join([b'{"a":1}'] * 50)
    assert trailing(body, b"a", len(body)) is None
    assert trailing(b'{"z":[%b],"a":1}' % b",".join([b'{"a":1}'] * 50), b"a", 4096) is not None


def test_iteration_stops_before_the_bulk() -> None:
    body = b'{"a":1,"messages":[2],"b":3}'
    assert list(members(body, len(body), until=b"messages")) == [(b"a", 5, 6), (b"messages", 18, -1)]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"a"', b"\xef\xbb\xbf{}", b"{}", b'{"a" 1}', b"{1:2}", b'{"a', b'{"a":']
)
def test_no_members_in_what_is_no_object_or_an_empty_one(body: bytes) -> None:
    assert [span for span in members(body, len(body)) if span[2] >= 0] == []


def test_it_stops_where_the_json_does() -> None:
    assert [name for name, _, _ in members(b'{"a":1 "b":2}', 99)] == [b"a"]
    assert list(members(b'{"a":,"b":2}', 99)) == [(b"a", 5, -1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'[ {"a":["]"]} , 2]', b'{"a":["]"]}'),
        (b'["\\\\", 2]', b'"\\\\"'),
        (b"[]", None),
        (b"[ ]", None),
        (b'{"a":1}', None),
        (b'"[1]"', None),
    ],
)
def test_the_first_element(text: bytes, expected: bytes | None) -> None:
    span = first_element(b"xx" + text, 2, 2 + len(text))
    assert ((b"xx" + text)[slice(*span)] if span else None) == expected


def test_a_first_element_that_does_not_end_in_time() -> None:
    assert first_element(b'[{"a":"xxxx"}]', 0, 8) == (1, -1)
    assert first_element(b"[", 0, 1) == (1, -1)


def test_escaped_quotes_of_every_kind() -> None:
    for text in ('"', '\\"', '\\\\"', "a\\", "\\" * 7 + '"' * 3, '"\\" \\\\" x', ""):
        body = json.dumps({text: text, "a": [text, {text: 1}]}).encode()
        assert _read(body) == [(text, text), ("a", [text, {text: 1}])]


def test_a_body_of_brackets_only_needs_no_stack() -> None:
    body = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b',"b":1}'
    assert [name for name, _, _ in members(body, len(body))] == [b"a", b"b"]


class _Spy:
    """A pattern that notes how far it has looked."""

    def __init__(self, pattern: Any, looked: list[int]) -> None:
        self._pattern = pattern
        self._looked = looked

    def match(self, body: bytes, at: int, end: int) -> Any:
        found = self._pattern.match(body, at, end)
        self._looked.append(found.end() if found else end)
        return found


def test_nothing_behind_the_limit_or_the_last_value_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    for name in ("_OBJECT", "_NAME", "_COMMA", "_ARRAY", "_TEXT", "_WORD", "_TO_BRACKET"):
        monkeypatch.setattr(skim, name, _Spy(getattr(skim, name), looked))
    body = b'{"a":1,"b":"' + b"x" * 500 + b'","c":[[' + b'"y",' * 500 + b'1]],"d":2}'
    found = members(body, 2000)
    assert next(found)[0] == b"a"
    assert max(looked) == 6
    assert [end for _, _, end in found] == [513, -1]
    assert max(looked) == 2000
    first_element(body, 519, 1500)
    assert looked[-1] <= 1500


def test_a_body_of_30_mb_is_not_copied() -> None:
    image = b'{"data":"' + b"iVBOR/+8" * 500_000 + b'"}'
    body = b'{"messages":[' + b",".join([image] * 7) + b'],"model":"m"}'
    tracemalloc.start()
    try:
        assert [name for name, _, _ in members(body, len(body))] == [b"messages", b"model"]
        assert trailing(body, b"model", 4096) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_a_flood_of_brackets_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skim, "MOST_BRACKETS", 10)
    assert list(skim.members(b'{"a":' + b"[" * 5 + b"]" * 5 + b',"b":1}', 1000)) == [(b"a", 5, 15), (b"b", 20, 21)]
    assert list(skim.members(b'{"a":' + b"[" * 6 + b"]" * 6 + b',"b":1}', 1000)) == [(b"a", 5, -1)]
