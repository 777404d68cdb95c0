"""Tell people what happened in one exchange: when, with whom, how long each part took, what it used.

Takes what a log line holds, of this version or another: what is missing is left out. Instants are milliseconds
since the gateway had the request; those with ``~`` are sums of what is known to have come before.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from app.errors import GatewayError
from app.observe.ledger import usd

_KINDS: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_creation_input_tokens": "cache write",
    "cache_creation.ephemeral_5m_input_tokens": "of that for 5 minutes",
    "cache_creation.ephemeral_1h_input_tokens": "of that for 1 hour",
    "cache_read_input_tokens": "cache read",
    "server_tool_use.web_search_requests": "web searches",
    "server_tool_use.web_fetch_requests": "web fetches",
}
_CONNECTIONS: Final = {"new": "new connection", "reused": "reused connection"}
_POWERS: Final = 64
_TOOK: Final = ("connect_ms", "tls_ms", "settings_ms")
_NAME_WIDTH: Final = 15
_MOST: Final = 1e18  # what is larger, infinite or no number is nobody's time, size or count
_Told = Mapping[str, Any]


class Step(NamedTuple):
    """A row of the time line.

    Attributes:
        at_ms: Since the gateway had the request.
        about: The instant is a sum, not measured.
        took_ms: None for what has no length.
        what: For people.
    """

    at_ms: float
    about: bool
    took_ms: float | None
    what: str


def explained(told: _Told) -> str:
    """One exchange for people.

    Args:
        told: The log line's fields (``app.observe.log_line.fields``), ``time``, and what else there is.
    """
    lines = [f"{_text(told, 'method')} {_text(told, 'path')}: {_outcome(told)}".strip(), ""]
    facts = [f"  {name:<{_NAME_WIDTH}}{text}" for name, text in _facts(told) if text]
    lines += [*facts, ""] if facts else []
    lines += ["  Time line, in ms since the gateway had the request", *map(_row, steps(told))]
    if (gaps := _gaps(told)) != "":
        lines += ["", f"  Pauses in the stream: {gaps}"]
    if events := told.get("events"):
        lines += ["", "  Connection events", *(f"    {_event(one)}" for one in _objects(events))]
    return "\n".join(lines)


def steps(told: _Told) -> list[Step]:
    """The time line, in the order of what happened."""
    found = [Step(0.0, False, None, "the gateway has the request")]
    router_ms, queue_ms = _number(told, "router_ms"), _number(told, "queue_ms")
    if router_ms is not None:
        found.insert(0, Step(-router_ms, False, router_ms, "in the platform router's queue"))
    if queue_ms is not None:
        found.append(Step(0.0, True, queue_ms, "waiting for a slot in the gateway's queue"))
    found += _tries(_objects(told.get("attempts")), queue_ms or 0.0)
    for name, what in (("ttfb_ms", _head(told)), ("first_event_ms", "first event handed to the server")):
        at_ms = _number(told, name)
        if at_ms is not None:
            found.append(Step(at_ms, False, None, what))
    total_ms = _number(told, "total_ms")
    if total_ms is not None:
        found.append(Step(total_ms, False, None, "the client left" if told.get("client_left") else "over"))
    return found


def _tries(attempts: list[_Told], began_ms: float) -> Iterator[Step]:
    at_ms = began_ms
    for number, attempt in enumerate(attempts, 1):
        waited_ms, ms = _number(attempt, "waited_ms") or 0.0, _number(attempt, "ms") or 0.0
        if waited_ms:
            yield Step(at_ms, True, waited_ms, "pause: backoff, or a key that cools")
            at_ms += waited_ms
        yield Step(at_ms, True, ms, f"try {number}: {_try(attempt)}")
        at_ms += ms


def _try(attempt: _Told) -> str:
    """Who was asked, through what, and what came of it."""
    connection = _CONNECTIONS.get(_text(attempt, "connection"), "")
    connect_ms = _number(attempt, "connect_ms")
    if connection and connect_ms:
        connection += f" in {_ms(connect_ms)} ms"
    key = _text(attempt, "credential")
    parts = [_text(attempt, "provider"), f"key {key}" if key else "the caller's key", connection]
    return f"{', '.join(part for part in parts if part)}: {_text(attempt, 'outcome') or '?'}"


def _head(told: _Told) -> str:
    head_ms = _number(told, "upstream_head_ms")
    took = f", which took the upstream {_ms(head_ms)} ms" if head_ms is not None else ""
    return f"head of the answer{took}"


def _row(step: Step) -> str:
    at = f"{'~' if step.about else ''}{_ms(step.at_ms)}"
    took = _ms(step.took_ms) if step.took_ms is not None else ""
    return f"  {at:>14}{took:>14}  {step.what}"


def _outcome(told: _Told) -> str:
    """``503 queue_full (request dropped: queue is full)``, with what a library or the stream's end had to say."""
    slug, cause = _text(told, "slug"), _text(told, "cause")
    meaning = _meanings().get(slug, "")
    parts = [_text(told, "status") or "no status", slug, f"({meaning})" if meaning else ""]
    erred = _text(told, "stream_error")
    ends = (f"; the upstream's stream ended in {erred}" if erred else "", f"; cause: {cause}" if cause else "")
    return " ".join(part for part in parts if part) + "".join(ends)


def _meanings() -> dict[str, str]:
    """What each slug stands for."""
    found, waiting = {}, [GatewayError]
    while waiting:
        branch = waiting.pop()
        found[branch.slug] = branch.default.rstrip(".")
        waiting += branch.__subclasses__()
    return found


def _facts(told: _Told) -> Iterator[tuple[str, str]]:
    yield "ended", _text(told, "time")
    yield "request id", _text(told, "request_id")
    yield "upstream's id", _text(told, "upstream_request_id")
    yield "route", _text(told, "route")
    yield "model", _text(told, "model")
    yield "caller", _text(told, "caller")
    key = _text(told, "credential")
    kinds = (_text(told, "provider"), f"key {key}" if key else "", _text(told, "http_version"))
    yield "served by", ", ".join([*filter(None, kinds), *_manner(told)])
    yield "worker", _text(told, "worker")
    sizes = [_number(told, name) for name in ("request_bytes", "response_bytes")]
    yield (
        "bytes",
        " in, ".join(f"{size:,.0f}" for size in sizes if size is not None) + " out"
        if all(size is not None for size in sizes)
        else "",
    )
    yield (
        "client",
        "" if "client_left" not in told else "left early" if told["client_left"] else "stayed to the end",
    )
    yield "tokens", _tokens(told)
    yield "cost", _cost(told)
    added_ms = _number(told, "gateway_ms")
    yield "gateway added", f"{_ms(added_ms)} ms" if added_ms is not None else ""
    yield "trace", _text(told, "trace")


def _manner(told: _Told) -> Iterator[str]:
    if told.get("stream") is True:
        yield "event stream"
    if told.get("fallback") is True:
        yield "through the fallback threads"


def _tokens(told: _Told) -> str:
    tokens = told.get("tokens")
    if not isinstance(tokens, Mapping) or not tokens:
        return ""
    known = [name for name in _KINDS if name in tokens]
    names = [*known, *sorted(str(name) for name in tokens if name not in _KINDS)]
    parts = []
    for name in names:
        count = _number(tokens, name)
        label = _KINDS.get(name) or _printable(name).replace("_", " ").replace(".", ", ")
        parts.append(f"{count:,.0f} {label}" if count is not None else f"{_text(tokens, name)} {label}")
    return "; ".join(parts) + ("" if told.get("usage_complete") else " (so far: the answer's end was not seen)")


def _cost(told: _Told) -> str:
    micro_usd = told.get("cost_micro_usd")
    if isinstance(micro_usd, int) and not isinstance(micro_usd, bool):
        return f"{usd(micro_usd)} USD"
    return "not known: the model has no price" if told.get("tokens") else ""


def _gaps(told: _Told) -> str:
    """``12 below 1 ms, 3 below 16 ms; 70.5 ms together``."""
    counts, sum_ms = told.get("gaps"), _number(told, "gaps_ms")
    if not isinstance(counts, list | tuple):
        return ""
    parts = [
        f"{count:,} below {1 << power:,} ms"
        for power, count in enumerate(counts[:_POWERS])
        if _number({"n": count}, "n")
    ]
    return ", ".join(parts) + (f"; {_ms(sum_ms)} ms together" if parts and sum_ms is not None else "")


def _event(told: _Told) -> str:
    took = [f"{name.removesuffix('_ms')} {_text(told, name)} ms" for name in _TOOK if name in told]
    words = [_text(told, "time"), _text(told, "event").replace("_", " "), _text(told, "origin"), ", ".join(took)]
    return "  ".join(word for word in words if word)


def _objects(value: object) -> list[_Told]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _number(told: _Told, name: str) -> float | None:
    value = told.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _MOST:
        return None
    return float(value)


def _ms(value: float) -> str:
    return f"{value:,.2f}"


def _text(told: _Told, name: str) -> str:
    value = told.get(name)
    return "" if value is None else _printable(str(value))


def _printable(text: str) -> str:
    """A path or a model's name is the client's own: it must not move the cursor of whoever reads this."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
