"""Read the usage off an Anthropic answer while its bytes pass by.

Event streams: ``message_start`` states it first, ``message_delta`` states it again, cumulatively; so each figure
is the one that was stated last, and nothing is ever added up. What had been stated when a stream broke off is its
partial result. Only lines with ``message_`` in them are looked at, and an unfinished line is kept only until its
beginning shows that it is content. A line over 64 KiB is neither kept nor read: none that states usage comes near.
The vendor writes each event's data as one line; data spread over several ``data:`` lines is not put together.

JSON answers: one of up to 64 KiB is kept and parsed, 2 µs for most. Of a larger one the first and the last 64 KiB
(at times 128) are kept, and the top-level ``usage`` is found there; should it break off exactly behind a nested
member of that name, that one is taken for it. ``count_tokens`` answers with ``input_tokens`` alone.

gzip and deflate are undone piece by piece, for the tap only. The bytes themselves are never changed.
Pure.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import orjson

from app.wire import skim

WINDOW_BYTES = 65536
"""What is kept of an unfinished line, and of either end of a JSON answer; also of unpacked data at a time."""

KEYS = 64
"""Figures kept of one answer; more are not stated by anyone, and would be held until its end."""

_DEPTH = 4
_TRIES = 8
_KINDS = frozenset({"text/event-stream", "application/json"})
_PLAIN = frozenset({"", "identity"})
_CODINGS = _PLAIN | {"gzip", "x-gzip", "deflate"}
_DULL = re.compile(rb'data: *\{ *"type" *: *"(?:content|ping)')


class _Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def result(self) -> dict[str, int]: ...
    @property
    def complete(self) -> bool: ...
    def stated(self, whole: bool) -> tuple[dict[str, int], bool]: ...


class UsageTap:
    """Sees an answer's bytes, cut anywhere, and says what usage it stated.

    Args:
        content_type: The answer's header, parameters included; empty if it has none.
        content_encoding: Likewise.

    Attributes:
        feed: Takes the next bytes, as they came from the upstream.
        known: False: nothing can be read from an answer of this type or coding; ``result`` will be empty.
    """

    __slots__ = ("_reader", "feed", "known")

    def __init__(self, content_type: str, content_encoding: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        coding = content_encoding.strip().lower()
        self._reader: _Reader = _Events() if kind == "text/event-stream" else _Answer()
        self.known = kind in _KINDS and coding in _CODINGS
        self.feed: Callable[[bytes], None] = self._reader.feed
        if not self.known:
            self.feed = _ignore
        elif coding not in _PLAIN:
            self.feed = _Inflate(coding != "deflate", self._reader.feed).feed

    @property
    def complete(self) -> bool:
        """Whether the result is the final one: the stream said its last word, the JSON answer stated its usage."""
        return self._reader.complete

    def result(self) -> dict[str, int]:
        """The figures as stated so far: ``input_tokens``, ``cache_creation.ephemeral_5m_input_tokens`` …

        Names are the vendor's, nested ones joined by dots, unknown ones included; only whole numbers that are not
        negative. Where nothing was stated it is empty.
        """
        return self._reader.result()

    def stated(self, whole: bool) -> tuple[dict[str, int], bool]:
        """``result`` and ``complete`` at the end, for the price of one.

        Args:
            whole: The answer did not break off.
        """
        return self._reader.stated(whole)


def _ignore(data: bytes) -> None:
    """Feeds nobody."""


class _Events:
    """An event stream, line by line: a line's end is LF or CR, and the LF of a CR LF ends an empty one."""

    __slots__ = ("_held", "_mid", "_stopped", "_usage")

    def __init__(self) -> None:
        self._stopped = False
        self._usage: dict[str, int] = {}
        self._mid = False  # the last line is not finished
        self._held = bytearray()  # what there is of it; empty if it cannot matter

    def feed(self, data: bytes) -> None:
        if not self._mid and data.endswith(b"\n") and data.find(b"message_") < 0:
            return  # nearly always
        start = 0
        if self._mid:
            start = _line_end(data, 0)
            if self._held:
                self._hold(data, 0, len(data) if start < 0 else start)
            if start < 0:
                return
            self._unfinished()
            self._held.clear()
        last = max(data.rfind(b"\n", start), data.rfind(b"\r", start)) + 1
        self._lines(data, start, last)
        self._mid = last < len(data)
        if self._mid:
            self._hold(data, last, len(data))

    @property
    def complete(self) -> bool:
        self._unfinished()
        return self._stopped

    def result(self) -> dict[str, int]:
        self._unfinished()
        return dict(self._usage)

    def stated(self, whole: bool) -> tuple[dict[str, int], bool]:
        del whole  # a stream says itself that it is
        return self.result(), self._stopped

    def _unfinished(self) -> None:
        """Some leave out the last line's end: what there is counts if it is whole, and does no harm if not."""
        self._line(bytes(self._held), 0, len(self._held))

    def _hold(self, data: bytes, start: int, end: int) -> None:
        """Keep the next part of an unfinished line; or nothing of it, once it is known not to matter."""
        if len(self._held) + end - start > WINDOW_BYTES:
            self._held.clear()
            return
        self._held += data[start:end]
        if _DULL.match(self._held):
            self._held.clear()

    def _lines(self, data: bytes, start: int, last: int) -> None:
        """Look at those lines that may matter; whole ones all."""
        found = data.find(b"message_", start, last)
        while found >= 0:
            begin = max(data.rfind(b"\n", start, found), data.rfind(b"\r", start, found), start - 1) + 1
            end = _line_end(data, found)
            if end - begin <= WINDOW_BYTES:
                self._line(data, begin, end)
            found = data.find(b"message_", end, last)

    def _line(self, data: bytes, begin: int, end: int) -> None:
        if not data.startswith(b"data:", begin) or _DULL.match(data, begin):
            return
        event = _parsed(data[begin + 5 : end])
        kind = event.get("type")
        if kind == "message_stop":
            self._stopped = True
        elif kind == "message_delta":
            _note(event.get("usage"), self._usage)
        elif kind == "message_start":
            message = event.get("message")
            _note(message.get("usage") if isinstance(message, dict) else None, self._usage)


class _Answer:
    """A JSON answer: all of it up to the window, both its ends beyond."""

    __slots__ = ("_head", "_tail")

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()  # what follows the head, or the last of it

    @property
    def complete(self) -> bool:
        return bool(self.result())

    def feed(self, data: bytes) -> None:
        room = WINDOW_BYTES - len(self._head)
        if room:
            self._head += data[:room]
        self._tail += data[max(room, len(data) - WINDOW_BYTES) :]
        if len(self._tail) > 2 * WINDOW_BYTES:  # seldom, since what is kept has to be moved
            del self._tail[:-WINDOW_BYTES]

    def stated(self, whole: bool) -> tuple[dict[str, int], bool]:
        found = self.result()
        return found, bool(found)

    def result(self) -> dict[str, int]:
        stated = self._at_the_end() if self._tail else _parsed(self._head)
        stated = stated or self._at_the_start()
        found: dict[str, int] = {}
        if "usage" in stated:
            _note(stated["usage"], found)
        elif "input_tokens" in stated:
            _note({"input_tokens": stated["input_tokens"]}, found)
        return found

    def _at_the_end(self) -> dict[str, Any]:
        """The last members from ``usage`` on, which the vendor puts last, or nearly so.

        What follows a top-level member is the rest of an object; behind a nested one there is a bracket too many.
        No text has such a name in it: its quotes would have backslashes before them.
        """
        end = self._tail if len(self._tail) >= WINDOW_BYTES else self._head + self._tail
        at = len(end)
        for _ in range(_TRIES):
            at = end.rfind(b'"usage"', 0, at)
            if at < 0:
                break
            if stated := _parsed(b"{" + end[at:]):
                return stated
        return {}

    def _at_the_start(self) -> dict[str, Any]:
        """``usage`` where it comes before the content, in a large answer or one that broke off."""
        start = bytes(self._head)
        for name, begin, end in skim.members(start, WINDOW_BYTES):
            if name == b"usage" and end > 0:
                return {"usage": _parsed(start[begin:end])}
        return {}


class _Inflate:
    """Undoes gzip or deflate, the latter with its zlib header (RFC 9110, 8.4.1.2) or without; one after another.

    Never more than the window at a time. Damage is passed over in silence: nothing comes from then on.
    """

    __slots__ = ("_feed", "_gzip", "_inflate")

    def __init__(self, gzip: bool, feed: Callable[[bytes], None]) -> None:
        self._gzip = gzip
        self._feed = feed
        self._inflate: Any = None  # zlib's decompressor; a damaged one fails for good

    def feed(self, data: bytes) -> None:
        with suppress(zlib.error):
            while data:
                if self._inflate is None:
                    self._inflate = zlib.decompressobj(self._wbits(data[0]))
                self._feed(self._inflate.decompress(data, WINDOW_BYTES))
                data = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    data = self._inflate.unused_data
                    self._inflate = None

    def _wbits(self, first: int) -> int:
        if self._gzip:
            return 31
        return 15 if first & 15 == 8 else -15


def _line_end(data: bytes, start: int) -> int:
    """Where the line goes on no further; -1: not in here."""
    lf = data.find(b"\n", start)
    cr = data.find(b"\r", start, len(data) if lf < 0 else lf)
    return lf if cr < 0 else cr


def _parsed(text: bytes | bytearray) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _note(usage: object, into: dict[str, int], prefix: str = "", depth: int = _DEPTH) -> None:
    """Enter the figures of a usage object; those that are there already are replaced."""
    if not isinstance(usage, dict):
        return
    for key, value in usage.items():
        name = prefix + key
        if isinstance(value, dict):
            if depth:
                _note(value, into, name + ".", depth - 1)
        elif type(value) is int and value >= 0 and (len(into) < KEYS or name in into):
            into[name] = value
