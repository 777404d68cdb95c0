"""observe/explained: one exchange as people read it; whatever a log holds, it is told, and moves no cursor.

Pure.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exchange import Attempt, Record
from app.observe.explained import explained, steps
from app.observe.log_line import fields

TRIES = (
    Attempt("529", 80.25, "new", "anthropic", "blue", 0.0, 35.125),
    Attempt("connect_failed", 12.0, "", "spare", "", 0.0, 0.0),
    Attempt("200", 210.5, "reused", "anthropic", "green", 500.0, 0.0),
)
FULL = Record(
    "req-0123456789abcdef",
    "messages",
    "POST",
    "/v1/messages",
    200,
    "",
    model="claude-opus-5-5",
    upstream_request_id="req_011CVexample",
    request_bytes=1234,
    response_bytes=56789,
    stream=True,
    http_version="HTTP/2",
    attempts=TRIES,
    provider="anthropic",
    credential="green",
    caller="web",
    queue_ms=12.0,
    upstream_head_ms=210.5,
    ttfb_ms=827.5,
    total_ms=12900.125,
    gateway_ms=513.25,
    tokens={
        "output_tokens": 2000,
        "input_tokens": 10,
        "cache_creation_input_tokens": 100,
        "cache_creation.ephemeral_1h_input_tokens": 40,
        "cache_read_input_tokens": 7,
        "server_tool_use.web_search_requests": 2,
        "output_tokens_details.thinking_tokens": 15,
    },
    usage_complete=True,
    cost_micro_usd=1_012_345,
    router_ms=3.25,
    first_event_ms=830.5,
    gaps=(120, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
    gaps_ms=4070.5,
)
GOLDEN = """\
POST /v1/messages: 200

  ended          2026-11-21T09:30:00.123456Z
  request id     req-0123456789abcdef
  upstream's id  req_011CVexample
  route          messages
  model          claude-opus-5-5
  caller         web
  served by      anthropic, key green, HTTP/2, event stream
  worker         4711
  bytes          1,234 in, 56,789 out
  client         stayed to the end
  tokens         10 input; 2,000 output; 100 cache write; 40 of that for 1 hour; 7 cache read; 2 web searches; 15 \
output tokens details, thinking tokens
  cost           1.012345 USD
  gateway added  513.25 ms

  Time line, in ms since the gateway had the request
           -3.25          3.25  in the platform router's queue
            0.00                the gateway has the request
           ~0.00         12.00  waiting for a slot in the gateway's queue
          ~12.00         80.25  try 1: anthropic, key blue, new connection in 35.12 ms: 529
          ~92.25         12.00  try 2: spare, the caller's key: connect_failed
         ~104.25        500.00  pause: backoff, or a key that cools
         ~604.25        210.50  try 3: anthropic, key green, reused connection: 200
          827.50                head of the answer, which took the upstream 210.50 ms
          830.50                first event handed to the server
       12,900.12                over

  Pauses in the stream: 120 below 1 ms, 3 below 4 ms, 1 below 4,096 ms; 4,070.50 ms together

  Connection events
    2026-11-21T09:29:50.000000Z  connection opened  https://api.example  connect 12.5 ms, tls 20 ms
    2026-11-21T09:29:51.000000Z  connection reused  https://api.example"""
EVENTS = [
    {
        "event": "connection_opened",
        "origin": "https://api.example",
        "connect_ms": 12.5,
        "tls_ms": 20,
        "time": "2026-11-21T09:29:50.000000Z",
    },
    {"event": "connection_reused", "origin": "https://api.example", "time": "2026-11-21T09:29:51.000000Z"},
]
REFUSED = """\
POST /v1/messages: 503 queue_full (request dropped: queue is full); cause: OSError: x

  request id     id-1
  route          messages
  bytes          0 in, 0 out
  client         stayed to the end

  Time line, in ms since the gateway had the request
            0.00                the gateway has the request
            0.25                over"""


def told(record: Record, **more: Any) -> dict[str, Any]:
    return {**fields(record), **more}


def test_an_exchange_with_everything_to_the_letter() -> None:
    assert explained(told(FULL, time="2026-11-21T09:30:00.123456Z", worker=4711, events=EVENTS)) == GOLDEN


def test_one_that_was_refused_to_the_letter() -> None:
    record = Record(
        "id-1", "messages", "POST", "/v1/messages", 503, "queue_full", total_ms=0.25, cause="OSError: x"
    )
    assert explained(told(record)) == REFUSED


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"client_left": True}, "  client         left early\n"),
        ({"client_left": True}, "the client left"),
        ({"fallback": True}, ", event stream, through the fallback threads\n"),
        ({"usage_complete": False}, "thinking tokens (so far: the answer's end was not seen)\n"),
        ({"cost_micro_usd": None}, "  cost           not known: the model has no price\n"),
        ({"cost_micro_usd": 0}, "  cost           0.000000 USD\n"),
        ({"slug": "stream_broken"}, "POST /v1/messages: 200 stream_broken ("),
        ({"slug": "of_a_later_version"}, "POST /v1/messages: 200 of_a_later_version\n"),
        ({"trace": "00-a-b-01", "trace_parent": ""}, "  trace          00-a-b-01\n"),
    ],
)
def test_what_else_there_may_be(change: dict[str, Any], text: str) -> None:
    assert text in explained(told(FULL._replace(**change)) | {"worker": 1})


def test_an_error_event_in_the_stream_is_told_of() -> None:
    erred = explained(told(FULL._replace(stream_error="api_error", cause="x")))
    assert erred.startswith("POST /v1/messages: 200; the upstream's stream ended in api_error; cause: x\n")


def test_nothing_is_told_of_what_there_was_not() -> None:
    text = explained(told(FULL._replace(tokens={}, cost_micro_usd=None, gaps=(), router_ms=None)))
    for word in ("tokens", "cost ", "Pauses", "router", "trace", "worker", "Connection events"):
        assert word not in text


def test_the_time_line_is_in_order() -> None:
    instants = [step.at_ms for step in steps(told(FULL))]
    assert instants == sorted(instants)


def test_a_clients_own_words_move_no_cursor() -> None:
    hostile = "\x1b[2J\r\n\x00\u202e\ud800"
    record = FULL._replace(path=hostile, model=hostile, slug=hostile, cause=hostile, caller=hostile)
    tries = [{"outcome": hostile, "provider": hostile, "credential": hostile}]
    text = explained(told(record, attempts=tries, tokens={hostile: 1, "x": hostile}, events=[{"event": hostile}]))
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert text.count("\n") == explained(told(FULL, attempts=tries, events=[{"event": "x"}])).count("\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400) | st.just(math.inf),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*told(FULL), "time", "worker", "events"]), JSON))
def test_whatever_a_line_holds_it_is_told(line: dict[str, Any]) -> None:
    assert "the gateway has the request" in explained(line)


@given(st.lists(st.dictionaries(st.sampled_from([*told(FULL)["attempts"][0]]), JSON), max_size=2))
def test_whatever_a_try_holds_it_is_told(tries: list[dict[str, Any]]) -> None:
    assert len(steps({"attempts": tries})) >= 1 + len(tries)
