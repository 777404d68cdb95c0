"""Read the usage off an Anthropic answer while its bytes pass by.

Event streams: ``message_start`` states it first, ``message_delta`` states it again, cumulatively; so each figure
is the one that was stated last, and nothing is ever added up. What had been stated when a stream broke off is its
partial result. Only lines with ``message_`` in them are looked at, and an unfinished line is kept only until its
beginning shows that it is content. A line over 64 KiB is neither kept nor read: none that states usage comes near.
The vendor writes each event's data as one line; data spread over several ``data:`` lines is not put together.

JSON answers: one of up to 64 KiB is kept, in the piece it came in if that is the only one; of a larger one the
first and the last 64 KiB (at times 128). The top-level ``usage`` is looked for from the end, and only what follows
is parsed: 1 µs, whatever the size. One that broke off is parsed from its beginning if all of it was kept; should
a larger one break off exactly behind a nested member of that name, that one is taken for it.

gzip and deflate are undone piece by piece, for the tap only. The bytes themselves are never changed.
Pure.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, Protocol

import orjson

from app.wire import skim

WINDOW_BYTES = 65536
"""What is kept of an unfinished line, and of either end of a JSON answer; also of unpacked data at a time."""

KEYS = 64
"""Figures kept of one answer; more are not stated by anyone, and would be held until its end."""

_DEPTH = 4
_TRIES = 8
_PIECES = 16
_EMPTY: Final = bytearray()
"""Stands for what is not needed yet."""
_PLAIN = frozenset({"", "identity"})
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_DULL = re.compile(rb'data: *\{ *"type" *: *"(?:content|ping)')
# Members that say how an answer was made, and their usual values, which change no price.
_USUAL: Final[Mapping[str, frozenset[str]]] = {
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global", "not_available"}),
}
# Figures that are counted and have prices: they stay, however many others there are.
_KNOWN: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens",
    }
)
NO_TERMS: Final[frozenset[str]] = frozenset()


class Stated(NamedTuple):
    """What an answer stated of its usage.

    Attributes:
        tokens: Figures by the vendor's names, nested ones joined by dots, unknown ones included; only whole
            numbers that are not negative. Where nothing was stated it is empty.
        complete: They are the final ones: the stream said its last word, the JSON answer stated its usage.
        terms: How the answer was made, where that is not as usual: ``speed:fast``, ``inference_geo:us``.
    """

    tokens: dict[str, int]
    complete: bool
    terms: frozenset[str]


_STATED: Final = Stated._make


class Tap(Protocol):
    """Sees an answer's bytes, cut anywhere, and says what usage it stated."""

    def feed(self, data: bytes) -> None:
        """The next bytes, as they came from the upstream."""
        ...

    def stated(self, whole: bool) -> Stated:
        """What was stated so far; ``whole``: the answer is over and did not break off."""
        ...


def usage_tap(content_type: str, content_encoding: str) -> Tap | None:
    """What reads such an answer; None where nothing can be read from its type or coding.

    Args:
        content_type: The answer's header, parameters included; empty if it has none.
        content_encoding: Likewise.
    """
    make = _chosen(content_type, content_encoding)
    return make() if make is not None else None


@lru_cache(maxsize=64)
def _chosen(content_type: str, content_encoding: str) -> Callable[[], Tap] | None:
    """What makes that; upstreams use a handful of values."""
    kind = content_type.partition(";")[0].strip().lower()
    coding = content_encoding.strip().lower()
    make: type[_Events | _Answer]
    if kind == "text/event-stream":
        make = _Events
    elif kind == "application/json":
        make = _Answer
    else:
        return None
    if coding in _PLAIN:
        return make
    return partial(_Inflate, coding != "deflate", make) if coding in _CODINGS else None


class _Events:
    """An event stream, line by line: a line's end is LF or CR, and the LF of a CR LF ends an empty one."""

    __slots__ = ("_held", "_mid", "_stopped", "_terms", "_usage")

    def __init__(self) -> None:
        self._stopped = False
        self._usage: dict[str, int] = {}
        self._terms: dict[str, str] = {}
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

    def stated(self, whole: bool) -> Stated:
        del whole  # a stream says itself that it is
        self._unfinished()
        return Stated(dict(self._usage), self._stopped, _named(self._terms) if self._terms else NO_TERMS)

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
            _note(event.get("usage"), self._usage, self._terms)
        elif kind == "message_start":
            message = event.get("message")
            _note(message.get("usage") if isinstance(message, dict) else None, self._usage, self._terms)


class _Answer:
    """A JSON answer: all of it up to the window, both its ends beyond."""

    __slots__ = ("_head", "_pieces", "_size", "_tail")

    def __init__(self) -> None:
        self._pieces: list[bytes] | None = []  # all there is, while it is little: as it came, not copied
        self._size = 0
        self._head = self._tail = _EMPTY

    def feed(self, data: bytes) -> None:
        pieces = self._pieces
        if pieces is None:
            self._keep(data)
            return
        self._size += len(data)
        pieces.append(data)
        if self._size > WINDOW_BYTES or len(pieces) > _PIECES:
            self._pieces = None
            self._head = bytearray()
            self._tail = bytearray()  # what follows the head, or the last of it
            for one in pieces:
                self._keep(one)

    def _keep(self, data: bytes) -> None:
        room = WINDOW_BYTES - len(self._head)
        if room:
            self._head += data[:room]
        self._tail += data[max(room, len(data) - WINDOW_BYTES) :]
        if len(self._tail) > 2 * WINDOW_BYTES:  # seldom, since what is kept has to be moved
            del self._tail[:-WINDOW_BYTES]

    def stated(self, whole: bool) -> Stated:
        figures: dict[str, int] = {}
        terms: dict[str, str] = {}
        pieces = self._pieces
        found = _at_the_end(pieces[-1]) if whole and pieces else None
        _note((found or self._found(whole)).get("usage"), figures, terms)
        return _STATED((figures, bool(figures), _named(terms) if terms else NO_TERMS))

    def _found(self, whole: bool) -> dict[str, Any]:
        """An object that has the ``usage`` in it; of one that broke off, no other member of that name will do."""
        pieces = self._pieces
        start = bytes(self._head) if pieces is None else b"".join(pieces)
        if self._tail:
            found = _at_the_end(self._tail if len(self._tail) >= WINDOW_BYTES else start + self._tail)
        else:
            found = (_at_the_end(start) if whole else {}) or _parsed(start)
        return found or _at_the_start(start)


def _at_the_start(start: bytes) -> dict[str, Any]:
    """``usage`` where it comes before the content, in a large answer or one that broke off."""
    for name, begin, end in skim.members(start, WINDOW_BYTES):
        if name == b"usage" and end > 0:
            return {"usage": _parsed(start[begin:end])}
    return {}


def _at_the_end(end: bytes | bytearray) -> dict[str, Any]:
    """The last members from ``usage`` on, which the vendor puts last, or nearly so.

    What follows a top-level member is the rest of an object; behind a nested one there is a bracket too many.
    No text has such a name in it: its quotes would have backslashes before them.
    """
    at = end.rfind(b'"usage"')
    for _ in range(_TRIES):
        if at < 0:
            break
        if stated := _parsed(b"{" + end[at:]):
            return stated
        at = end.rfind(b'"usage"', 0, at)
    return {}


class _Inflate:
    """Undoes gzip or deflate, the latter with its zlib header (RFC 9110, 8.4.1.2) or without; one after another.

    Never more than the window at a time. Damage is passed over in silence: nothing comes from then on.
    """

    __slots__ = ("_feed", "_gzip", "_inflate", "stated")

    def __init__(self, gzip: bool, make: Callable[[], Tap]) -> None:
        reader = make()
        self._gzip = gzip
        self._feed = reader.feed
        self.stated = reader.stated
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


def _named(terms: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{name}:{value}" for name, value in terms.items())


def _note(usage: object, into: dict[str, int], terms: dict[str, str]) -> None:
    """Enter the figures and terms of a usage object; those that are there already are replaced."""
    if not isinstance(usage, dict):
        return
    for name, value in usage.items():
        kind = type(value)
        if kind is int:
            if value >= 0:
                into[name] = value
        elif kind is dict:
            _nested(value, into, name, _DEPTH)
        elif kind is str and name in _USUAL:
            if value in _USUAL[name]:
                terms.pop(name, None)
            else:
                terms[name] = value
    if len(into) > KEYS:
        unknown = [name for name in into if name not in _KNOWN]
        for name in unknown[KEYS - len(into) :]:
            del into[name]


def _nested(usage: dict[str, Any], into: dict[str, int], prefix: str, depth: int) -> None:
    for key, value in usage.items():
        if type(value) is int:
            if value >= 0:
                into[_joined(prefix, key)] = value
        elif type(value) is dict and depth > 1:
            _nested(value, into, _joined(prefix, key), depth - 1)


@lru_cache(maxsize=256)
def _joined(prefix: str, key: str) -> str:
    """The same object every time, whose hash is known: it is looked up again and again."""
    return f"{prefix}.{key}"
