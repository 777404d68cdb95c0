"""What each scenario does with an exchange.

Runs on: simulator loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from app.simulator import content, golden, streams
from app.simulator.body import Asked
from app.simulator.heads import Head, Pairs
from app.simulator.scenarios import Scenario
from app.simulator.sink import Sink

_BREAK_S = 0.02
_REPEATED: Pairs = (
    ("set-cookie", "sim_a=1; Path=/"),
    ("set-cookie", "sim_b=2; Path=/"),
    ("x-repeat", "one"),
    ("x-repeat", "two"),
)
_GZIPPED: Pairs = (("content-encoding", "gzip"), ("vary", "accept-encoding"))
_TALLY_KEYS = 10_000


class Tally:
    """How often something was seen; forgets the oldest of more than 10,000 keys."""

    def __init__(self, limit: int = _TALLY_KEYS) -> None:
        self._limit = limit
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def add(self, key: Hashable) -> int:
        """Counts ``key``; returns how often it had been seen before."""
        before = self._seen.pop(key, 0)
        self._seen[key] = before + 1
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return before

    def clear(self) -> None:
        """Forgets everything."""
        self._seen.clear()


def respond(sink: Sink, status: int, head: Head, body: bytes, extra: Pairs = ()) -> None:
    """A whole answer."""
    sink.head(status, head, request_id=content.request_id(), extra=extra, length=len(body))
    sink.end(body)


def fail(
    sink: Sink,
    status: int,
    *,
    retry_after: str | None = None,
    detail: str = "",
    headers: Pairs = (),
    body: bytes = b"",
) -> None:
    """An error answer in the API's shape, or with ``body`` if that is not empty."""
    extra = [*headers]
    if retry_after is None and status == 429:
        retry_after = "1"
    if retry_after is not None:
        extra.append(("retry-after", retry_after))
    if status == 429 or status >= 500:
        extra.append(("x-should-retry", "true"))
    identifier = content.request_id()
    body = body or content.error(status, identifier, detail)
    sink.head(status, content.JSON_HEAD, request_id=identifier, extra=extra, length=len(body))
    sink.end(body)


class Scripts:
    """Plays scenarios on exchanges whose request is complete."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._plays: dict[str, Callable[[Sink, Scenario, Asked], None]] = {
            "demo": self._demo,
            "status": self._status,
            "early": self._status,
            "html": self._html,
            "flaky": self._flaky,
            "hang": self._hang,
            "refused": self._refused,
            "goaway_now": self._goaway_now,
            "overloaded": self._overloaded,
            "golden": self._golden,
            "big": self._big,
            "burst": self._burst,
            "goaway": self._goaway,
            "repeat": self._repeat,
        }
        self._plays |= dict.fromkeys(("reset", "close", "stall", "halfevent"), self._broken)

    def play(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        """Answers ``sink`` as ``scenario`` says."""
        self._plays.get(scenario.kind, self._timed)(sink, scenario, asked)

    def _timed(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        """json, slowhead, stream, streamerror, slowread: an ordinary answer, perhaps after a while."""
        if scenario.delay_ms:
            streams.later(sink, scenario.delay_ms / 1000, lambda: self._ordinary(sink, scenario, asked))
        else:
            self._ordinary(sink, scenario, asked)

    def _ordinary(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if asked.stream:
            streams.EventStream(sink, asked.model, scenario).start()
        else:
            respond(sink, 200, content.JSON_HEAD, content.message(asked.model, content.text_of(scenario.size_kib)))

    def _demo(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if asked.stream:
            streams.EventStream(sink, asked.model, scenario, content.WORDS).start()
        else:
            tokens = max(1, sink.body.size // 4)
            respond(sink, 200, content.JSON_HEAD, content.message(asked.model, content.text_of(0), tokens))

    def _status(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        fail(sink, scenario.status, retry_after=scenario.retry_after)

    def _html(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        body = content.html_error(scenario.status)
        sink.head(scenario.status, content.HTML_HEAD, length=len(body))
        sink.end(body)

    def _flaky(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if self._times(sink, scenario, asked) < scenario.count:
            fail(sink, scenario.status, retry_after=scenario.retry_after)
        else:
            self._ordinary(sink, scenario, asked)

    def _times(self, sink: Sink, scenario: Scenario, asked: Asked) -> int:
        """How often this caller, or this very body, has met this scenario before."""
        return self.tally.add((scenario.name, asked.user_id or sink.body.sha256))

    def _hang(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        """Never answers."""

    def _refused(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        sink.refuse()

    def _goaway_now(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if self._times(sink, scenario, asked):
            self._ordinary(sink, scenario, asked)
        else:
            sink.goaway(processed=False)

    def _goaway(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if not asked.stream:
            sink.goaway(processed=True)
        self._ordinary(sink, scenario, asked)

    def _overloaded(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if scenario.count and self._times(sink, scenario, asked) >= scenario.count:
            self._ordinary(sink, scenario, asked)
            return
        if not asked.stream:
            fail(sink, 529)
            return
        sink.head(200, content.SSE_HEAD, request_id=content.request_id())
        sink.end(content.OVERLOADED)

    def _golden(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if asked.stream:
            sink.head(200, content.SSE_HEAD, request_id=content.request_id())
            streams.drip(sink, iter(golden.golden_pieces()), 0.001)
        elif "gzip" in sink.request.get("accept-encoding"):
            respond(sink, 200, content.JSON_HEAD, golden.GOLDEN_GZIP, _GZIPPED)
        else:
            respond(sink, 200, content.JSON_HEAD, golden.GOLDEN_JSON)

    def _big(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        size = scenario.size_kib * 1024
        sink.head(200, content.OCTETS_HEAD, request_id=content.request_id(), length=size)
        streams.pour(sink, streams.octets(size))

    def _burst(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if asked.stream:
            streams.burst(sink, asked.model, scenario.deltas)
        else:
            self._ordinary(sink, scenario, asked)

    def _repeat(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        respond(sink, 200, content.JSON_HEAD, content.message(asked.model, content.text_of(0)), _REPEATED)

    def _broken(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        """reset, close, stall, halfevent: a stream's ending, or a JSON body that stops in its middle."""
        if asked.stream:
            self._ordinary(sink, scenario, asked)
            return
        body = content.message(asked.model, content.text_of(0))
        sink.head(200, content.JSON_HEAD, request_id=content.request_id(), length=len(body))
        sink.write(body[:40])
        action = {"reset": sink.reset, "close": sink.cut}.get(scenario.kind)
        if action is not None:
            streams.later(sink, _BREAK_S, action)
