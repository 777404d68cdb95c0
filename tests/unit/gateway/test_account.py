"""gateway/account: what the client is told it waited for, and the one Record at the end.

Pure.
"""

from __future__ import annotations

import gzip
import time
import weakref
from collections.abc import Mapping
from typing import Any, cast

import pytest

from app.bridge.call import Crossing
from app.errors import BreakerOpen, GatewayError, StreamBroken
from app.exchange import Attempt, Captured, Exchange, Journey, Record, Reply
from app.gateway.account import Account
from app.gateway.life import Life
from app.gateway.records import CALM, FAILED, OWN_FAULT, Records
from app.gateway.watching import USUAL, Capture, Watching

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
    return Reply(200, headers, False, "HTTP/2", journey, sent_at=100.1, head_at=100.15, judged_at=100.15)


@pytest.fixture
def records() -> list[Record]:
    return []


def account(
    records: list[Record],
    admission: Admitted | None = None,
    watching: Watching = USUAL,
    exchange: Exchange = EXCHANGE,
) -> Account:
    return Account(exchange, Life(1.0), Records([records.extend]), watching, admission)


def crossing() -> Crossing:
    class Up:
        ended_at = 0.0

    made: Any = type("Crossing", (), {"up": Up()})()
    return cast(Crossing, made)


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


@pytest.mark.parametrize(("version", "name"), [("HTTP/2", "request-id"), ("HTTP/1.1", "Request-Id")])
def test_of_repeated_headers_the_first_counts(version: str, name: str, records: list[Record]) -> None:
    made = account(records)
    found = reply((name, "first"), ("x", "y"), (name, "second"))._replace(http_version=version)
    made.head(found, crossing())
    made.settle(None, False, 0)
    assert records[0].upstream_request_id == "first"


class Told:
    """Stands for the Records: notes how they are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def add(self, make: object, now: float, hurry: int, held_bytes: int) -> None:
        self.asked.append((hurry, held_bytes))


@pytest.mark.parametrize(
    ("status", "error", "hurry"),
    [
        (200, None, CALM),
        (429, None, FAILED),
        (503, None, FAILED),
        (0, BreakerOpen(), FAILED),
        (200, StreamBroken(), FAILED),
        (0, GatewayError(), OWN_FAULT),
        (0, None, FAILED),
    ],
)
def test_what_failed_is_in_a_hurry_and_large_bodies_are_told_of(
    status: int, error: GatewayError | None, hurry: int
) -> None:
    told = Told()
    made = Account(EXCHANGE, Life(1.0), cast(Any, told), USUAL)
    if status:
        made.head(reply()._replace(status=status), crossing())
    made.settle(error, False, 1000)
    assert told.asked == [(hurry, len(EXCHANGE.body) + 1000)]


def test_limits_that_fail_lose_no_record() -> None:
    class Broken(Admitted):
        def finish(self, tokens: int) -> None:
            raise ZeroDivisionError

    told = Told()
    made = Account(EXCHANGE, Life(1.0), cast(Any, told), USUAL, Broken())
    with pytest.raises(ZeroDivisionError):
        made.settle(None, False, 0)
    assert len(told.asked) == 1


def test_what_waits_for_its_record_does_not_hold_its_crossing() -> None:
    made, held = Account(EXCHANGE, Life(1.0), cast(Any, Told()), USUAL), crossing()
    made.head(reply(), held)
    gone = weakref.ref(held)
    made.settle(None, False, 0)
    del held
    assert gone() is None


def test_an_error_brings_its_journey_and_gives_the_place_back(records: list[Record]) -> None:
    admitted = Admitted(counts_tokens=False)
    made = account(records, admitted)
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


def test_model_and_path_are_shown_as_they_may_be(records: list[Record]) -> None:
    """The price is that of the model as it was asked for."""
    priced: list[str] = []

    def price(model: str, tokens: Mapping[str, int], terms: frozenset[str]) -> int:
        priced.append(model)
        return 1

    exchange = EXCHANGE._replace(target="/v1/messages/secret?q=secret", body=b'{"model":"secret-1"}')
    watching = Watching(price, shown=lambda text: text.replace("secret", "***"))
    made = account(records, watching=watching, exchange=exchange)
    made.head(reply(("content-type", "text/event-stream")), crossing())
    made.feed(STARTED)
    made.settle(None, False, 0)
    assert (records[0].model, records[0].path, priced) == ("***-1", "/v1/messages/***", ["secret-1"])


def test_without_usage_only_a_callers_limits_have_tokens_read(records: list[Record]) -> None:
    off = Watching(lambda model, tokens, terms: 1, reads_usage=False)
    for admission, tokens in ((None, {}), (Admitted(False), {}), (Admitted(), {"input_tokens": 7})):
        made = account(records, admission, off)
        made.head(reply(("content-type", "text/event-stream")), crossing())
        assert (made.reader is None) == (not tokens)
        made.feed(STARTED)
        made.settle(None, False, 0)
        assert dict(records[-1].tokens) == tokens


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/html", "application/x-jsonl", "image/png", ""])
def test_what_states_no_usage_is_not_looked_at(kind: str, records: list[Record]) -> None:
    made = account(records)
    made.head(reply(("x-other", "1"), ("content-type", kind)), crossing())
    assert made.reader is None


def test_b43_usage_has_its_price_once_and_only_if_there_is_some(records: list[Record]) -> None:
    asked: list[tuple[str, dict[str, int], frozenset[str]]] = []

    def price(model: str, tokens: Any, terms: frozenset[str]) -> int:
        asked.append((model, dict(tokens), terms))
        return 1234

    for body in (b'{"usage":{"input_tokens":7,"speed":"fast"}}', b'{"type":"error"}'):
        made = account(records, watching=Watching(price))
        made.head(reply(("content-type", "application/json")), crossing())
        assert made.reader is not None
        made.reader(body)
        made.settle(None, False, len(body))
    assert asked == [("m", {"input_tokens": 7}, frozenset({"speed:fast"}))]
    assert [(one.cost_micro_usd, one.usage_complete) for one in records] == [(1234, True), (None, False)]


def test_an_answer_that_broke_off_is_read_with_care(records: list[Record]) -> None:
    """Its end may look like the end of a whole one."""
    body = b'{"content":[{"input":{"usage":{"input_tokens":666}}'
    for left, error in ((True, None), (False, GatewayError()), (False, None)):
        made = account(records)
        made.head(reply(("content-type", "application/json")), crossing())
        made.feed(body)
        made.settle(error, left, len(body))
    assert [dict(one.tokens) for one in records] == [{}, {}, {"input_tokens": 666}]


def test_b42_the_header_can_be_left_out(records: list[Record]) -> None:
    made = account(records, watching=Watching(server_timing=False))
    made.head(reply(), crossing())
    assert made.headers(JOURNEY) == (("x-penstock-provider", "anthropic"),)


def test_the_routers_queue_is_told_and_recorded(records: list[Record]) -> None:
    received_at = time.monotonic()
    started = f"t={time.time() - 0.5:.6f}"
    exchange = EXCHANGE._replace(headers=(("X-Request-Start", started),), received_at=received_at)
    made = account(records, exchange=exchange)
    made.head(reply(), crossing())
    value = dict(made.headers(JOURNEY))["server-timing"]
    made.settle(None, False, 0)
    router_ms = records[0].router_ms
    assert router_ms is not None and 400.0 < router_ms <= 501.0
    assert value.startswith(f"router;dur={router_ms:.2f}, gateway;dur=")
    account(records).settle(None, False, 0)
    assert records[1].router_ms is None


def test_b40_the_wait_for_a_streams_first_event_is_the_upstreams(records: list[Record]) -> None:
    """It is judged by that: the head goes up no sooner."""
    now = time.monotonic()
    exchange = EXCHANGE._replace(received_at=now - 10.0)
    for judged_at in (now - 9.99, now):
        made = account(records, exchange=exchange)
        head = Reply(200, (), True, "HTTP/2", Journey("anthropic"), now - 9.998, now - 9.99, judged_at)
        made.head(head, crossing())
        made.settle(None, False, 0)
    late, fine = records
    assert (late.gateway_ms or 0.0) > 9_000.0
    assert 0.0 < (fine.gateway_ms or 0.0) < fine.total_ms / 10.0
    assert late.upstream_head_ms == fine.upstream_head_ms == pytest.approx(8.0)


def test_b40_the_record_tells_of_the_upstreams_error_event(records: list[Record]) -> None:
    account(records).settle(None, False, 0)
    made = account(records)
    made.erred("api_error")
    made.settle(None, True, 0)
    assert [(one.stream_error, one.slug) for one in records] == [("", ""), ("api_error", "client_gone")]


def test_the_record_says_when_it_ended(records: list[Record]) -> None:
    before = time.time()
    account(records).settle(None, False, 0)
    assert before <= records[0].at <= time.time()


def test_only_event_streams_have_pauses(records: list[Record]) -> None:
    account(records).settle(None, False, 0)
    made = account(records)
    pace = made.paced(b": beat")
    made.settle(None, True, 0)
    made = account(records)
    pace = made.paced(b": beat")
    for _ in range(3):
        pace.step()
    made.settle(None, False, 0)
    assert [(one.first_event_ms, one.gaps, one.gaps_ms) for one in records[:2]] == [(None, (), 0.0)] * 2
    assert records[2].first_event_ms == (pace.first_at - EXCHANGE.received_at) * 1000.0
    assert sum(records[2].gaps) == 2 and records[2].gaps_ms == pace.gaps_ms


def test_what_was_asked_for_is_captured_with_headers_added_late(records: list[Record]) -> None:
    capture = Capture(headers=True, request_body_bytes=5, response_body_bytes=3)
    made = account(records, watching=Watching(capture=capture), exchange=EXCHANGE._replace(headers=(("a", "b"),)))
    made.head(reply(("content-type", "application/octet-stream")), crossing())
    sent = [("content-type", "x")]
    made.sends(sent)
    sent.append(("x-request-id", "r1"))
    assert made.reader is not None
    made.reader(b"answer")
    made.settle(None, False, 6)
    account(records).settle(None, False, 0)
    assert records[0].captured == Captured((("a", "b"),), tuple(sent), b'{"mod', b"ans")
    assert records[1].captured is None
