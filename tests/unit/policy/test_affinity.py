"""policy/affinity: which conversation a request belongs to, and which key a conversation prefers (B34).

Pure.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policy import affinity
from app.policy.affinity import conversation, model, rank
from app.wire import skim

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "anthropic.jsonl"
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
STYLES: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"indent": 2}, {"sort_keys": True}]

Body = dict[str, Any]
Block = dict[str, Any]


NOT_ONE = b'["a","metadata":{"user_id":"u"}}'


def _id(value: Body | bytes, *headers: tuple[str, str], **style: Any) -> bytes:
    return conversation(headers, value if isinstance(value, bytes) else json.dumps(value, **style).encode())


def _block(text: str, *, marked: bool) -> Block:
    return {"type": "text", "text": text, **(MARK if marked else {})}


def _turn(number: int, first: str = "hello", *, plain: bool = False) -> list[Body]:
    """The messages of one turn; the mark is on the last one, as clients move it."""
    messages: list[Body] = []
    for at in range(2 * number + 1):
        text = first if at == 0 else f"message {at}"
        last = at == 2 * number
        content: Any = text if plain and not last else [_block(text, marked=last)]
        messages.append({"role": "assistant" if at % 2 else "user", "content": content})
    return messages


SHAPES: dict[str, Callable[[int, str], Body]] = {
    "messages first": lambda n, first: {"model": "m", "messages": _turn(n, first), "system": f"now {n}"},
    "messages last": lambda n, first: {
        "max_tokens": 10**n,
        "system": [_block("s" * 100, marked=n == 0), _block("{x}", marked=n == 1)],
        "tools": [{"name": "a", "input_schema": {}, **(MARK if n % 2 else {})}],
        "messages": _turn(n, first),
    },
    "plain until marked": lambda n, first: {"messages": _turn(n, first, plain=True)},
    "plain system": lambda n, first: {
        "system": [_block("be brief", marked=True)] if n % 2 else "be brief",
        "messages": _turn(n, first),
    },
    "long": lambda n, first: {"max_tokens": 10**n, "messages": _turn(n, first + "x" * 70_000)},
    "long and plain": lambda n, first: {"messages": _turn(n, first + 'x"\\\n' * 20_000, plain=True)},
    "long system": lambda n, first: {
        "max_tokens": 10**n,
        "system": [_block("s" * 20_000, marked=n == 0), _block("t" * 9_000, marked=n == 1)],
        "messages": _turn(n, first),
    },
    "no end of tools": lambda n, _: {
        "max_tokens": 10**n,
        "tools": [{"name": "a" * 90_000, **(MARK if n else {})}],
        "messages": _turn(n),
    },
    "many blocks": lambda n, first: {
        "messages": [
            {"role": "user", "content": [_block(first, marked=n == 0), _block("b", marked=n == 1)]},
            *_turn(n)[1:],
        ]
    },
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_b34_every_turn_of_a_conversation_has_one_name(shape: str, style: dict[str, Any]) -> None:
    names = {_id(SHAPES[shape](turn, "hello"), **style) for turn in range(6)}
    assert len(names) == 1
    assert {len(name) for name in names} == {16}


@pytest.mark.parametrize("shape", [one for one in SHAPES if one != "no end of tools"])
def test_b34_conversations_are_told_apart(shape: str) -> None:
    assert len({_id(SHAPES[shape](1, f"hello {number}")) for number in range(20)}) == 20


def test_the_parts_are_kept_apart() -> None:
    values: list[Body] = [
        {"system": "ab", "messages": ["c"]},
        {"system": "a", "messages": ["bc"]},
        {"system": "ab", "tools": ["c"], "messages": []},
        {"messages": ["abc"]},
    ]
    assert len({_id(value) for value in values}) == 4
    assert (
        _id({"system": "a", "messages": ["b"]})
        != _id({"messages": ["b"]})
        == _id({"messages": ["b"], "system": "a"})
    )


def test_b34_the_session_header_names_it_whatever_the_body_says() -> None:
    header = ("X-Claude-Code-Session-Id", "54c1")
    assert _id({"messages": [1]}, header) == _id(b"", ("a", "b"), ("x-claude-code-session-id", "54c1"))
    assert _id(b"", header) != _id(b"", (header[0], "54c2"))
    assert _id({"messages": [1]}, (header[0], "")) == _id({"messages": [1]})
    assert len(_id(b"", (header[0], "\u2603\udc80"))) == 16


USERS = ["user_12_account__session_34", '{"session_id":"34"}']


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("style", STYLES[:3])
def test_b34_metadata_names_it_at_either_end(user: str, style: dict[str, Any]) -> None:
    said = {"metadata": {"other": [1], "user_id": user}}
    at_the_start: Body = {"model": "m", **said, "messages": _turn(3, "x" * 9000)}
    at_the_end: Body = {
        "model": "m",
        "messages": [*_turn(3), {"metadata": {"user_id": "nested"}}],
        "tools": ["x" * 90_000, {"metadata": {"user_id": "nested"}}],
        **said,
        "max_tokens": 1,
        "stream": True,
    }
    names = {_id(value, **style) for value in (at_the_start, at_the_end, at_the_end | {"messages": _turn(5)})}
    assert len(names) == 1
    assert names != {_id({**at_the_start, "metadata": {"user_id": "else"}}, **style)}


@pytest.mark.parametrize("metadata", [{}, {"user_id": None}, {"user_id": ""}, {"user_id": 5}, [], "user_id", None])
def test_metadata_without_a_user_leaves_the_prefix(metadata: Any) -> None:
    value: Body = {"messages": _turn(1)}
    assert _id({"metadata": metadata, **value}) == _id({**value, "metadata": metadata}) == _id(value)


def test_metadata_that_is_cut_or_nested_names_nothing() -> None:
    value: Body = {"messages": _turn(1)}
    assert _id({"metadata": {"user_id": "u", "a": "x" * 60_000}, **value}) == b""
    nested = {"messages": [*_turn(1), {"metadata": {"user_id": "u"}}]}
    assert _id(nested) == _id(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{}",
        b'{"prompt":"x"}',
        b'{"requests":[{"messages":["x"]}]}',
        b'{"messages":[]}',
        NOT_ONE,
        b"\x1f\x8b\x08",
    ],
)
def test_what_is_no_conversation_has_no_name(body: bytes) -> None:
    assert conversation((), body) == b""


class _Spy:
    """A pattern that notes how far into the body it has looked."""

    def __init__(self, pattern: re.Pattern[bytes], looked: list[int]) -> None:
        self._pattern = pattern
        self._looked = looked

    def match(self, body: bytes, at: int, end: int) -> re.Match[bytes] | None:
        found = self._pattern.match(body, at, end)
        self._looked.append(found.end() if found else end)
        return found


def test_b34_of_30_mb_a_few_parts_are_looked_at_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        b'{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"hello"},%b]}],"system":"s"}'
    )
    body %= b",".join([b'{"type":"image","source":{"data":"' + b"iVBOR/+8" * 537_000 + b'"}}'] * 7)
    assert len(body) > 30_000_000
    looked: list[int] = []
    for name in ("_OBJECT", "_NAME", "_COMMA", "_ARRAY", "_TEXT", "_WORD", "_TO_BRACKET"):
        monkeypatch.setattr(skim, name, _Spy(getattr(skim, name), looked))
    hashed: list[int] = []
    digest = affinity._digest

    def spy(kind: bytes, *parts: bytes) -> bytes:
        hashed.append(sum(len(part) for part in parts))
        return digest(kind, *parts)

    monkeypatch.setattr(affinity, "_digest", spy)
    tracemalloc.start()
    try:
        assert conversation((), body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < max(looked) <= 65_536
    assert hashed == [affinity.PART_BYTES]
    assert peak < 128 * 1024
    limit = affinity.FIND_BYTES + affinity.PART_BYTES + affinity.SLACK_BYTES
    assert limit == 65_536
    tail = affinity.TAIL_BYTES
    assert conversation((), body) == conversation((), body[:limit] + b"\xff" * 99 + body[-tail:])


def _recorded() -> list[tuple[Body, bytes]]:
    if not RECORDED.exists():
        pytest.skip("the recordings are not beside this checkout")
    with RECORDED.open(encoding="utf-8") as lines:
        bodies = [base64.b64decode(json.loads(line)["request_body_b64"] or "") for line in lines]
    return [(json.loads(body), body) for body in bodies if body.startswith(b"{")]


def _unmarked(value: Any) -> Any:
    """The value as it is meant: without marks, and a list of one text as that text."""
    if isinstance(value, dict):
        return {key: _unmarked(one) for key, one in value.items() if key != "cache_control"}
    if isinstance(value, list):
        inner = [_unmarked(one) for one in value]
        one = inner[0] if len(inner) == 1 else None
        return one["text"] if isinstance(one, dict) and one.get("type") == "text" and len(one) == 2 else inner
    return value


def test_b34_recorded_turns_of_one_conversation_have_one_name() -> None:
    meant: dict[str, set[bytes]] = {}
    turns: dict[str, set[int]] = {}
    for value, body in _recorded():
        name = conversation((), body)
        if not value.get("messages"):
            assert name == b""
            continue
        before = list(value)[: list(value).index("messages")]
        prefix = {key: _unmarked(value[key]) for key in ("system", "tools") if key in before}
        first = json.dumps([prefix, _unmarked(value["messages"][0])])
        first += " " + str(b'": ' in body[:25])  # one client, one style
        meant.setdefault(first, set()).add(name)
        turns.setdefault(first, set()).add(len(value["messages"]))
    assert all(len(names) == 1 for names in meant.values())
    assert len({name for names in meant.values() for name in names}) == len(meant)
    assert sum(len(numbers) > 1 for numbers in turns.values()) >= 20


def test_recorded_models_are_found() -> None:
    for value, body in _recorded():
        assert model(body, len(body)) == value.get("model", "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","messages":[1]}', "a"),
        (b'{"messages":[{"model":"b"}], "model" : "a"}', "a"),
        (b'{"messages":[{"model":"b"}],"model":"a","tools":["%b"]}' % (b"x" * 9000), "a"),
        (b'{"messages":[{"model":"b"}],"tools":["%b"]}' % (b"x" * 9000), ""),
        (b'{"mod\\u0065l":"\\u0061"}', "a"),
        (b'{"mod\\x65l":"a"}', ""),
        (b'{"model":5}', ""),
        (b'{"model":"\xff"}', ""),
        (b'{"model":"a', ""),
        (b'{"model":"%b"}' % (b"x" * 2000), ""),
        (b'[{"model":"a"}]', ""),
        (b"", ""),
    ],
)
def test_the_model_is_found_wherever_it_stands(body: bytes, expected: str) -> None:
    assert model(body, 20_000) == expected


def test_the_model_is_looked_for_up_to_the_limit_and_near_the_end() -> None:
    body = b'{"messages":["%b"],"model":"a","tools":["%b"]}' % (b"x" * 500, b"x" * 9000)
    assert model(body, 600) == "a"
    assert model(body, 500) == ""
    assert model(b'{"messages":["%b"],"model":"a","stream":true}' % (b"x" * 500), 500) == "a"
    assert model(b'{"model":"a"}', 10) == ""


KEYS = [("one", 1.0), ("two", 2.0), ("three", 1.0), ("four", 4.0)]
NAMES = [number.to_bytes(16, "big") for number in range(4000)]


def _owner(name: bytes, keys: list[tuple[str, float]]) -> str:
    return keys[rank(name, keys)[0]][0]


def test_b34_the_spread_follows_the_weights() -> None:
    share = Counter(_owner(name, KEYS) for name in NAMES)
    for label, weight in KEYS:
        assert abs(share[label] / len(NAMES) - weight / 8) < 0.03


@given(st.binary(min_size=16, max_size=16), st.permutations(KEYS))
def test_b34_the_order_of_the_keys_does_not_matter(name: bytes, keys: list[tuple[str, float]]) -> None:
    order = [keys[index][0] for index in rank(name, keys)]
    assert order == [KEYS[index][0] for index in rank(name, KEYS)]
    assert sorted(order) == sorted(label for label, _ in KEYS)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 3))
def test_b34_a_key_removed_moves_its_own_conversations_only(name: bytes, gone: int) -> None:
    kept = [key for index, key in enumerate(KEYS) if index != gone]
    before = [KEYS[index][0] for index in rank(name, KEYS)]
    assert [kept[index][0] for index in rank(name, kept)] == [label for label in before if label != KEYS[gone][0]]


def test_b34_a_new_weight_moves_conversations_of_that_key_only() -> None:
    lighter = [("one", 1.0), ("two", 1.0), *KEYS[2:]]
    moved = [(_owner(name, KEYS), _owner(name, lighter)) for name in NAMES]
    assert {old for old, new in moved if old != new} == {"two"}
    assert {new for old, new in moved if old != new} == {"one", "three", "four"}


def test_a_key_without_weight_comes_last() -> None:
    assert {rank(name, [("a", 0.0), ("b", 0.1)])[0] for name in NAMES[:50]} == {1}
    assert rank(NAMES[0], []) == []


def test_b34_every_process_ranks_alike() -> None:
    code = f"from app.policy.affinity import rank; print(rank({NAMES[7]!r}, {KEYS!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(rank(NAMES[7], KEYS))
