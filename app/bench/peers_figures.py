"""What the side-by-side with other gateways and proxies asks of each, and what a round of one amounts to.

    json      closed load for about so many seconds: how many requests that is, a calibration says
    stream_*  paced event streams
    probes    bytes and headers as they are passed on, and what becomes of a stream whose client has left

A load of which more than 1 % failed has no figures but its errors: what fails is quick, and cheap.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.bench.figures import Figures
from app.bench.report import Row

ROWS = (
    Row("requests", "requests answered"),
    Row("rps", "requests per second", "/s"),
    Row("cpu_ms_per_request", "CPU per request, process tree", "ms", 3),
    Row("floor_ratio", "CPU per request over the floor's", "x", 2),
    Row("full_p50_ms", "whole answer, p50", "ms", 1),
    Row("full_p99_ms", "whole answer, p99", "ms", 1),
    Row("added_p50_ms", "added to direct, p50", "ms", 1),
    Row("added_p99_ms", "added to direct, p99", "ms", 1),
    Row("error_pct", "errors", "%", 2),
    Row("events", "streams: events"),
    Row("cpu_ms_per_event", "streams: CPU per event", "ms", 4),
    Row("stream_ttfb_p50_ms", "streams: first byte of the body, p50", "ms", 1),
    Row("stream_ttfb_p99_ms", "streams: first byte of the body, p99", "ms", 1),
    Row("stream_delay_p99_ms", "streams: delay of an event, p99", "ms", 1),
    Row("stream_error_pct", "streams: errors", "%", 2),
    Row("pss_mib", "memory after that, process tree (PSS)", "MiB", 1),
    Row("request_verbatim", "request body byte for byte (1: yes)"),
    Row("json_verbatim", "JSON answer byte for byte (1: yes)"),
    Row("sse_verbatim", "event stream byte for byte (1: yes)"),
    Row("headers_lost", "response headers lost or altered"),
    Row("headers_added", "response headers added"),
    Row("cancels_mid_stream", "client left: upstream is told (1: yes)"),
    Row("cancels_in_silence", "the same while nothing comes (1: yes)"),
)
FRAMING = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade"}
)
"""Headers that each hop sets for itself."""
_LEAST_PCT = 99.0
_MOST, _LEAST_TURNS = 20_000, 4
_JSON = ("requests", "rps", "cpu_ms_per_request", "full_p50_ms", "full_p99_ms")
_STREAM = {
    "events": "events",
    "ttfb_p50_ms": "stream_ttfb_p50_ms",
    "ttfb_p99_ms": "stream_ttfb_p99_ms",
    "delay_p50_ms": "stream_delay_p50_ms",
    "delay_p99_ms": "stream_delay_p99_ms",
}
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done.

    Attributes:
        rounds: How often.
        seconds: How long a closed load takes, about.
        concurrency: How many requests at once.
        streams: At once.
        events: In each.
        gap_ms: Between them.
        stagger_s: Within which the streams begin.
    """

    rounds: int = 3
    seconds: float = 5.0
    concurrency: int = 32
    streams: int = 200
    events: int = 100
    gap_ms: int = 20
    stagger_s: float = 0.5

    @property
    def model(self) -> str:
        """Asked for by a request."""
        return "claude-sim-json-0ms"

    @property
    def stream_model(self) -> str:
        """Asked for by a stream."""
        return f"claude-sim-stream-{self.events}x{self.gap_ms}ms"

    @property
    def longest_s(self) -> float:
        """How long a stream may take before it counts as lost."""
        return 30 + 4 * self.events * self.gap_ms / 1000

    @property
    def calibration(self) -> int:
        """Requests before the first round, which also warm up."""
        return 4 * self.concurrency

    def requests(self, rate: float | None) -> int:
        """How many requests take ``seconds``, by the ``rate`` per second that was seen; a few if none was."""
        wanted = round((rate or 0.0) * self.seconds)
        return min(_MOST, max(_LEAST_TURNS * self.concurrency, wanted))

    def title(self) -> str:
        """One line."""
        return (
            f"peers: {self.concurrency} requests at once for about {self.seconds:g} s, then "
            f"{self.streams} streams x {self.events} events x {self.gap_ms} ms; one worker each; "
            f"median of {self.rounds} interleaved round(s)"
        )


def json_figures(found: Figures, *, answered_upstream: bool) -> Figures:
    """What is shown of a closed load.

    Args:
        found: Its figures, as the latency bench has them.
        answered_upstream: Every good answer was one of the upstream; others are not what is measured.
    """
    error_pct = found.get("error_pct")
    usable = answered_upstream and error_pct is not None and error_pct <= 100 - _LEAST_PCT
    own: Figures = {name: found.get(name) if usable else None for name in _JSON if name in found}
    return own | {"error_pct": error_pct}


def stream_figures(found: Figures) -> Figures:
    """What is shown of the streams.

    Args:
        found: Their figures, as the streaming bench has them.
    """
    error_pct = found.get("error_pct")
    usable = error_pct is not None and error_pct <= 100 - _LEAST_PCT
    own: Figures = {new: found.get(name) if usable else None for name, new in _STREAM.items()}
    if "cpu_ms_per_event" in found:
        own["cpu_ms_per_event"] = found["cpu_ms_per_event"] if usable else None
    return own | {"stream_error_pct": error_pct}


def headers_apart(straight: Sequence[Pairs], through: Pairs) -> tuple[list[str], list[str]]:
    """Which response headers were lost or altered on the way, and which were added.

    Args:
        straight: The headers of several answers of the upstream itself: one whose value differs among them, or
            that tells the time, is only looked for by its name.
        through: Those of an answer that has come through a proxy.

    Returns:
        Names in lower case, sorted: lost or altered; added.
    """
    asked = [_values(one) for one in straight]
    got = _values(through)
    first = asked[0]
    lost = []
    for name, values in first.items():
        steady = name != "date" and all(one.get(name) == values for one in asked)
        if name not in got or (steady and got[name] != values):
            lost.append(name)
    return sorted(lost), sorted(name for name in got if name not in first)


def _values(pairs: Pairs) -> Mapping[str, list[str]]:
    """The values of each header in order, without what concerns one hop only."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        if name.lower() not in FRAMING:
            found.setdefault(name.lower(), []).append(value)
    return found


def faults(found: Figures, streams: bool = True) -> list[str]:
    """What a round of a column lacks.

    Args:
        found: Its figures.
        streams: Whether streams belong to it.
    """
    lacks = []
    for name, words in (("error_pct", "requests"), ("stream_error_pct", "streams"))[: 1 + streams]:
        value = found.get(name)
        if value is None:
            lacks.append(f"no {words} were measured")
        elif value > 100 - _LEAST_PCT:
            lacks.append(f"{value:g} % of the {words} failed")
    missing = sorted(name for name, value in found.items() if value is None)
    if missing and not lacks:
        lacks.append(f"could not be measured: {', '.join(missing)}")
    return lacks
