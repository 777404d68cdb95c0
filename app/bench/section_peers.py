"""The side-by-side of the README's performance section: a line for each peer, and where one is ahead of us.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

OURS: Final = "gateway"
_NAMES: Final = {
    "direct": "no proxy",
    "floor": "WSGI floor",
    "gateway": "**Penstock**",
    "nginx": "nginx",
    "starlette": "Starlette + httpx, HTTP/2",
    "starlette_h1": "Starlette + httpx, HTTP/1.1",
    "flask": "Flask + requests, gevent",
    "litellm": "LiteLLM",
    "portkey": "Portkey",
}
_NOT_PEERS: Final = ("direct", "floor", OURS)
_NOTHING: Final = "–"
_ROUND: Final = re.compile(r"^round \d+: ")


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure that is compared.

    Attributes:
        figure: In the results file.
        words: In a sentence.
        unit: Of the figure.
        digits: Worth showing.
        high: More is better.
    """

    figure: str
    words: str
    unit: str = ""
    digits: int = 0
    high: bool = False

    def text(self, value: float | None) -> str:
        """As it is shown, without the unit."""
        return _NOTHING if value is None else f"{value:,.{self.digits}f}"

    def ahead(self, theirs: float | None, own: float | None) -> bool:
        """Whether ``theirs`` is better than ours by what is shown of both."""
        if theirs is None or own is None:
            return False
        other, mine = round(theirs, self.digits), round(own, self.digits)
        return other > mine if self.high else other < mine


_CPU = _Column("cpu_ms_per_request", "CPU per request", "ms", 2)
_FLOOR = _Column("floor_ratio", "CPU per request over the floor's", "×", 2)
_ADDED = (
    _Column("added_p50_ms", "added to an answer, p50", "ms", 1),
    _Column("added_p99_ms", "added to an answer, p99", "ms", 1),
)
_EVENT = _Column("cpu_ms_per_event", "CPU per event", "ms", 3)
_FIRST = (
    _Column("stream_ttfb_p50_ms", "first byte of a stream, p50", "ms", 1),
    _Column("stream_ttfb_p99_ms", "first byte of a stream, p99", "ms", 1),
)
_DELAY = _Column("stream_delay_p99_ms", "delay of an event, p99", "ms", 1)
_ERRORS = (_Column("error_pct", "errors", "%", 2), _Column("stream_error_pct", "errors of streams", "%", 2))
_MEMORY = _Column("pss_mib", "memory", "MiB")
_BYTES = (
    _Column("request_verbatim", "requests byte for byte", high=True),
    _Column("json_verbatim", "JSON answers byte for byte", high=True),
    _Column("sse_verbatim", "event streams byte for byte", high=True),
)
_HEADERS = (
    _Column("headers_lost", "response headers lost or altered"),
    _Column("headers_added", "response headers added"),
)
_CANCELS = (
    _Column("cancels_mid_stream", "a client that leaves cancels upstream", high=True),
    _Column("cancels_in_silence", "a client that leaves while nothing comes cancels upstream", high=True),
)
_ALL: Final = (_CPU, *_ADDED, _EVENT, *_FIRST, _DELAY, *_ERRORS, _MEMORY, *_BYTES, *_HEADERS, *_CANCELS)
_HEAD: Final = (
    "",
    "CPU per request, ms (× floor)",
    "added p50 / p99, ms",
    "CPU per event, ms",
    "first byte p50 / p99, ms",
    "event delay p99, ms",
    "errors",
    "memory, MiB",
    "bytes kept",
    "headers lost / added",
    "cancels upstream",
)
Figures = Mapping[str, Any]


def side_by_side(peers: Mapping[str, Any]) -> Iterator[str]:
    """The paragraphs: table, notes, what we lose at.

    Args:
        peers: A results file of ``bench peers``.

    Raises:
        KeyError: Something is missing in it.
    """
    settings = peers["settings"]
    medians: dict[str, Figures] = {name: one["median"] for name, one in peers["variants"].items()}
    yield (
        f"Beside others, one worker each, as their own documentation runs them in production (`deploy/peers/`): "
        f"{settings['concurrency']} JSON requests at once for about {settings['seconds']:g} s, then "
        f"{settings['streams']} streams × {settings['events']} events × {settings['gap_ms']} ms; medians of "
        f"{settings['rounds']} rounds."
    )
    lines = [_row(_HEAD), _row(["---"] * len(_HEAD))]
    lines += [_row(_cells(name, found)) for name, found in medians.items()]
    yield "\n".join(lines)
    yield _notes(settings["peers"])
    yield "\n".join(["What we lose at:", "", *_lost(medians)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, found: Figures) -> list[str]:
    """One line of the table."""
    cpu, ratio = found.get(_CPU.figure), found.get(_FLOOR.figure)
    return [
        _NAMES.get(name, name),
        _CPU.text(cpu) + (f" ({_FLOOR.text(ratio)})" if ratio is not None else ""),
        _pair(_ADDED, found),
        _EVENT.text(found.get(_EVENT.figure)),
        _pair(_FIRST, found),
        _DELAY.text(found.get(_DELAY.figure)),
        _worst(found),
        _MEMORY.text(found.get(_MEMORY.figure)),
        _kept(found),
        _pair(_HEADERS, found),
        _told(found),
    ]


def _pair(columns: Sequence[_Column], found: Figures) -> str:
    texts = [column.text(found.get(column.figure)) for column in columns]
    return _NOTHING if set(texts) == {_NOTHING} else " / ".join(texts)


def _worst(found: Figures) -> str:
    """The larger share of errors, of requests and of streams."""
    values = [found[column.figure] for column in _ERRORS if found.get(column.figure) is not None]
    return f"{max(values):g} %" if values else _NOTHING


def _kept(found: Figures) -> str:
    """What comes through unchanged."""
    values = [found.get(column.figure) for column in _BYTES]
    names = [name for name, value in zip(("requests", "JSON", "events"), values, strict=True) if value == 1]
    if len(names) == len(values) or not names:
        return "yes" if names else ("no" if 0 in values else _NOTHING)
    return f"{' and '.join(names)} only"


def _told(found: Figures) -> str:
    """When a client's departure reaches the upstream."""
    streaming, silent = (found.get(column.figure) for column in _CANCELS)
    if streaming is None or silent is None:
        return _NOTHING
    if streaming == silent == 1:
        return "yes"
    return "only while events come" if streaming == 1 else ("only in silence" if silent == 1 else "no")


def _notes(peers: Mapping[str, Mapping[str, Any]]) -> str:
    """What the lines are, versions, and what could not be measured."""
    versions = dict.fromkeys(one["version"] for one in peers.values() if one.get("version"))
    text = (
        "No proxy: the same client straight to the upstream, with the TLS that a proxy spares it. WSGI floor: "
        "gunicorn, gevent and Flask with a constant answer."
    )
    lines = [f"{text} Versions: {'; '.join(versions)}." if versions else text]
    lines += [f"{_NAMES.get(name, name)}: {fault}." for name, one in peers.items() for fault in _faults(one)]
    return "\n".join(lines)


def _faults(peer: Mapping[str, Any]) -> list[str]:
    """What is wrong with a peer, each once, however many rounds it spoilt."""
    return list(dict.fromkeys(_ROUND.sub("", fault) for fault in peer["faults"]))


def _lost(medians: Mapping[str, Figures]) -> list[str]:
    """One line for each figure in which a peer is better than ours."""
    own = medians[OURS]
    lines = []
    for column in _ALL:
        ahead = [
            f"{_NAMES.get(name, name)} {column.text(found[column.figure])}"
            for name, found in medians.items()
            if name not in _NOT_PEERS and column.ahead(found.get(column.figure), own.get(column.figure))
        ]
        if ahead:
            unit = f" {column.unit}" if column.unit else ""
            lines.append(f"- {column.words}: ours {column.text(own[column.figure])}{unit}; {', '.join(ahead)}")
    return lines or ["- nothing that is in this table"]
