"""gateway: every recorded answer on the whole way through the gateway, and what its Record says it used (B43).

Pure: the crossing is a script.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from app.bridge.call import Bridge
from app.exchange import Exchange, Journey, Record, Reply
from app.gateway.body import BodyRules
from app.gateway.handle import Client, Gateway, Options
from app.gateway.life import Life
from app.gateway.plan import Rules, endpoint_of
from app.gateway.records import Records
from app.gateway.watching import Watching
from app.observe.prices import Prices, tables
from app.providers.table import PROVIDERS
from app.wire import sse

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "anthropic.jsonl"
PROVIDER = PROVIDERS["anthropic"]
RULES = Rules(PROVIDER, "https://up.example", "2023-06-01", False, 600.0, 300.0)
PRICES = Prices(*tables(None))
BODY = BodyRules(8192, 15.0, sse.PING)


class Recorded(NamedTuple):
    """One exchange: what was asked, what came, and what its own usage objects state."""

    name: str
    method: str
    path: str
    request: bytes
    status: int
    kind: str
    body: bytes
    used: dict[str, int]


class Script:
    """Plays a crossing: the head, then the pieces."""

    fallback = False

    def __init__(self, reply: Reply, pieces: list[bytes]) -> None:
        self.reply = reply
        self.pieces = pieces
        self.up = type("Up", (), {"ended_at": 0.0})()

    def head(self, tick: Callable[[], None], timeout_s: float | None = None) -> Reply:
        del tick, timeout_s
        return self.reply

    def take(self, tick: Callable[[], None], timeout_s: float | None = None) -> list[bytes]:
        del tick, timeout_s
        return [self.pieces.pop(0)] if self.pieces else []

    def close(self) -> None:
        """Nothing to close."""


class Here:
    """A client that stays."""

    def gone(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        del size
        return b""

    def unread(self) -> None:
        """There is nothing."""


def served(one: Recorded, pieces: list[bytes], coding: str = "", take: int | None = None) -> tuple[bytes, Record]:
    """What the client got, and the Record, of one exchange on the gateway's own path.

    Args:
        one: Its request; and its answer's type.
        pieces: The answer's bytes as they come from the upstream.
        coding: How they are coded.
        take: Leave after so many pieces.
    """
    pairs = (("content-type", one.kind), ("request-id", one.name))
    head = Reply(
        one.status,
        pairs + ((("content-encoding", coding),) if coding else ()),
        one.kind.startswith("text/event-stream"),
        "HTTP/2",
        Journey("anthropic"),
        1.0,
        2.0,
        2.0,
    )
    crossing = Script(head, pieces)
    bridge: Any = type("OneCrossing", (), {"open": lambda self, make: crossing})()
    records: list[Record] = []
    options = Options(RULES, BODY, 30.0, watching=Watching(PRICES))
    gateway = Gateway(
        options, lambda: cast(Bridge, bridge), cast(Any, None), Life(1.0), Records((records.extend,))
    )
    endpoint = endpoint_of(PROVIDER, one.path)
    exchange = Exchange(
        one.name, one.method, one.path, (), one.request, False, len(one.request), endpoint.name, 0.0
    )
    answer = gateway.handle(exchange, endpoint, cast(Client, Here()))
    got = b""
    for number, piece in enumerate(answer.body):
        got += piece
        if take is not None and number >= take:
            break
    answer.body.close()
    (record,) = records
    return got, record


def _flat(usage: dict[str, Any], prefix: str = "") -> dict[str, int]:
    figures: dict[str, int] = {}
    for key, value in usage.items():
        if isinstance(value, dict):
            figures |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            figures[prefix + key] = value
    return figures


def _stated(streamed: bool, body: bytes) -> dict[str, int]:
    """All usage objects of an answer, later ones over earlier ones; read without any part of ours."""
    if not streamed:
        try:
            answer = json.loads(body)
        except ValueError:
            return {}
        return _flat(answer.get("usage") or {})
    figures: dict[str, int] = {}
    for line in body.splitlines():
        event = json.loads(line[5:]) if line.startswith(b"data:") else {}
        figures |= _flat(event.get("message", event).get("usage") or {}) if isinstance(event, dict) else {}
    return figures


@cache
def recorded() -> tuple[Recorded, ...]:
    if not RECORDED.is_file():
        pytest.skip(f"the recordings are not here: {RECORDED}")
    found = []
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        body = base64.b64decode(row["response_body_b64"] or "")
        kind = next((value for name, value in row["response_headers"] if name.lower() == "content-type"), "")
        request = base64.b64decode(row["request_body_b64"] or "")
        used = _stated(row["is_stream"], body)
        found.append(Recorded(row["id"], row["method"], row["path"], request, row["status"], kind, body, used))
    return tuple(found)


def cut(data: bytes, random_: random.Random) -> list[bytes]:
    """In up to forty pieces, at random places."""
    places = sorted({random_.randrange(len(data) + 1) for _ in range(random_.randrange(40))} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def each(seed: int) -> Iterator[tuple[Recorded, random.Random]]:
    for one in recorded():
        yield one, random.Random(f"{seed} {one.name}")  # noqa: S311 - repeatable


def test_b43_the_record_says_what_every_recorded_answer_states() -> None:
    stating = sum(1 for one in recorded() if one.used)
    assert (len(recorded()), stating) == (282, 250)
    for seed in range(4):
        for one, random_ in each(seed):
            got, record = served(one, cut(one.body, random_))
            assert got == one.body, one.name
            assert (dict(record.tokens), record.usage_complete) == (one.used, bool(one.used)), one.name


def test_b43_also_where_the_answer_is_coded() -> None:
    for one, random_ in each(5):
        coded = gzip.compress(one.body, mtime=0)
        got, record = served(one, cut(coded, random_), "gzip")
        assert got == coded, one.name
        assert (dict(record.tokens), record.usage_complete) == (one.used, bool(one.used)), one.name


def test_b43_what_a_client_that_leaves_has_seen_is_partial() -> None:
    streams = [one for one in recorded() if one.used and one.kind.startswith("text/event-stream")]
    assert len(streams) >= 65
    for one in streams:
        begin = one.body.index(b"\n\n") + 2
        _, record = served(one, [one.body[:begin], one.body[begin:]], take=1)
        assert record.client_left and not record.usage_complete, one.name
        start = _stated(True, one.body[:begin])
        assert start and dict(record.tokens) == start, one.name


def test_b43_what_was_used_has_a_price_and_what_was_not_has_none() -> None:
    without = set()
    for one in recorded():
        _, record = served(one, [one.body])
        if not one.used:
            assert record.cost_micro_usd is None, one.name
        elif record.cost_micro_usd is None:
            without.add(record.model)
        else:
            assert record.cost_micro_usd == PRICES(record.model, one.used), one.name
            assert record.cost_micro_usd > 0, one.name
    # retired before the vendor's list was taken; answered from a region of another cloud, which is not on it
    assert without == {"claude-2.1", "claude-sonnet-5"}


def test_another_routes_figures_are_not_what_was_used() -> None:
    """A count is an estimate, and what other objects report was used by others."""
    body = b'{"input_tokens":7,"usage":{"input_tokens":7,"output_tokens":1}}'
    for path in ("/v1/messages/count_tokens", "/v1/messages/batches/b1", "/v1/models", "/v1/sessions/s1"):
        one = Recorded("r", "POST", path, b"{}", 200, "application/json", body, {})
        got, record = served(one, [body])
        assert (got, dict(record.tokens), record.cost_micro_usd) == (body, {}, None), path
