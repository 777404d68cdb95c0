"""gateway/account: what the client is told it waited for, and the one Record at the end.

Pure.
"""

from __future__ import annotations

import gzip
from typing import Any, cast

import pytest

from app.bridge.call import Crossing
from app.errors import BreakerOpen, GatewayError
from app.exchange import Attempt, Exchange, Journey, Record, Reply
from app.gateway.account import Account
from app.gateway.life import Life
from app.gateway.timing import timing
from app.gateway.watching import USUAL

EXCHANGE = Exchange("r1", "POST", "/v1/messages?x=1", (), b'{"model":"m"}', False, 13, "messages", 100.0, "web")
TRIES = (
    Attempt("429", 20.0, "reused", "anthropic", "blue", 0.0),
    Attempt("200", 50.0, "reused", "anthropic", "green", 5.0),
)
STARTED = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n'
JOURNEY = Journey("anthropic", "green", 7.5, TRIES)


class Admitted:
    """A caller's limits that only note what they are told."""

    def __init__(self, counts_tokens: bool = True) -> None:
        self.headers = [("x-penstock-ratelimit-requests-remaining", "3")]
        self.counts_tokens = counts_tokens
        self.finished: list[int] = []

    def finish(self, tokens: int) -> None:
        self.finished.append(tokens)


def reply(*headers: tuple[str, str], journey: Journey = JOURNEY) -> Reply:
    return Reply(200, headers, False, "HTTP/2", journey, sent_at=100.1, head_at=100.15)


@pytest.fixture
def records() -> list[Record]:
    return []


def account(records: list[Record], admission: Admitted | None = None) -> Account:
    return Account(EXCHANGE, Life(1.0), [records.append], USUAL, admission)


def crossing() -> Crossing:
    class Up:
        ended_at = 0.0

    made: Any = type("Crossing", (), {"up": Up()})()
    return cast(Crossing, made)


def test_b42_server_timing_names_queue_tries_and_credential() -> None:
    assert timing(JOURNEY, 12.345, 50.0) == (
        'gateway;dur=12.35, queue;dur=7.50, upstream;dur=50.00, connect;desc="reused", '
        'try;dur=20.00;desc="429 blue", wait;dur=5.00, credential;desc="green"'
    )
    assert timing(Journey("a"), 1.0, 2.0) == "gateway;dur=1.00, queue;dur=0.00, upstream;dur=2.00"


def test_labels_cannot_break_out_of_the_header() -> None:
    sly = Journey("a", 'x", evil;desc="\r\nset-cookie: \u043a', 0.0)
    value = timing(sly, 0.0, 0.0)
    assert value.count('"') == 2 and "\r" not in value and "\n" not in value
    value.encode("ascii")


def test_answers_say_who_served_them_and_what_is_left(records: list[Record]) -> None:
    made = account(records, Admitted())
    made.head(reply(), crossing())
    names = dict(made.headers(JOURNEY))
    assert names["x-penstock-provider"] == "anthropic"
    # 100 ms until the last try was sent, 20 of them the upstream's own for the try in vain
    assert names["server-timing"].startswith("gateway;dur=80.00, queue;dur=7.50, upstream;dur=50.00")
    assert names["x-penstock-ratelimit-requests-remaining"] == "3"
    assert dict(account(records).headers(None)) == {}


def test_the_record_carries_the_journey_once(records: list[Record]) -> None:
    admitted = Admitted()
    made = account(records, admitted)
    made.head(reply(("request-id", "up1"), ("content-type", "application/json")), crossing())
    assert made.reader is not None
    made.reader(b'{"usage":{"input_tokens":10,"cache_read_input_tokens":1000,"output_tokens":5}}')
    made.settle(None, False, 99)
    made.settle(GatewayError(), True, 1)
    (record,) = records
    assert (record.attempts, record.provider, record.credential, record.queue_ms, record.caller) == (
        TRIES,
        "anthropic",
        "green",
        7.5,
        "web",
    )
    assert record.tokens["output_tokens"] == 5
    assert admitted.finished == [15]  # cache reads do not count against the day


def test_an_error_brings_its_journey_and_gives_the_place_back(records: list[Record]) -> None:
    admitted = Admitted(counts_tokens=False)
    made = account(records, admitted)
    assert made.reader is None
    error = BreakerOpen(retry_after_s=4.0)
    error.journey = Journey("anthropic", "blue", 3.0, TRIES[:1])
    made.settle(error, False, 0)
    (record,) = records
    assert (record.status, record.slug, record.queue_ms, record.credential) == (503, "breaker_open", 3.0, "blue")
    assert [one.outcome for one in record.attempts] == ["429"]
    assert admitted.finished == [0]


def test_what_never_crossed_has_no_queue(records: list[Record]) -> None:
    account(records).settle(GatewayError(), False, 0)
    assert records[0].queue_ms is None and records[0].attempts == ()


@pytest.mark.parametrize(("early", "body"), [(True, STARTED), (False, gzip.compress(STARTED, mtime=0))])
def test_b43_tokens_are_read_off_what_the_client_gets(early: bool, body: bytes, records: list[Record]) -> None:
    """In a stream that was begun early the coding is undone on its way."""
    made = account(records, Admitted())
    made.early = early
    made.head(reply(("content-type", "text/event-stream"), ("content-encoding", "gzip")), crossing())
    made.feed(body)
    made.settle(None, False, 0)
    assert records[0].tokens["input_tokens"] == 7
