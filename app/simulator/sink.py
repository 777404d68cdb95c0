"""One exchange as the application sees it: a request that arrives, an answer to write, a client that may leave.

    head arrives -> application.opened -> feed … -> application.answer -> head, write …, end
                                                   \\ client leaves at any point -> on_gone, once

Protocols subclass ``Sink``; what a scenario does to the transport (reset, cut, refuse, goaway) is theirs.

Runs on: simulator loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from app.simulator.body import Body
from app.simulator.heads import Head, Pairs
from app.simulator.keys import Attempt
from app.simulator.request import RequestHead
from app.simulator.stats import Stats
from app.simulator.ticker import Ticker

HIGH_WATER_BYTES = 65_536
_THROTTLE_TICK_S = 0.01


class Application(Protocol):
    """What a protocol needs of the application behind it."""

    stats: Stats
    ticker: Ticker

    def opened(self, sink: Sink) -> None:
        """A request's head has arrived."""

    def slow(self, sink: Sink, data: bytes) -> None:
        """The first piece of body looks as if it asked to be read slowly."""

    def answer(self, sink: Sink) -> None:
        """A request's body is complete (and read)."""


class Throttle:
    """Reads a request body at a given rate: what was not read yet keeps the peer's window closed."""

    __slots__ = ("_rate", "_sink", "_ticking", "ended", "unread")

    def __init__(self, sink: Sink, rate_kbps: int) -> None:
        self._sink = sink
        self._rate = rate_kbps * 1024
        self._ticking = False
        self.unread = 0
        self.ended = False

    def add(self, size: int) -> None:
        """``size`` more bytes wait to be read."""
        self.unread += size
        self._arm()

    def end(self) -> None:
        """Nothing more will come; the request is answered when all has been read."""
        self.ended = True
        self._arm()

    def _arm(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._sink.app.ticker.after(_THROTTLE_TICK_S, self._tick)

    def _tick(self) -> None:
        """Reads what a tick's time allows."""
        self._ticking = False
        if self._sink.gone:
            return
        size = min(self.unread, max(1, int(self._rate * _THROTTLE_TICK_S)))
        self.unread -= size
        self._sink.consumed(size)
        if self.unread:
            self._arm()
        elif self.ended:
            self._sink.app.answer(self._sink)


class Sink:
    """One request and its answer.

    Attributes:
        attempt: Its place in the record of the key it came with; messages requests only.
        gone: The exchange is over: answered, broken off or refused. Writes are ignored from then on.
        model: Model of the request once its body is known.
        bytes_sent: Body bytes handed to the transport.
        on_gone: Called once when the exchange is over, however it ended: timers stop here.
        on_writable: Called once when writing is possible again; set it after ``writable`` was False.
        throttle: Reads the request body slowly when set.
    """

    __slots__ = (
        "app",
        "attempt",
        "body",
        "bytes_sent",
        "gone",
        "model",
        "on_gone",
        "on_writable",
        "request",
        "throttle",
    )

    def __init__(self, app: Application, request: RequestHead) -> None:
        self.app = app
        self.request = request
        self.body = Body()
        self.attempt: Attempt | None = None
        self.gone = False
        self.model = ""
        self.bytes_sent = 0
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.throttle: Throttle | None = None

    def feed(self, data: bytes) -> None:
        """Takes a piece of the request body."""
        if not self.body.size and b"-slowread-" in data[:4096]:
            self.app.slow(self, data)
        self.body.feed(data)
        if self.throttle is None:
            self.consumed(len(data))
        else:
            self.throttle.add(len(data))

    def complete(self) -> None:
        """The request body has ended."""
        if self.gone:
            return
        if self.throttle is None:
            self.app.answer(self)
        else:
            self.throttle.end()

    def wake(self) -> None:
        """Calls ``on_writable`` if there is one."""
        callback, self.on_writable = self.on_writable, None
        if callback is not None:
            callback()

    def over(self, *, aborted: bool) -> bool:
        """Ends the exchange once; returns False when it had ended before."""
        if self.gone:
            return False
        self.gone = True
        callback, self.on_gone, self.on_writable = self.on_gone, None, None
        self.app.stats.closed(self, aborted=aborted and not self.request.route.control)
        if callback is not None:
            callback()
        return True

    @property
    def writable(self) -> bool:
        """Whether a write would go out now rather than wait behind the peer."""
        raise NotImplementedError

    def consumed(self, size: int) -> None:
        """``size`` bytes of request body were read: the peer may send that many more."""
        raise NotImplementedError

    def head(
        self, status: int, head: Head, *, request_id: bytes = b"", extra: Pairs = (), length: int | None = None
    ) -> None:
        """Sends the answer's head; ``length`` None leaves the body's length open."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Sends ``data``, or queues it behind the peer's window."""
        raise NotImplementedError

    def end(self, data: bytes = b"") -> None:
        """Sends ``data`` as the last of the body."""
        raise NotImplementedError

    def reset(self) -> None:
        """Breaks the answer off: RST_STREAM, or a TCP RST."""
        raise NotImplementedError

    def cut(self) -> None:
        """Closes the TCP connection cleanly, whatever is unfinished."""
        raise NotImplementedError

    def refuse(self) -> None:
        """Says that the request was not processed: REFUSED_STREAM, or a close without an answer."""
        raise NotImplementedError

    def goaway(self, *, processed: bool) -> None:
        """Announces the connection's end; ``processed`` False says that this request was not looked at."""
        raise NotImplementedError
