"""What a gateway key allows holds exactly over the workers of a node, and every answer says what is left of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.test_workers_share import Side, both_up, sides
from tests.e2e.wire import VERSION, Answer, Head, Raw, Truncated, ask, message, request

UPSTREAM = "sk-ant-limits-upstream"
PREFIX = "x-penstock-ratelimit-"
MINUTE, PLACES, TOKENS, PARTLY, DEFAULT, FREE, BOTH = (
    f"caller-{name}-1c4e" for name in ("minute", "places", "tokens", "partly", "default", "free", "both")
)
KEYS: list[object] = [
    {"name": "minute", "value": MINUTE, "requests_per_minute": 20},
    {"name": "places", "value": PLACES, "requests_per_minute": 0, "concurrent_requests": 5},
    {"name": "tokens", "value": TOKENS, "requests_per_minute": 0, "tokens_per_day": 150},
    {"name": "partly", "value": PARTLY, "requests_per_minute": 0, "tokens_per_day": 1000},
    {"name": "free", "value": FREE, "requests_per_minute": 0},
    {"name": "both", "value": BOTH, "requests_per_minute": 4, "concurrent_requests": 100, "tokens_per_day": 10**5},
    DEFAULT,
]
USED_BY_JSON = 25 + 21
USED_BY_START = 25 + 1
"""What the simulator says in message_start, before it tells the whole."""


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def node(request: pytest.FixtureRequest, farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers; the default of requests per minute is for the key that says nothing else."""
    path = tmp_path_factory.mktemp("config") / "penstock.json"
    path.write_text(json.dumps({"gateway": {"keys": KEYS}}))
    settings: dict[str, Any] = {
        "PENSTOCK_CONFIG": path,
        "ANTHROPIC_API_KEY": UPSTREAM,
        "GATEWAY_REQUESTS_PER_MINUTE": 4,
    }
    with farm.own(request.param, WEB_CONCURRENCY=2, **settings) as server:
        both_up(server)
        yield server


@pytest.fixture
def both(node: Server, simulator: Running) -> Iterator[list[Side]]:
    """Kept connections to each worker."""
    with sides(node, each=7) as found:
        yield found


def early_in_a_minute() -> None:
    """Minutes are those of the clock: a test that counts to a limit must not see one end."""
    left_s = 60 - time.time() % 60
    if left_s < 8:
        time.sleep(left_s + 0.1)


def said(head: Head, what: str) -> tuple[int, int]:
    """Limit and what is left of it, as the answer states them."""
    return int(head.get(f"{PREFIX}{what}-limit")), int(head.get(f"{PREFIX}{what}-remaining"))


def reset_in_s(head: Head, what: str) -> float:
    """Seconds until what the answer names as the reset."""
    at = datetime.strptime(head.get(f"{PREFIX}{what}-reset"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (at - datetime.now(UTC)).total_seconds()


def refused(answer: Answer) -> Answer:
    """Fails unless a limit refused it; the same answer."""
    assert (answer.status, answer.get("x-penstock-error")) == (429, "caller_limited"), answer
    assert answer.error == "rate_limit_error"
    assert int(answer.get("retry-after")) >= 1
    assert answer.get("x-should-retry") == ("true" if int(answer.get("retry-after")) <= 60 else "false")
    return answer


class Stream:
    """One stream under way, or its refusal."""

    def __init__(self, raw: Raw, key: str, scenario: str) -> None:
        self.raw = raw
        raw.send(request("/v1/messages", message(scenario, stream=True), _headers(key)))
        self.head = raw.head()
        self.body = raw.body(self.head) if self.head.status != 200 else b""

    def rest(self) -> bytes:
        """The rest of its body, however it ends."""
        try:
            return self.raw.body(self.head)
        except Truncated as short:
            return short.got

    def leave(self) -> None:
        """Leave after the first event of its content."""
        got = b""
        for piece in self.raw.pieces(self.head):
            got += piece
            if b"content_block_delta" in got:
                break
        self.raw.close()


def begun(raws: list[Raw], key: str, scenario: str) -> list[Stream]:
    """A stream on each connection, all at the same moment."""
    with ThreadPoolExecutor(len(raws)) as pool:
        return list(pool.map(lambda raw: Stream(raw, key, scenario), raws))


def _headers(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"), VERSION)


def free_places(node: Server, count: int) -> None:
    """Wait until the caller of the concurrent limit has so many places free."""

    def there() -> bool:
        answer = ask(node.port, "/v1/messages", message("json-0ms"), _headers(PLACES))
        asked = answer.get("x-request-id")  # its own place is free again once its line is written
        until(lambda: any(row["request_id"] == asked for row in node.lines()), 5, "its line")
        return answer.status == 200 and said(answer, "concurrent")[1] == count - 1

    until(there, 5, f"{count} free places")


def tokens_left(side: Side, key: str, left: int) -> Answer:
    """Wait until so many are left: a client has its answer a moment before that is booked. To ask costs none."""
    answers: list[Answer] = []

    def booked() -> bool:
        answers.append(side.post("status-400", key=key))
        return said(answers[-1], "tokens")[1] == left

    until(booked, 3, f"{left} tokens left")
    return answers[-1]


# --- requests per minute


def test_requests_per_minute_are_exact_over_both_workers(both: list[Side], simulator: Running) -> None:
    early_in_a_minute()
    simulator.reset()
    raws = [raw for side in both for raw in side.more[:4]]
    with ThreadPoolExecutor(len(raws)) as pool:
        found = [answer for answers in pool.map(lambda raw: _posts(raw, MINUTE, 5), raws) for answer in answers]
    assert Counter(answer.status for answer in found) == {200: 20, 429: 20}
    assert len(simulator.requests()) == 20
    left = sorted(said(answer, "requests")[1] for answer in found if answer.status == 200)
    assert left == list(range(20)), "each was told what was left behind it"
    for answer in found:
        assert said(answer, "requests")[0] == 20
        assert -1 <= reset_in_s(answer, "requests") <= 121
        assert not [name for name, _ in answer.headers if PREFIX in name and "requests" not in name]
    last = refused(next(answer for answer in found if answer.status == 429))
    assert said(last, "requests") == (20, 0)
    assert 1 <= int(last.get("retry-after")) <= 63
    assert "minute has used up its 20 requests per minute" in last.json()["error"]["message"]
    for side in both:
        assert side.post(key=FREE).status == 200, "another caller's limit"


def _posts(raw: Raw, key: str, count: int) -> list[Answer]:
    return [raw.ask("/v1/messages", message("json-0ms"), _headers(key)) for _ in range(count)]


def test_the_default_and_all_limits_of_one_key(both: list[Side]) -> None:
    early_in_a_minute()
    one, two = both
    assert [side.post(key=DEFAULT).status for side in (one, two, one, two)] == [200] * 4
    assert said(refused(one.post(key=DEFAULT)), "requests") == (4, 0)
    first = two.post(key=BOTH)
    assert (said(first, "requests"), said(first, "concurrent")) == ((4, 3), (100, 99))
    assert said(first, "tokens") == (100_000, 100_000)
    tokens_left(one, BOTH, 100_000 - USED_BY_JSON)
    while (answer := one.post("status-529", key=BOTH)).status == 529:  # the provider's errors say it too
        assert said(answer, "tokens") == (100_000, 100_000 - USED_BY_JSON)
    refused(answer)
    assert said(answer, "requests") == (4, 0)
    assert said(answer, "concurrent") == (100, 100), "what is refused takes no place"


def test_without_limits_nothing_is_said(both: list[Side], node: Server) -> None:
    for side in both:
        for scenario in ("json-0ms", "stream-2x0ms", "status-429"):
            answer = side.post(scenario, key=FREE)
            assert not [name for name, _ in answer.headers if name.lower().startswith(PREFIX)]
    assert ask(node.port, "/v1/messages", b"{}", _headers("nobody")).status == 401


# --- requests at once


def test_concurrent_requests_are_exact_over_both_workers(both: list[Side], node: Server) -> None:
    free_places(node, 5)
    found = begun([raw for side in both for raw in side.more], PLACES, "stream-40x20ms")
    running = [stream for stream in found if stream.head.status == 200]
    refusals = [stream for stream in found if stream.head.status == 429]
    assert (len(running), len(refusals)) == (5, 7)
    assert sorted(said(stream.head, "concurrent")[1] for stream in running) == [0, 1, 2, 3, 4]
    for stream in refusals:
        assert (stream.head.get("x-penstock-error"), stream.head.get("retry-after")) == ("caller_limited", "1")
        assert said(stream.head, "concurrent") == (5, 0)
        assert "5 concurrent requests" in json.loads(stream.body)["error"]["message"]
    assert [side.post(key=FREE).status for side in both] == [200, 200]
    for stream in running:
        assert stream.rest().count(b"text_delta") == 40
    free_places(node, 5)
    with ThreadPoolExecutor(12) as pool:
        raws = [raw for side in both for raw in side.more]
        posts = list(pool.map(lambda raw: raw.ask("/v1/messages", message("json-600ms"), _headers(PLACES)), raws))
    assert Counter(answer.status for answer in posts) == {200: 5, 429: 7}


def test_a_place_is_given_back_by_whoever_leaves(both: list[Side], node: Server, simulator: Running) -> None:
    free_places(node, 5)
    found = begun([raw for side in both for raw in side.more[:4]], PLACES, "stream-10000x20ms")
    running = [stream for stream in found if stream.head.status == 200]
    assert len(running) == 5
    for stream in running[:3]:
        stream.leave()
    free_places(node, 3)
    for stream in running[3:]:
        stream.leave()
    free_places(node, 5)
    *waiting, last = [raw for side in both for raw in side.more[4:]] + [both[0].raw, both[1].raw][:2]
    for raw in waiting[:5]:
        raw.send(request("/v1/messages", message("hang"), _headers(PLACES)))
    until(lambda: simulator.stats()["open_streams"] == 5, 5, "five that wait for a head")
    refused(last.ask("/v1/messages", message("json-0ms"), _headers(PLACES)))
    for raw in waiting[:5]:
        raw.close()
    free_places(node, 5)


def test_a_place_is_given_back_when_something_breaks(both: list[Side], node: Server) -> None:
    free_places(node, 5)
    for stream in begun([raw for side in both for raw in side.more[:2]], PLACES, "reset-3"):
        assert b"event: error" in stream.rest()
    for scenario in ("refused", "status-529", "status-400"):
        assert both[0].post(scenario, key=PLACES).status >= 400
    with Raw(node.port) as raw:  # a body that never comes whole
        raw.send(f"POST /v1/messages HTTP/1.1\r\nHost: g\r\nx-api-key: {PLACES}\r\n".encode())
        raw.send(b"Content-Length: 9999\r\n\r\n{")
        free_places(node, 4)
    free_places(node, 5)


# --- tokens a day


def test_tokens_of_json_and_streams_are_booked_until_the_day_is_used_up(both: list[Side]) -> None:
    early_in_a_minute()
    one, two = both
    assert said(one.post(key=TOKENS), "tokens") == (150, 150)
    tokens_left(two, TOKENS, 150 - USED_BY_JSON)
    stream = Stream(two.more[0], TOKENS, "stream-3x0ms")
    assert said(stream.head, "tokens") == (150, 150 - USED_BY_JSON)
    (final,) = [json.loads(line[6:]) for line in stream.rest().splitlines() if b'"type":"message_delta"' in line]
    used = USED_BY_JSON + 25 + int(final["usage"]["output_tokens"])
    tokens_left(one, TOKENS, 150 - used)
    while used < 150:  # an answer may go beyond what is left; the next request may not
        assert two.post(key=TOKENS).status == 200
        used += USED_BY_JSON
        if used < 150:
            tokens_left(one, TOKENS, 150 - used)
    until(lambda: one.post("status-400", key=TOKENS).status == 429, 3, "the end of the day's tokens")
    refusal = refused(two.post(key=TOKENS))
    assert said(refusal, "tokens") == (150, 0)
    assert int(refusal.get("retry-after")) == pytest.approx(86_400 - time.time() % 86_400, abs=3)
    assert reset_in_s(refusal, "tokens") == pytest.approx(86_400 - time.time() % 86_400, abs=3)
    assert one.post(key=PARTLY).status == 200


def test_who_leaves_in_mid_stream_is_booked_for_what_was_stated(both: list[Side]) -> None:
    early_in_a_minute()
    one, two = both
    left = said(one.post("status-400", key=PARTLY), "tokens")[1]
    Stream(two.more[0], PARTLY, "stream-10000x20ms").leave()
    tokens_left(one, PARTLY, left - USED_BY_START)


# --- at the end: a worker is killed


def test_a_killed_workers_places_are_free_again(node: Server) -> None:
    free_places(node, 5)
    with sides(node, each=5) as (one, two):
        held = begun([*one.more[:3], *two.more[:2]], PLACES, "stream-10000x20ms")
        assert Counter(stream.head.status for stream in held) == {200: 5}
        refused(two.post(key=PLACES))
        os.kill(one.pid, signal.SIGKILL)
        until(lambda: two.post(key=PLACES).status == 200, 5, "a free place")
        free_places(node, 3)
        until(lambda: len(node.lines("worker_started")) == 3, 15, "another worker")
    free_places(node, 5)
    text = node.output
    assert not any(secret in text for secret in (UPSTREAM, MINUTE, PLACES, TOKENS, PARTLY, DEFAULT, FREE, BOTH))
