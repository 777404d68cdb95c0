"""Tell the client in ``server-timing`` where its time went (B42, W3C Server Timing).

    router;dur       from the platform router's ``X-Request-Start`` to the worker, where that header came
    gateway;dur      what the gateway itself added by then, its waits included
    queue;dur        of that: the wait for a slot
    upstream;dur     from the last try to its head
    connect          how long getting a connection took, or ``desc`` ``reused``
    try;dur;desc     each try that was in vain, with its reason and the key that was used
    wait;dur         pauses before tries: backoff, or a key that cools
    credential;desc  label of the gateway's own key

Tokens and cost are not known when a head goes out: an answer's usage is its last member, and a stream's is in its
last events. ``penstock explain`` has them afterwards.
Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache

from app.exchange import Attempt, Journey

_UNQUOTABLE = re.compile(r"[^\w.@:/ -]", re.ASCII)
_CONNECTIONS = {"new": ', connect;desc="new"', "reused": ', connect;desc="reused"'}


def timing(journey: Journey, gateway_ms: float, upstream_ms: float, router_ms: float | None = None) -> str:
    """The header's value.

    Args:
        journey: Of the exchange.
        gateway_ms: From receiving the request to handing its last try to the transport, waits included, the
            upstream's own time for tries in vain not.
        upstream_ms: From there to the upstream's head.
        router_ms: Before all that; None where no router told.
    """
    _, label, queue_ms, attempts = journey
    tried = ""
    if attempts:
        _, _, connection, _, _, waited_ms, connect_ms = attempts[-1]
        tried = f", connect;dur={connect_ms:.2f}" if connect_ms else _CONNECTIONS.get(connection, "")
        if waited_ms or len(attempts) > 1:
            tried += _in_vain(attempts)
    if label:
        tried += _credential(label)
    value = f"gateway;dur={gateway_ms:.2f}, queue;dur={queue_ms:.2f}, upstream;dur={upstream_ms:.2f}{tried}"
    return value if router_ms is None else f"router;dur={router_ms:.2f}, {value}"


def _in_vain(attempts: tuple[Attempt, ...]) -> str:
    """The tries that came to nothing, and the pauses."""
    text = "".join(f', try;dur={a.ms:.2f};desc="{quotable(a.outcome, a.credential)}"' for a in attempts[:-1])
    waited_ms = sum(attempt.waited_ms for attempt in attempts)
    return f"{text}, wait;dur={waited_ms:.2f}" if waited_ms >= 1.0 else text


@lru_cache(maxsize=1024)
def _credential(label: str) -> str:
    return f', credential;desc="{quotable(label)}"'


@lru_cache(maxsize=1024)
def quotable(*words: str) -> str:
    """Words as they may stand in a quoted string of a header."""
    return _UNQUOTABLE.sub("_", " ".join(word for word in words if word))
