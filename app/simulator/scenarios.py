"""What a model name asks the pretended provider to do.

    [claude|gpt]-[lab|sim]-<scenario>          or the bare scenario in ``x-sim-scenario`` / ``x-lab-scenario``

    json-<D>ms[-<K>k]  delay-<D>ms   JSON after D ms, text of K KiB
    stream-<N>x<I>ms[-<B>b]          N deltas I ms apart (0: one per loop turn), B bytes of padding each
    burst-<N>                        the whole event stream in one write
    status-<code>[-ra<seconds>]      an error answer; ``status-502-html`` answers HTML as an edge would
    early-<code>                     (header only) the same before the request's body has come
    reset[-<N>]  close-<N>           after N deltas: RST_STREAM or TCP RST; a clean TCP close (truncation)
    stall-<N>  halfevent-<N>         N deltas (and half an event), then silence
    streamerror-<N>  overloaded      ``event: error`` after N deltas; as the first event of a 200
    hang  refused                    never answers; refuses before processing
    goaway-<N>  goaway-now           GOAWAY after N deltas; GOAWAY that says this stream was not processed
    golden  repeat                   awkward but legal bytes; repeated response headers
    slowhead-<ms>  slowread-<KBps>   head after ms; the request body is read slowly
    big-<K>k                         K KiB of octets as fast as flow control allows
    flaky-<K>-<code>                 K times this status for the same caller or body, then success
    overloaded-<K>                   the same with an overloaded_error as the first event of a 200

Deltas without a gap are small HTTP/2 frames faster than most clients read: with clients that guard against
floods of those (Rust's h2 counts frames under 256 bytes), pad them: stream-5000x0ms-256b.

A name that asks for nothing is answered as by a live model: text, in word deltas 30 ms apart when streamed.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Scenario:
    """A parsed scenario.

    Attributes:
        kind: The word in front of the first number, ``json``, ``stream``, ``status`` …; ``demo`` for real models.
        name: The text it was parsed from.
        deltas: Text deltas before the ending.
        gap_ms: Milliseconds between deltas; 0 = one per loop turn.
        delay_ms: Milliseconds before the head.
        pad_bytes: Filler in each delta.
        size_kib: Text (json) or body (big) size; 0 = the default text.
        status: Error status (status, flaky).
        count: How often a flaky or overloaded scenario fails; overloaded: 0 = always.
        retry_after: Value of retry-after, or None for the status's own.
        rate_kbps: KiB per second at which a request body is read; 0 = at once.
    """

    kind: str
    name: str = ""
    deltas: int = 10
    gap_ms: int = 0
    delay_ms: int = 0
    pad_bytes: int = 0
    size_kib: int = 0
    status: int = 200
    count: int = 0
    retry_after: str | None = None
    rate_kbps: int = 0


_Build = Callable[[str, tuple[str, ...]], Scenario]


def _ending(kind: str) -> _Build:
    """A stream that stops in the named way after its deltas, which are 5 ms apart."""
    return lambda name, groups: Scenario(kind, name, deltas=int(groups[0] or 3), gap_ms=5)


_PATTERNS: tuple[tuple[str, _Build], ...] = (
    (
        r"(?:json|delay)-(\d+)ms(?:-(\d+)k)?",
        lambda name, g: Scenario("json", name, delay_ms=int(g[0]), size_kib=int(g[1] or 0)),
    ),
    (
        r"stream-(\d+)x(\d+)ms(?:-(\d+)b)?",
        lambda name, g: Scenario("stream", name, deltas=int(g[0]), gap_ms=int(g[1]), pad_bytes=int(g[2] or 0)),
    ),
    (r"burst-(\d+)", lambda name, g: Scenario("burst", name, deltas=int(g[0]))),
    (r"status-(\d{3})-html", lambda name, g: Scenario("html", name, status=int(g[0]))),
    (
        r"status-([2-9]\d\d)(?:-ra(\d+(?:\.\d+)?))?",
        lambda name, g: Scenario("status", name, status=int(g[0]), retry_after=g[1]),
    ),
    (r"early-([2-9]\d\d)", lambda name, g: Scenario("early", name, status=int(g[0]))),
    (r"reset(?:-(\d+))?", _ending("reset")),
    (r"close(?:-(\d+))?", _ending("close")),
    (r"stall(?:-(\d+))?", _ending("stall")),
    (r"halfevent(?:-(\d+))?", _ending("halfevent")),
    (r"streamerror(?:-(\d+))?", _ending("streamerror")),
    (r"overloaded(?:-(\d+))?", lambda name, g: Scenario("overloaded", name, count=int(g[0] or 0))),
    (r"hang", lambda name, g: Scenario("hang", name)),
    (r"refused", lambda name, g: Scenario("refused", name)),
    (r"goaway-now", lambda name, g: Scenario("goaway_now", name)),
    (r"goaway(?:-(\d+))?", _ending("goaway")),
    (r"golden", lambda name, g: Scenario("golden", name)),
    (r"repeat", lambda name, g: Scenario("repeat", name)),
    (r"slowhead-(\d+)(?:ms)?", lambda name, g: Scenario("slowhead", name, delay_ms=int(g[0]))),
    (r"slowread-(\d+)", lambda name, g: Scenario("slowread", name, rate_kbps=max(1, int(g[0])))),
    (r"big-(\d+)k", lambda name, g: Scenario("big", name, size_kib=int(g[0]))),
    (
        r"flaky-(\d+)-(\d{3})(?:-ra(\d+(?:\.\d+)?))?",
        lambda name, g: Scenario("flaky", name, count=int(g[0]), status=int(g[1]), retry_after=g[2]),
    ),
)
_COMPILED = tuple((re.compile(pattern + r"(?![a-z0-9])"), build) for pattern, build in _PATTERNS)
_PREFIX = re.compile(r"(?:claude|gpt)-(?:lab|sim)-")

DEMO = Scenario("demo", deltas=12, gap_ms=30)


@lru_cache(maxsize=4096)
def parse(name: str) -> Scenario:
    """The scenario of a model name; ``DEMO`` when it asks for none."""
    found = _PREFIX.search(name)
    return named(name[found.end() :]) if found else DEMO


@lru_cache(maxsize=4096)
def named(text: str) -> Scenario:
    """The scenario of a header value: a bare scenario or a whole model name."""
    found = _PREFIX.search(text)
    if found:
        text = text[found.end() :]
    for pattern, build in _COMPILED:
        if hit := pattern.match(text):
            return build(text, hit.groups())
    return DEMO
