"""Carry an answer's bytes from the crossing to the client, and end them properly whatever happens.

A body that is not an event stream is passed on piece by piece; if it breaks off, so does the client's connection,
so that the client sees the truncation.

An event stream is cut only between events: whole events go out at once, the beginning of an unfinished one waits
for its end (no SSE parser acts on less). So whenever the upstream dies, falls silent, or the worker has to stop,
the client gets exactly one terminal ``event: error`` after the last whole event, and a sign of life can be put in
during silence. Nothing else is added and no byte is changed (B14, B20-B23).

An error event of the upstream's own is told of by its type. A stream that passes compressed is not looked into:
there such an event stays unseen.

Runs on: worker.
"""

from __future__ import annotations

import errno
import re
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from app.bridge.call import Crossing
from app.errors import ClientGone, Draining, GatewayError, Refused, StreamBroken
from app.exchange import Reply
from app.gateway.pace import Pace
from app.wire import sse
from app.wire.headers import first

Ending = Generator[bytes, None, "GatewayError | None"]

HOLD_LIMIT_BYTES = 65536
LOOK_S = 0.25
_TERMINAL = re.compile(
    rb"""^(?:event: ?message_stop\s*$|data: ?\[DONE\]\s*$|(event: ?error\s*$|data: ?\{"type": ?"error"))""",
    re.MULTILINE,
)
"""The last word of a stream; its group is there where that is an error."""


@dataclass(frozen=True, slots=True)
class BodyRules:
    """What bodies have in common; from the settings.

    Attributes:
        chunk_bytes: Largest piece handed to WSGI.
        heartbeat_s: Silence after which an event stream gets a sign of life; 0 is never.
        heartbeat: The bytes of that sign.
    """

    chunk_bytes: int
    heartbeat_s: float
    heartbeat: bytes


class Body:
    """An answer's body as WSGI wants it: iterate, then ``close()``. Closing early cancels the upstream.

    Args:
        pieces: The bytes, in order.
        finish: Called once at the end with (error or None, whether the client left, bytes handed out).
        crossing: Closed at the end.
        reader: Shown every piece but heartbeats, if there is one.
        pace: Told of every piece but heartbeats; for event streams.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        crossing: Crossing,
        finish: Callable[[GatewayError | None, bool, int], None],
        reader: Callable[[bytes], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pieces = pieces
        self._crossing = crossing
        self._finish = finish
        self._reader = reader
        self._pace = pace
        self._done = False
        self._error: GatewayError | None = None
        self._closed = False
        self._bytes = 0

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        """The next piece.

        Raises:
            ConnectionResetError: The body broke off; the server has to cut the client's connection.
        """
        try:
            piece = next(self._pieces)
        except StopIteration as stop:
            self._done = True
            self._error = stop.value
            raise
        except GatewayError as exc:
            self._error = exc
            raise ConnectionResetError(errno.ECONNRESET, exc.message) from exc
        self._bytes += len(piece)
        pace = self._pace
        if pace is not None:
            if not piece or piece is pace.heartbeat:
                return piece
            pace.step()
        if self._reader is not None:
            self._reader(piece)
        return piece

    def close(self) -> None:
        """Called by the server in any case, once the answer is over or the client has left."""
        if self._closed:
            return
        self._closed = True
        left = not self._done and self._error is None
        self._crossing.close()
        self._finish(self._error, left or isinstance(self._error, ClientGone), self._bytes)


def plain(crossing: Crossing, tick: Callable[[], None], rules: BodyRules) -> Iterator[bytes]:
    """Pieces of a body that is not an event stream.

    Raises:
        GatewayError: It broke off.
    """
    look = every(LOOK_S, tick)
    while pieces := crossing.take(tick):
        yield from split(pieces, rules.chunk_bytes)
        look()


def every(seconds: float, tick: Callable[[], None]) -> Callable[[], None]:
    """``tick``, at most every ``seconds``, for busy bodies, which never wait long enough to be asked then."""
    due = time.monotonic() + seconds

    def look() -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + seconds
            tick()

    return look


def split(pieces: list[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """What waits, joined, in parts no larger than ``chunk_bytes``."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) <= chunk_bytes:
        yield data
        return
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


class EventStream:
    """Pieces of one event stream. The iterator's return value is the error it ended with, or None.

    Args:
        crossing: Where the bytes come from.
        tick: Raises to give up.
        rules: Chunk size and heartbeat.
        request_id: For the terminal event.
        erred: Told the type of the upstream's own error event.
    """

    def __init__(
        self,
        crossing: Crossing,
        tick: Callable[[], None],
        rules: BodyRules,
        request_id: str,
        erred: Callable[[str], None],
    ) -> None:
        self._crossing = crossing
        self._tick = tick
        self._rules = rules
        self._request_id = request_id
        self._erred = erred
        self._rest = b""
        self._over = False
        self._torn = False
        self._tail = b""
        self._inflate: Callable[[bytes], bytes] | None = None

    def events(self) -> Ending:
        """The stream of a head that was passed on as it came."""
        yield b""  # lets the server send the head now, before the first event is there
        try:
            yield from self._pass_on()
        except ClientGone:
            raise
        except GatewayError as exc:
            return (yield from self._terminate(exc))
        return None

    def early(self, head: Callable[[float], Reply]) -> Ending:
        """The stream of a request whose head has not come yet: status 200 is committed, signs of life go out.

        Args:
            head: Waits so many seconds for the head; raises TimeoutError.
        """
        try:
            yield self._rules.heartbeat
            reply = None
            while reply is None:
                try:
                    reply = head(self._rules.heartbeat_s)
                except TimeoutError:
                    yield self._rules.heartbeat
            self._decode(reply)
            if not reply.stream or reply.status != 200:
                return (yield from self._refusal(reply))
            yield from self._pass_on()
        except ClientGone:
            raise
        except GatewayError as exc:
            return (yield from self._terminate(exc))
        return None

    def _decode(self, reply: Reply) -> None:
        """The head that went out named no coding, so a coded body has to be decoded."""
        coding = (first(reply.headers, "content-encoding") or "identity").lower()
        if coding in {"gzip", "x-gzip", "deflate"}:
            self._inflate = zlib.decompressobj(wbits=47 if "gzip" in coding else 15).decompress
        elif coding != "identity":
            raise StreamBroken(f"The upstream answered in content-encoding {coding!r} after the stream was begun.")

    def _pass_on(self) -> Iterator[bytes]:
        beat = self._rules.heartbeat_s or None
        look = every(LOOK_S, self._tick)
        while True:
            look()
            try:
                pieces = self._crossing.take(self._tick, beat)
            except TimeoutError:
                if not self._torn:
                    yield self._rules.heartbeat
                continue
            if not pieces:
                break
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            whole = self._whole(data)
            if len(whole) > self._rules.chunk_bytes:
                yield from split([whole], self._rules.chunk_bytes)
            elif whole:
                yield whole
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest

    def _whole(self, data: bytes) -> bytes:
        """The whole events among what is held and ``data``; an event over the limit goes out torn."""
        if self._inflate is not None:
            try:
                data = self._inflate(data)
            except zlib.error as exc:
                raise StreamBroken("The upstream's coded stream is damaged.") from exc
        if self._rest:
            data = self._rest + data
        end = max(0, sse.complete(self._tail + data) - len(self._tail))
        self._torn = self._torn and end == 0
        if end == 0 and (self._torn or len(data) > HOLD_LIMIT_BYTES):
            self._torn, end = True, len(data)
        self._tail = data[-3:] if self._torn else b""  # a boundary may be cut between its line ends
        whole = data if end == len(data) else data[:end]
        self._rest = data[end:]
        if not self._over and (b"message_stop" in whole or b"error" in whole or b"[DONE]" in whole):
            self._look(whole)
        return whole

    def _look(self, whole: bytes) -> None:
        """Whether the stream's last word is among these events, and what it says if it is an error."""
        found = _TERMINAL.search(whole)
        if found is not None:
            self._over = True
            if found.group(1) is not None:
                self._erred(sse.error_type(whole[found.start() :]))

    def _terminate(self, error: GatewayError) -> Ending:
        if self._over:  # the stream had said its last word before the connection broke
            return None
        kind = error.kind if isinstance(error, Refused) else "api_error"
        event = sse.error_event(kind, error.message, self._request_id)
        yield b"\n\n" + event if self._torn else event
        return error

    def _refusal(self, reply: Reply) -> Ending:
        """The upstream answered no stream after 200 was committed: its error body becomes the error event."""
        body = b""
        while pieces := self._crossing.take(self._tick):
            body += b"".join(pieces)
            if len(body) > HOLD_LIMIT_BYTES:
                break
        error = StreamBroken(f"The upstream answered status {reply.status}.")
        try:
            event = sse.error_event_from(self._inflate(body) if self._inflate is not None else body)
        except (ValueError, RecursionError, zlib.error):
            event = sse.error_event("api_error", error.message, self._request_id)
        yield event
        return error


class Watch:
    """What a waiting worker looks at between naps: has the client left, does this worker have to stop?

    Args:
        gone: True once the client has left.
        cut: True (given monotonic seconds) once streams have to end.
        until: Instant after which the loop's own deadline must have struck; a safety net.
    """

    __slots__ = ("_cut", "_gone", "_until")

    def __init__(self, gone: Callable[[], bool], cut: Callable[[float], bool], until: float | None) -> None:
        self._gone = gone
        self._cut = cut
        self._until = until

    def __call__(self) -> None:
        """Raises ClientGone, Draining or StreamBroken to give up."""
        if self._gone():
            raise ClientGone
        now = time.monotonic()
        if self._cut(now):
            raise Draining("The gateway is shutting down; this stream had to end early.")
        if self._until is not None and now > self._until:
            raise StreamBroken("The background loop did not keep this exchange's deadline.")
