"""wire/usage: what an answer states of its usage, however it is cut, coded, or broken off (B43).

Pure.
"""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.usage import KEYS, WINDOW_BYTES, Tap, usage_tap

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "anthropic.jsonl"
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"

START = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 1,
    "service_tier": "standard",
}
FIRST_DELTA = {"output_tokens": 10, "server_tool_use": {"web_search_requests": 1}}
LAST_DELTA = {"input_tokens": 30, "output_tokens": 45, "server_tool_use": {"web_search_requests": 2}}
AT_FIRST = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 7,
    "cache_creation.ephemeral_5m_input_tokens": 60,
    "cache_creation.ephemeral_1h_input_tokens": 40,
    "output_tokens": 1,
}
BETWEEN = AT_FIRST | {"output_tokens": 10, "server_tool_use.web_search_requests": 1}
AT_LAST = AT_FIRST | {"input_tokens": 30, "output_tokens": 45, "server_tool_use.web_search_requests": 2}


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | more, separators=(',', ':'))}\n\n".encode()


def text(words: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


def start(usage: object) -> bytes:
    return event("message_start", message={"id": "msg_1", "type": "message", "usage": usage})


def delta(usage: object) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


MISLEADING = 'message_delta {"type":"message_delta","usage":{"output_tokens":9999}}'
EVENTS = [
    start(START),
    event("content_block_start", index=0, content_block={"type": "text", "usage": {"output_tokens": 888}}),
    event("ping"),
    text("Grüße 😀 "),
    b": a comment with message_start\n\n",
    text(MISLEADING),
    delta(FIRST_DELTA),
    text("\n\ndata: " + MISLEADING),
    delta(LAST_DELTA),
    event("message_stop"),
]
STREAM = b"".join(EVENTS)


def tapped(pieces: Iterable[bytes], content_type: str = SSE, coding: str = "") -> Tap:
    tap = usage_tap(content_type, coding)
    assert tap is not None
    for piece in pieces:
        tap.feed(piece)
    return tap


def usage(body: bytes, content_type: str = SSE, coding: str = "") -> dict[str, int]:
    return tapped([body], content_type, coding).stated(False).tokens


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:300], mtime=0) + gzip.compress(data[300:], mtime=0)


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "identity": (" Identity ", bytes),
    "gzip": ("gzip", lambda data: gzip.compress(data, mtime=0)),
    "x-gzip": ("X-GZip", lambda data: gzip.compress(data, mtime=0)),
    "gzip in two members": ("gzip", two_members),
    "deflate": ("deflate", zlib.compress),
    "deflate without its header": ("deflate", raw_deflate),
}


def test_b43_the_last_statement_counts_and_nothing_is_added_up() -> None:
    tap = tapped(EVENTS)
    assert tap.stated(False).tokens == AT_LAST
    assert tap.stated(False).complete


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_b43_cut_at_every_byte_the_same(ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    for size in range(1, 60):
        tap = tapped(cut(stream, size))
        assert (tap.stated(False).tokens, tap.stated(False).complete) == (AT_LAST, True), f"in pieces of {size}"
    for at in range(len(stream) + 1):
        tap = tapped([stream[:at], stream[at:]])
        assert (tap.stated(False).tokens, tap.stated(False).complete) == (AT_LAST, True), f"cut at {at}"


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_b43_cut_anywhere_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    tap = tapped(STREAM[a:b] for a, b in pairwise(edges))
    assert (tap.stated(False).tokens, tap.stated(False).complete) == (AT_LAST, True)


def test_b43_a_stream_that_breaks_off_gives_what_was_stated_by_then() -> None:
    stated = [({}, False), (AT_FIRST, False), (BETWEEN, False), (AT_LAST, False), (AT_LAST, True)]
    turns = [STREAM.index(b"}\n", STREAM.index(one)) + 1 for one in (EVENTS[0], EVENTS[6], EVENTS[8], EVENTS[9])]
    growing = tapped([])
    for end in range(len(STREAM) + 1):
        growing.feed(STREAM[max(0, end - 1) : end])
        for tap in (growing, tapped([STREAM[:end]])):
            by_now = stated[sum(end >= turn for turn in turns)]
            assert (tap.stated(False).tokens, tap.stated(False).complete) == by_now, f"broken off at {end}"


def test_the_result_is_a_copy() -> None:
    tap = tapped(EVENTS)
    tap.stated(False).tokens.clear()
    assert tap.stated(False).tokens == AT_LAST


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 50, 10_000])
def test_b43_coded_streams_are_understood(name: str, size: int) -> None:
    coding, pack = CODINGS[name]
    tap = tapped(cut(pack(STREAM), size), SSE, coding)
    assert (tap.stated(False).tokens, tap.stated(False).complete) == (AT_LAST, True)


def test_a_coded_stream_is_read_as_it_comes() -> None:
    packer = zlib.compressobj(wbits=31)
    tap = tapped([], SSE, "gzip")
    tap.feed(packer.compress(EVENTS[0]) + packer.flush(zlib.Z_SYNC_FLUSH))
    assert tap.stated(False).tokens == AT_FIRST
    tap.feed(packer.compress(b"".join(EVENTS[1:])) + packer.flush())
    assert tap.stated(False).tokens == AT_LAST


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_damage_and_what_follows_the_end_do_no_harm(coding: str) -> None:
    whole = gzip.compress(STREAM, mtime=0) if coding == "gzip" else zlib.compress(STREAM)
    for behind in (b"\0" * 100, b"garbage", STREAM):
        tap = tapped([whole, behind, behind], SSE, coding)
        assert (tap.stated(False).tokens, tap.stated(False).complete) == (AT_LAST, True)
    assert tapped([b"x garbage", whole], SSE, coding).stated(False).tokens == {}
    start_of_it = usage(whole[: len(whole) // 2], SSE, coding)
    assert start_of_it in ({}, AT_FIRST, BETWEEN)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "compress"])
def test_a_coding_that_is_not_understood_gives_nothing(coding: str) -> None:
    assert usage_tap(SSE, coding) is None


@pytest.mark.parametrize("kind", ["", "text/html", "application/x-jsonl", "application/octet-stream"])
def test_a_type_that_is_not_understood_gives_nothing(kind: str) -> None:
    assert usage_tap(kind, "") is None
    assert usage_tap(kind, "gzip") is None


@pytest.mark.parametrize(
    "line",
    [
        b'data:{"type":"message_delta","usage":{"output_tokens":5}}',
        b'data:   { "type" : "message_delta" , "usage" : { "output_tokens" : 5 } }',
        b'data: {"usage":{"output_tokens":5},"delta":{},"type":"message_delta"}',
        b'data: {"type":"message_start","message":{"usage":{"output_tokens":5}}}',
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_however_an_event_is_written(line: bytes, size: int) -> None:
    assert tapped(cut(line + b"\n\n", size)).stated(False).tokens == {"output_tokens": 5}
    assert tapped(cut(b"event: whatever\n" + line + b"\r\r", size)).stated(False).tokens == {"output_tokens": 5}


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"message_delta","usage":{"output_tokens":5}}',
        b'dat: {"type":"message_delta","usage":{"output_tokens":5}}',
        b': {"type":"message_delta","usage":{"output_tokens":5}}',
        b'data: {"type":"message_delta","usage":{"output_tokens":5}',
        b'data: {"type":"message_delta","usage":[5]}',
        b'data: {"type":"message_delta","usage":null}',
        b'data: {"type":"message_start","usage":{"output_tokens":5}}',
        b'data: {"type":"message_start","message":["usage"]}',
        b'data: {"type":"message_wondrous","usage":{"output_tokens":5}}',
        b'data: {"usage":{"output_tokens":5},"type":["message_delta"]}',
        b'data: ["message_delta"]',
        b"data: message_delta",
        b'data: {"type":"error","error":{"type":"overloaded_error","message":"message_delta"}}',
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_states_no_usage_gives_none(line: bytes, size: int) -> None:
    tap = tapped(cut(line + b"\n\n", size))
    assert (tap.stated(False).tokens, tap.stated(False).complete) == ({}, False)
    assert tapped(cut(line + b"\n\n" + delta(LAST_DELTA), size)).stated(False).tokens["output_tokens"] == 45


def test_only_whole_numbers_are_figures_and_null_takes_none_back() -> None:
    odd: dict[str, Any] = {"input_tokens": None, "a": True, "b": 1.5, "c": -1, "d": "7", "e": [{"f": 8}], "g": {}}
    odd |= {"new_tokens": 3, "beyond": 10**30}
    assert usage(start({"input_tokens": 25, "h": {"i": {"j": 4}, "k": -1, "l": "5"}}) + delta(odd)) == {
        "input_tokens": 25,
        "h.i.j": 4,
        "new_tokens": 3,
    }


def test_what_nests_or_lists_without_end_is_bounded() -> None:
    nested: dict[str, Any] = {"at": 1}
    for _ in range(200):
        nested = {"in": nested, "at": 1}
    assert len(usage(delta(nested))) == 5
    tap = tapped([start({f"k{n}": n for n in range(100)}), delta({"k1": 5, "k99": 6, "another": 7})])
    assert len(tap.stated(False).tokens) == KEYS
    assert tap.stated(False).tokens["k1"] == 5


def test_what_is_counted_stays_however_much_else_is_stated() -> None:
    known = {"input_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 2}, "output_tokens": 3}
    found = usage(start({f"k{n}": n for n in range(500)} | known))
    assert len(found) == KEYS
    assert found.keys() > {"input_tokens", "cache_creation.ephemeral_5m_input_tokens", "output_tokens", "k0"}


@pytest.mark.parametrize("size", [16_000, 1 << 21])
def test_an_event_beyond_the_window_is_passed_over(size: int) -> None:
    huge = delta({"output_tokens": 5, "padding": "x" * WINDOW_BYTES})
    assert tapped(cut(huge, size)).stated(False).tokens == {}
    pieces = cut(start(START) + huge + text("x" * 1_000_000) + delta(LAST_DELTA), size)
    assert tapped(pieces).stated(False).tokens == AT_LAST
    fits = delta({"output_tokens": 5, "padding": "x" * (WINDOW_BYTES - 200)})
    assert tapped(cut(fits, size)).stated(False).tokens == {"output_tokens": 5}


def test_the_window_is_the_same_however_it_is_cut() -> None:
    for over in range(-3, 4):
        line = b'data: {"type":"message_delta","usage":{"output_tokens":5},"x":"'
        line += b"x" * (WINDOW_BYTES - len(line) - 2 + over) + b'"}'
        wanted = {} if over > 0 else {"output_tokens": 5}
        for size in (1 << 20, WINDOW_BYTES, WINDOW_BYTES - 1, 999):
            assert tapped(cut(line + b"\n", size)).stated(False).tokens == wanted, (over, size)


def _peak_bytes(tap: Tap, piece: bytes, times: int) -> int:
    tracemalloc.start()
    try:
        for _ in range(times):
            tap.feed(piece)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("first", [b'data: {"type":"content_block_delta"', b"x" * (WINDOW_BYTES + 1)])
def test_what_follows_on_the_line_of_one_passed_over_is_no_event(first: bytes) -> None:
    assert (
        tapped([first, b'data: {"type":"message_delta","usage":{"output_tokens":5}}\n']).stated(False).tokens == {}
    )


@pytest.mark.parametrize(
    ("kind", "first", "most"),
    [
        (SSE, b'data: {"type":"content_block_delta","text":"', 10_000),
        (SSE, b'data: {"text":"', 4 * WINDOW_BYTES),
        (SSE, b"message_", 4 * WINDOW_BYTES),
        (JSON, b'{"content":"', 8 * WINDOW_BYTES),
    ],
)
def test_b43_memory_does_not_grow_with_the_answer(kind: str, first: bytes, most: int) -> None:
    tap = tapped([], kind)
    tap.feed(first)
    assert _peak_bytes(tap, b"x" * 4000, 4000) < most
    assert _peak_bytes(tap, b"x" * 20_000_000, 2) < most, "nor is a large piece copied"


def test_b43_nor_with_what_a_small_coded_piece_unpacks_to() -> None:
    packed = gzip.compress(b"x" * 20_000_000, mtime=0)
    assert len(packed) < 40_000
    assert _peak_bytes(tapped([], SSE, "gzip"), packed, 1) < 8 * WINDOW_BYTES


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_nor_with_damage(coding: str) -> None:
    tap = tapped([CODINGS[coding][1](STREAM)], SSE, coding)
    assert _peak_bytes(tap, b"x" * 4000, 4000) < WINDOW_BYTES


def answer(**members: Any) -> bytes:
    return json.dumps({"id": "msg_1", "type": "message"} | members, ensure_ascii=False).encode()


LURE = {"type": "tool_use", "input": {"usage": {"input_tokens": 666}, "text": '"usage": {"input_tokens": 667}'}}
FILLER = 'Größe " \\ { [ } ] ' * 9_000
STATED = {"input_tokens": 3, "output_tokens": 4, "cache_creation": {"ephemeral_1h_input_tokens": 0}, "tier": "x"}
READ = {"input_tokens": 3, "output_tokens": 4, "cache_creation.ephemeral_1h_input_tokens": 0}


@pytest.mark.parametrize("filler", ["", FILLER[:60_000], FILLER], ids=["small", "medium", "large"])
@pytest.mark.parametrize("size", [999, 16_384, 1 << 22])
@pytest.mark.parametrize("lures", [0, 1, 20])
def test_b43_json_answers(filler: str, size: int, lures: int) -> None:
    content = [{"type": "text", "text": filler}, *[LURE] * lures]
    for body in (
        answer(content=content, usage=STATED),
        answer(content=content, usage=STATED) + b"\n",
        answer(content=content, usage=STATED, stop_reason="end_turn", context_management={"edits": [LURE]}),
        answer(usage=STATED, content=content, stop_reason=None),
        answer(usage=STATED, content=content)[:-1],
        json.dumps({"usage": STATED, "content": content}, indent=2).encode(),
    ):
        tap = tapped(cut(body, size), JSON)
        assert (tap.stated(False).tokens, tap.stated(False).complete) == (READ, True)
        assert tap.stated(True)[:2] == (READ, True)
        packed = gzip.compress(body, 1, mtime=0)
        assert tapped(cut(packed, size), "Application/JSON;charset=utf-8", "gzip").stated(False).tokens == READ


@pytest.mark.parametrize("over", range(-20, 400, 20))
def test_b43_json_answers_about_as_large_as_the_window(over: int) -> None:
    size = WINDOW_BYTES + over
    for content in ("", LURE):
        for body in (
            answer(text="", content=content, usage=STATED),
            answer(usage=STATED, text="", content=content),
        ):
            filled = body.replace(b'"text": ""', b'"text": "' + b"x" * (size - len(body)) + b'"')
            assert len(filled) == size
            for pieces in (1 << 20, 5000):
                for whole in (False, True):
                    assert tapped(cut(filled, pieces), JSON).stated(whole).tokens == READ


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"nonsense",
        b'[{"usage":{"input_tokens":1}}]',
        b'{"usage":null}',
        b'{"usage":{}}',
        b'{"usage":"input_tokens"}',
        b'{"data":{"usage":{"input_tokens":1}}}',
        b'{"data":[{"usage":{"input_tokens":1}}],"has_more":false}',
        b'{"data":"usage","x":{"input_tokens":1}}',
        b'{"usage":{"input_tokens":1',
        b'{"input_tokens":1}',
        b'{"type":"error","error":{"type":"api_error","message":"\\"usage\\": {}"}}',
    ],
)
def test_json_answers_that_state_no_usage(body: bytes) -> None:
    tap = tapped([body], JSON)
    for whole in (False, True):
        assert tap.stated(whole) == ({}, False, frozenset())


@pytest.mark.parametrize("words", [b"\\ud800", b"\xff"], ids=["half a pair", "no UTF-8"])
def test_text_that_no_parser_takes_is_none_of_our_business(words: bytes) -> None:
    for filler in ("", FILLER):
        body = answer(content=[filler, "WORDS"], usage=STATED).replace(b"WORDS", words)
        assert usage(body, JSON) == READ
    assert usage(start(STATED | {"tier": "WORDS"}).replace(b"WORDS", words) + delta({"x": 1})) == {"x": 1}


def test_b43_an_answer_that_breaks_off_says_what_it_had_stated() -> None:
    body = answer(content=[LURE], usage=STATED)
    for end in range(len(body) - 1):
        found = usage(body[:end], JSON)
        assert found in ({}, READ), f"broken off at {end}"
    assert usage(body[:-1], JSON) == READ, "the usage itself was whole"


def test_an_answer_in_one_piece_is_not_copied_and_is_read_from_its_end_only() -> None:
    body = answer(content=["x" * 60_000], usage=STATED)
    tap = tapped([], JSON)
    assert _peak_bytes(tap, body, 1) < 1000
    spoilt = b"nothing of it is JSON" + body[1:]
    assert tapped([spoilt], JSON).stated(True).tokens == READ
    assert tapped([spoilt], JSON).stated(False).tokens == {}


def test_an_answer_in_very_many_pieces_is_kept_in_one() -> None:
    tap = tapped([], JSON)
    tracemalloc.start()
    try:
        for number in range(20_000):
            tap.feed(f"{number % 1000:03}".encode())
        assert tracemalloc.get_traced_memory()[0] < 2 * WINDOW_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("kind", [SSE, JSON])
def test_what_an_answer_says_of_how_it_was_made(kind: str, coding: str) -> None:
    def terms(**usage: Any) -> frozenset[str]:
        body = start(usage) + delta({"output_tokens": 5}) if kind == SSE else answer(usage=usage)
        return tapped([CODINGS[coding or "none"][1](body)], kind, coding).stated(True).terms

    assert terms(speed="fast", inference_geo="us", service_tier="standard") == {"speed:fast", "inference_geo:us"}
    assert terms(speed="standard", inference_geo="global") == frozenset()
    assert terms(inference_geo="not_available", speed=None, a={"speed": "fast"}) == frozenset()
    assert terms() == frozenset()


def test_the_last_word_on_how_it_was_made_counts() -> None:
    assert tapped([start({"speed": "fast"}), delta({"speed": "standard"})]).stated(False).terms == frozenset()


def _flat(usage: dict[str, Any], prefix: str = "") -> dict[str, int]:
    figures: dict[str, int] = {}
    for key, value in usage.items():
        if isinstance(value, dict):
            figures |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            figures[prefix + key] = value
    return figures


def _expected(row: dict[str, Any], body: bytes) -> dict[str, int]:
    """What the answer's own usage objects state: the start's, overridden by the last delta's."""
    if not row["is_stream"]:
        return _flat(json.loads(body)["usage"])
    events = [json.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
    first = next(event["message"]["usage"] for event in events if event["type"] == "message_start")
    last = [event["usage"] for event in events if event["type"] == "message_delta"][-1]
    return _flat(first) | _flat(last)


@cache
def recorded() -> list[tuple[str, str, bytes, dict[str, int]]]:
    """Each 200 of the messages endpoint: id, content type, body, expectation."""
    if not RECORDED.is_file():
        pytest.skip(f"the recordings are not here: {RECORDED}")
    rows = []
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["status"] == 200 and row["path"] == "/v1/messages":
            body = base64.b64decode(row["response_body_b64"])
            kind = next(value for name, value in row["response_headers"] if name.lower() == "content-type")
            rows.append((row["id"], kind, body, _expected(row, body)))
    return rows


def test_b43_every_recorded_answer_states_exactly_its_usage() -> None:
    assert len(recorded()) == 250
    for name, kind, body, expected in recorded():
        assert expected["input_tokens"] >= 0
        for pieces in ([body], cut(body, 1), cut(body, 13), cut(body, 1000)):
            tap = tapped(pieces, kind)
            for whole in (False, True):
                assert tap.stated(whole)[:2] == (expected, True), name


def test_b43_also_coded() -> None:
    for name, kind, body, expected in recorded():
        for coding, pack in CODINGS.values():
            assert tapped(cut(pack(body), 100), kind, coding).stated(False).tokens == expected, (name, coding)
