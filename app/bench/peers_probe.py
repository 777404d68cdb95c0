"""Facts about a proxy that no load shows: what it does to bytes and headers, what follows when a client leaves.

    bytes      the simulator's awkward but legal answers, as JSON and as events, against what comes through;
               the request's body as the simulator received it
    departure  a stream whose client closes its connection, in the middle of events that keep coming, and in a
               silence of the model: is the upstream told before the answer is over anyway?

Runs on: start-up.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from app.bench.figures import Figures
from app.bench.load import HEADERS, PATH
from app.bench.peers_figures import Pairs, headers_apart
from app.simulator.golden import GOLDEN_JSON, GOLDEN_SSE
from app.simulator.running import Running

MID_STREAM: Final = "claude-sim-stream-250x20ms"
IN_SILENCE: Final = "claude-sim-stream-2x5000ms"
_TIMEOUT_S = 15.0
_TOLD_S = 4.0  # both streams go on for longer than that
_SILENT_S = 0.3
_POLL_S = 0.02
_OVER_S = 15.0
# Spaces, an order of keys and an escape that a parser and a serialiser would not give back.
_REQUEST: Final = (
    '{"messages": [{"content":"caf\\u00e9 \U0001f38f","role":"user"} ],"model":"%s","max_tokens":64%s}'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy, or the upstream itself, is asked.

    Attributes:
        url: With what stands before the path.
        headers: Added to each request.
        ca_path: PEM file of the authority to trust, for https.
    """

    url: str
    headers: Mapping[str, str]
    ca_path: str = ""

    def connection(self) -> http.client.HTTPConnection:
        """A new one, not open yet."""
        where = urlsplit(self.url)
        host, port = where.hostname or "127.0.0.1", where.port
        if where.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_path or None)
            return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def begin(self, model: str, *, stream: bool) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Sends a request and waits for the head of its answer."""
        connection = self.connection()
        headers = {**HEADERS, **self.headers, "accept-encoding": "identity"}
        connection.request("POST", urlsplit(self.url).path + PATH, request_body(model, stream=stream), headers)
        return connection, connection.getresponse()

    def ask(self, model: str, *, stream: bool) -> tuple[int, Pairs, bytes]:
        """Status, headers and body of a whole answer."""
        connection, answer = self.begin(model, stream=stream)
        try:
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def request_body(model: str, *, stream: bool) -> bytes:
    """A messages request in an uncommon notation."""
    return (_REQUEST % (model, ', "stream" : true' if stream else "")).encode()


def serves(place: Place) -> bool:
    """Whether a plain request is answered."""
    try:
        status, _, body = place.ask("claude-sim-json-0ms", stream=False)
        return status == 200 and json.loads(body)["type"] == "message"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False


def probe(place: Place, straight: Place, simulator: Running) -> tuple[Figures, dict[str, Any]]:
    """All facts: as figures, 1 where it holds, 0 where not, None if that could not be found out; and in detail."""
    found, details = _bytes(place, straight, simulator)
    for name, model in (("cancels_mid_stream", MID_STREAM), ("cancels_in_silence", IN_SILENCE)):
        told = _leave(place, model, simulator, silent=model == IN_SILENCE)
        found[name] = None if told is None else float(told >= 0)
        details[f"{name}_ms"] = told if told is None or told >= 0 else None
    return found, details


def _bytes(place: Place, straight: Place, simulator: Running) -> tuple[Figures, dict[str, Any]]:
    """What becomes of bytes and headers."""
    model = "claude-sim-golden"
    try:
        asked = [straight.ask(model, stream=False)[1] for _ in range(2)]
        status, headers, body = place.ask(model, stream=False)
        stream_status, _, events = place.ask(model, stream=True)
        received = simulator.last() or {}
    except (OSError, http.client.HTTPException) as fault:
        names = ("request_verbatim", "json_verbatim", "sse_verbatim", "headers_lost", "headers_added")
        return dict.fromkeys(names), {"probe": repr(fault)}
    lost, added = headers_apart(asked, headers)
    sent = hashlib.sha256(request_body(model, stream=True)).hexdigest()
    figures: Figures = {
        "request_verbatim": float(received.get("body_sha256") == sent),
        "json_verbatim": float(body == GOLDEN_JSON) if status == 200 else None,
        "sse_verbatim": float(events == GOLDEN_SSE) if stream_status == 200 else None,
        "headers_lost": float(len(lost)),
        "headers_added": float(len(added)),
    }
    return figures, {"headers_lost_names": lost, "headers_added_names": added}


def _leave(place: Place, model: str, simulator: Running, *, silent: bool) -> float | None:
    """Milliseconds from a client's departure until the upstream is told; -1: it is not; None: no stream began."""
    try:
        connection, answer = place.begin(model, stream=True)
    except (OSError, http.client.HTTPException):
        return None
    try:
        if answer.status != 200 or not answer.read1(1024):
            return None
        if silent:
            time.sleep(_SILENT_S)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        left_ns = time.monotonic_ns()
        answer.close()
        connection.close()
    told_ms = _told(simulator, model, left_ns)
    _wait_for_the_end(simulator)
    return told_ms


def _told(simulator: Running, model: str, left_ns: int) -> float:
    """Milliseconds after ``left_ns`` at which the upstream was told; -1 if it was not."""
    deadline_s = time.monotonic() + _TOLD_S
    while time.monotonic() < deadline_s:
        for row in simulator.stats()["aborts"]:
            if row["model"] == model and row["at_ns"] >= left_ns:
                return round(float(row["at_ns"] - left_ns) / 1e6, 1)
        time.sleep(_POLL_S)
    return -1.0


def _wait_for_the_end(simulator: Running) -> None:
    """Returns once no stream is open any more, or after a while."""
    deadline_s = time.monotonic() + _OVER_S
    while simulator.stats()["open_streams"] and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
