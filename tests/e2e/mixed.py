"""A mixed load, and what its clients saw of it: JSON, streams, errors, retries, departures, refusals.

Every request's outcome is known beforehand, so that what a gateway counts can be held against it figure by figure.

Runs on: the test's threads.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.simulator.running import Running
from tests.e2e.servers import Server, until
from tests.e2e.wire import USUAL, Raw, message, request

CLIENTS = 8
PER_CONNECTION = 12
LONG = "claude-sim-stream-2000x10ms"
"""Goes on for twenty seconds: whoever leaves it leaves in its middle."""
SLOW = "claude-sim-json-20000ms"
PRICED = "claude-sonnet-4-5"
"""A model that has a price; the simulator answers it as any other it does not know."""


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        requests: (route, model, status, slug) of each finished exchange.
        tries: Requests the upstream must have heard for them, by who counts them: ``told`` and, for clients that
            left before a head, ``untold``.
        retries: Tries that another one followed, by their outcome.
        departures: Clients that left, before or after the head.
        heads: Answers that had a head.
        streams: Event streams of which at least one piece came.
        sent_bytes: Request bodies, once each.
        again_bytes: Request bodies, once for each try but the first.
        got_bytes: Of the upstream's answers that came whole.
        tokens: (kind, model) as the answers stated them.
        used: Exchanges that stated tokens, by model.
        partial: Of those, broken off before the last word.
        lost: Streams that died with their worker: the upstream has heard them, and they are in no other figure.
        lost_bytes: Their requests' bodies.
    """

    requests: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    departures: int = 0
    heads: int = 0
    streams: int = 0
    sent_bytes: int = 0
    again_bytes: int = 0
    got_bytes: int = 0
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    partial: int = 0
    lost: int = 0
    lost_bytes: int = 0


def usage_of(body: bytes) -> dict[str, Any]:
    """The usage an answer states: of an event stream what it stated last, figure by figure."""
    if not body.startswith((b"event:", b":")):
        found: dict[str, Any] = json.loads(body).get("usage", {})
        return found
    stated: dict[str, Any] = {}
    for line in body.decode().splitlines():
        if line.startswith("data:"):
            event = json.loads(line[5:])
            stated |= event.get("usage") or event.get("message", {}).get("usage") or {}
    return stated


class Load:
    """Sends, and notes what came of it.

    Args:
        server: The gateway.
        simulator: Behind it.
    """

    def __init__(self, server: Server, simulator: Running) -> None:
        self._server = server
        self._simulator = simulator
        self._lock = threading.Lock()
        self._number = 0
        self.seen = Seen()

    def run(self, count: int) -> None:
        """So many exchanges, over a few clients; a client's connection carries a few of them."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(self._some, begin, count) for begin in range(0, count, PER_CONNECTION)]:
                done.result()

    @contextmanager
    def held(self, count: int) -> Iterator[list[Raw]]:
        """So many streams under way, of which nothing has been noted."""
        raws = []
        try:
            for _ in range(count):
                raw, _body = self._ask(Raw(self._server.port), LONG, stream=True)
                raws.append(raw)
                self._first_delta(raw)
            yield raws
        finally:
            for raw in raws:
                raw.close()

    def gone(self, left: int, lost: int) -> None:
        """Of those that were held, so many have been left by their clients, and so many died with their worker."""
        size = len(self._body(LONG, stream=True)[0])
        for _ in range(left):
            self._note_departure(size)
        self.seen.lost += lost
        self.seen.lost_bytes += lost * size

    def leave_before_the_head(self) -> None:
        """A client leaves while the upstream has said nothing yet; it has heard the request by then."""
        before = self._heard(SLOW)
        raw, body = self._ask(Raw(self._server.port), SLOW, stream=False)
        until(lambda: self._heard(SLOW) > before, 10, "a request that is under way")
        raw.close()
        until(lambda: self._heard(SLOW) == before, 10, "a request that is given up")
        with self._lock:
            seen = self.seen
            seen.requests["messages", SLOW, "499", "client_gone"] += 1
            seen.departures += 1
            seen.tries["untold"] += 1
            seen.sent_bytes += len(body)

    def _heard(self, model: str) -> int:
        return sum(stream["model"] == model for stream in self._simulator.stats()["streams"])

    def _some(self, begin: int, end: int) -> None:
        with Raw(self._server.port, timeout_s=60) as raw:
            for number in range(begin, min(begin + PER_CONNECTION, end)):
                self._one(raw, number % 24)

    def _one(self, raw: Raw, kind: int) -> None:
        if kind < 9:
            self._whole(raw, "claude-sim-json-0ms", stream=False)
        elif kind < 12:
            self._whole(raw, PRICED, stream=False)
        elif kind < 18:
            self._whole(raw, "claude-sim-stream-5x2ms", stream=True)
        elif kind == 18:
            self._whole(raw, "claude-sim-flaky-1-529", stream=False, tries=2, failed="529")
        elif kind == 19:
            self._whole(raw, "claude-sim-overloaded-1", stream=True, tries=2, failed="overloaded_error")
        elif kind == 20:
            self._whole(raw, "claude-sim-status-503", stream=False, tries=3, failed="503", status="503")
        elif kind == 21:
            self._whole(raw, "claude-sim-status-400", stream=False, status="400")
        elif kind == 22:
            self._refused(raw)
        else:
            self._leave()

    def _body(self, model: str, *, stream: bool) -> tuple[bytes, int]:
        """A body like no other before it, for scenarios that know their callers by it; always as long."""
        with self._lock:
            self._number += 1
            number = self._number
        return message(model, stream=stream, metadata={"user_id": f"{number:08d}"}), number

    def _ask(self, raw: Raw, model: str, *, stream: bool) -> tuple[Raw, bytes]:
        body, _ = self._body(model, stream=stream)
        raw.send(request("/v1/messages", body, USUAL))
        return raw, body

    def _whole(
        self, raw: Raw, model: str, *, stream: bool, tries: int = 1, failed: str = "", status: str = "200"
    ) -> None:
        _, body = self._ask(raw, model, stream=stream)
        answer = raw.answer()
        assert str(answer.status) == status, answer
        usage = usage_of(answer.body) if answer.status == 200 else {}
        with self._lock:
            seen = self.seen
            seen.requests["messages", model, status, ""] += 1
            seen.tries["told"] += tries
            seen.retries[failed] += tries - 1
            seen.heads += 1
            seen.streams += stream and answer.status == 200
            seen.sent_bytes += len(body)
            seen.again_bytes += len(body) * (tries - 1)
            seen.got_bytes += len(answer.body)
            if usage:
                self._note_usage(model, usage)

    def _note_usage(self, model: str, usage: dict[str, Any]) -> None:
        self.seen.used[model] += 1
        for name, kind in (("input_tokens", "input"), ("output_tokens", "output")):
            self.seen.tokens[kind, model] += usage[name]

    def _refused(self, raw: Raw) -> None:
        """What the gateway itself refuses never gets upstream."""
        answer = raw.ask("/v1/../messages")
        assert answer.status == 400
        with self._lock:
            self.seen.requests["other", "", "400", "invalid_request"] += 1

    def _first_delta(self, raw: Raw) -> bytes:
        head = raw.head()
        assert head.status == 200
        got = b""
        for piece in raw.pieces(head):
            got += piece
            if b"content_block_delta" in got:
                return got
        raise AssertionError(got)

    def _leave(self) -> None:
        """In the middle of a stream."""
        raw, body = self._ask(Raw(self._server.port), LONG, stream=True)
        with raw:
            self._first_delta(raw)
        with self._lock:
            self._note_departure(len(body))

    def _note_departure(self, body_bytes: int) -> None:
        seen = self.seen
        seen.requests["messages", LONG, "200", "client_gone"] += 1
        seen.tries["told"] += 1
        seen.departures += 1
        seen.heads += 1
        seen.streams += 1
        seen.partial += 1
        seen.sent_bytes += body_bytes
        self._note_usage(LONG, {"input_tokens": 25, "output_tokens": 1})  # message_start's
