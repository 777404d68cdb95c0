"""What one HTTP/2 connection has to say: frames of one loop turn in one write, bodies as far as windows allow.

    push ──> frames ──flush, once a turn──> transport.write
    Body: waiting in line ──window or transport shut──> parked ──WINDOW_UPDATE, resume_writing──> waiting in line
             └─────────── last byte framed ──> done (END_STREAM sent, or its source is asked for more)

Bodies take turns, a frame each, so that a large one does not hold back the others. While the transport's buffer
is full no DATA is framed; everything else is.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.wire.h2_frames import (
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_STREAM,
    HEADER,
    MAX_WINDOW,
    headers,
)

TURN_BYTES = 262_144
"""DATA framed before the loop gets a turn: what a transport that is never full may be handed at a time."""


class Body:
    """One request body on its way out.

    Attributes:
        window: Bytes its stream may still send; negative after the peer shrank its initial window (section 6.9.2).
        rest: What is not framed yet.
        last: ``rest`` is the end of the body.
        dead: The stream is over; nothing more is framed.
        lined: It stands in the outbox's line.
        taken: Called once ``rest`` is framed.
    """

    __slots__ = ("dead", "last", "lined", "rest", "stream_id", "taken", "window")

    def __init__(self, stream_id: int, window: int, taken: Callable[[], object]) -> None:
        self.stream_id = stream_id
        self.window = window
        self.rest = memoryview(b"")
        self.last = False
        self.dead = False
        self.lined = False
        self.taken = taken


class Outbox:
    """The sending half of one connection.

    Attributes:
        window: Bytes the peer lets the connection send.
        initial_window: The peer's for a new stream.
        frame_size: Largest frame the peer takes.
        opened_id: Highest stream whose HEADERS were pushed; ``sent_id``: highest that was handed to the transport.
        full: The transport asked for a pause.
    """

    __slots__ = (
        "_frames",
        "_line",
        "_loop",
        "_scheduled",
        "_transport",
        "frame_size",
        "full",
        "initial_window",
        "opened_id",
        "sent_id",
        "shut",
        "window",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.WriteTransport | None = None
        self._frames: list[bytes] = []
        self._line: deque[Body] = deque()
        self._scheduled = False
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.frame_size = DEFAULT_FRAME_SIZE
        self.opened_id = 0
        self.sent_id = 0
        self.full = False
        self.shut = False

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """The connection is up: what waits may go."""
        self._transport = transport
        self.flush()

    def push(self, frame: bytes) -> None:
        """Send ``frame`` by the end of this turn of the loop."""
        self._frames.append(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what was pushed."""
        self._scheduled = False
        transport = self._transport
        if transport is None or self.shut or not self._frames or transport.is_closing():
            return  # what a closing transport would swallow counts as unsent
        data = b"".join(self._frames)
        self._frames.clear()
        self.sent_id = self.opened_id
        transport.write(data)

    def open(self, stream_id: int, block: bytes, body: bytes | None) -> bool:
        """Send a new stream's HEADERS, and its body where that is there and may go in one frame at once.

        Returns:
            Whether the request is whole; else the body is to be queued.
        """
        self.opened_id = stream_id
        self.push(headers(stream_id, block, body == b"", self.frame_size))
        if not body:
            return body is not None
        size = len(body)
        if self.full or self._line or size > min(self.initial_window, self.window, self.frame_size):
            return False
        self.window -= size
        self._frames.append(HEADER.pack(size << 8 | DATA, END_STREAM, stream_id) + body)
        return True

    def queue(self, body: Body, data: bytes, last: bool) -> None:
        """Send ``data`` as windows open; ``body.taken`` is called when it is framed."""
        body.rest = memoryview(data)
        body.last = last
        self.line_up(body)

    def line_up(self, body: Body) -> None:
        """Its window opened, or it has something new to send."""
        if not body.lined and not body.dead and (body.rest or body.last):
            body.lined = True
            self._line.append(body)
        self.pump()

    def resize(self, bodies: list[Body], initial_window: int) -> bool:
        """The peer's initial window changed, and all streams' with it (section 6.9.2).

        Returns:
            Whether every window is still within its bounds.
        """
        change, self.initial_window = initial_window - self.initial_window, initial_window
        for body in bodies:
            body.window += change
            if body.window > MAX_WINDOW:
                return False
        for body in bodies:
            self.line_up(body)
        return True

    def pump(self) -> None:
        """Frame what the windows allow, at most ``TURN_BYTES`` a turn."""
        line, budget = self._line, TURN_BYTES
        while line and not self.full and not self.shut:
            if budget <= 0:
                self.flush()
                self._loop.call_soon(self.pump)
                return
            body = line[0]
            if body.rest and self.window <= 0:
                return  # the connection's WINDOW_UPDATE pumps again
            line.popleft()
            body.lined = False
            if body.dead or (body.rest and body.window <= 0):
                continue  # the stream's WINDOW_UPDATE lines it up again
            budget -= self._frame(body)

    def _frame(self, body: Body) -> int:
        size = min(len(body.rest), body.window, self.window, self.frame_size) if body.rest else 0
        piece, body.rest = body.rest[:size], body.rest[size:]
        body.window -= size
        self.window -= size
        more = bool(body.rest)
        end = END_STREAM if body.last and not more else 0
        self.push(HEADER.pack(size << 8 | DATA, end, body.stream_id) + piece)
        if more:
            body.lined = True
            self._line.append(body)
        else:
            body.dead = body.last
            body.taken()
        return size
