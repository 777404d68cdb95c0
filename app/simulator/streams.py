"""Answers that take their time: paced event streams, and bodies as fast as the client reads.

Runs on: simulator loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from app.simulator import content
from app.simulator.scenarios import Scenario
from app.simulator.sink import Sink
from app.simulator.ticker import Timer

_TURN_BYTES = 1_048_576
_AFTER_GOAWAY = 10
_LATE_S = 1.0


class EventStream:
    """One answer in server-sent events, its deltas ``gap_ms`` apart; a client that does not read slows it.

    Args:
        sink: Where it goes.
        model: Model name to answer with.
        scenario: Number, distance and ending of the deltas.
        words: Texts of the deltas; without them each delta carries its time.
    """

    __slots__ = (
        "_deltas",
        "_gap_s",
        "_model",
        "_next_s",
        "_pad",
        "_scenario",
        "_sent",
        "_sink",
        "_timer",
        "_words",
    )

    def __init__(self, sink: Sink, model: str, scenario: Scenario, words: tuple[str, ...] = ()) -> None:
        self._sink = sink
        self._model = model
        self._scenario = scenario
        self._words = words
        self._deltas = scenario.deltas
        self._gap_s = scenario.gap_ms / 1000
        self._pad = b"y" * scenario.pad_bytes
        self._sent = 0
        self._next_s = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Sends the head and the opening events."""
        self._sink.on_gone = self._stop
        self._sink.head(200, content.SSE_HEAD, request_id=content.request_id())
        self._sink.write(content.stream_start(self._model))
        self._resume()

    def _stop(self) -> None:
        """The exchange is over: nothing is generated any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _resume(self) -> None:
        self._next_s = self._sink.app.ticker.now()
        self._arm()

    def _arm(self) -> None:
        """Schedules the next step where it belongs, however late this one was."""
        ticker = self._sink.app.ticker
        if self._gap_s:
            self._next_s += self._gap_s
            if ticker.now() - self._next_s > _LATE_S:
                self._next_s = ticker.now()
            self._timer = ticker.at(self._next_s, self._step)
        else:
            self._timer = ticker.after(0, self._step)

    def _step(self) -> None:
        """Sends one delta, or the ending."""
        sink = self._sink
        if sink.gone:
            return
        if not sink.writable:
            sink.on_writable = self._resume
            return
        if self._sent >= self._deltas and not self._goes_on():
            self._finish()
            return
        sink.app.stats.events_sent += 1
        if self._words:
            text = content.quoted(self._words[self._sent % len(self._words)])
        else:
            text = b"@T:%d;%s" % (time.monotonic_ns(), self._pad)
        sink.write(content.delta(self._sent, text))
        self._sent += 1
        self._arm()

    def _goes_on(self) -> bool:
        """After its deltas a goaway stream announces the connection's end, then finishes in its own time."""
        if self._scenario.kind != "goaway" or self._deltas > self._scenario.deltas:
            return False
        self._deltas += _AFTER_GOAWAY
        self._sink.goaway(processed=True)
        return True

    def _finish(self) -> None:
        """Ends as the scenario says."""
        kind, sink = self._scenario.kind, self._sink
        if kind == "reset":
            sink.reset()
        elif kind == "close":
            sink.cut()
        elif kind == "halfevent":
            sink.write(content.HALF_EVENT)
        elif kind == "streamerror":
            sink.end(content.OVERLOADED)
        elif kind != "stall":
            sink.end(content.stream_stop(max(1, self._sent)))


def burst(sink: Sink, model: str, deltas: int) -> None:
    """A whole event stream in one write."""
    parts = [content.stream_start(model)]
    parts += [content.delta(index, b"@T:%d;" % time.monotonic_ns()) for index in range(deltas)]
    parts.append(content.stream_stop(max(1, deltas)))
    sink.app.stats.events_sent += deltas
    sink.head(200, content.SSE_HEAD, request_id=content.request_id())
    sink.end(b"".join(parts))


def pour(sink: Sink, pieces: Iterator[bytes]) -> None:
    """Writes ``pieces`` as fast as the client takes them, at most 1 MiB in one turn of the loop."""

    def run() -> None:
        room = _TURN_BYTES
        while sink.writable and room > 0:
            piece = next(pieces, None)
            if piece is None:
                sink.end()
                return
            room -= len(piece)
            sink.write(piece)
        if sink.gone:
            return
        if sink.writable:
            sink.app.ticker.after(0, run)
        else:
            sink.on_writable = run

    run()


def drip(sink: Sink, pieces: Iterator[bytes], gap_s: float) -> None:
    """Writes ``pieces`` with ``gap_s`` seconds between them."""

    def run() -> None:
        if sink.gone:
            return
        piece = next(pieces, None)
        if piece is None:
            sink.end()
        else:
            sink.write(piece)
            later(sink, gap_s, run)

    run()


def later(sink: Sink, delay_s: float, callback: Callable[[], None]) -> None:
    """Calls ``callback`` after ``delay_s`` seconds unless the exchange is over by then."""
    timer = sink.app.ticker.after(delay_s, callback)
    sink.on_gone = timer.cancel


def octets(size: int) -> Iterator[bytes]:
    """``size`` deterministic bytes in pieces of 64 KiB; byte n is (7 n + n // 256) mod 256 within each piece."""
    whole, rest = divmod(size, len(_BLOCK))
    for _ in range(whole):
        yield _BLOCK
    if rest:
        yield _BLOCK[:rest]


_BLOCK = bytes((offset * 7 + (offset >> 8)) & 0xFF for offset in range(65_536))
