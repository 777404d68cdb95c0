"""Find exchanges by their id among log lines, whatever a platform has put around them.

One exchange may be told of several times (stdout, ``performance.json``, ``requests.json``): it is found once, with
everything that any of its lines says. Connection events of the same id go with it.
Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

ID: Final = re.compile(r"[A-Za-z0-9+/=_-]{1,200}")
"""What a request id looks like, the gateway's or the upstream's."""
NO_ID: Final = "A request id has 1 to 200 characters, of these: A-Z a-z 0-9 + / = _ -"
_WRAPPERS: Final = ("log", "message")  # Docker's json-file driver, and collectors that wrap a line in another
_MOST_STARTS: Final = 8
_DECODER: Final = json.JSONDecoder()


class Lookup:
    """What lines say of one id.

    Args:
        request_id: The gateway's or the upstream's.
    """

    def __init__(self, request_id: str) -> None:
        self._id = request_id
        self._bytes = request_id.encode()
        self._exchanges: dict[tuple[object, object, object], dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []

    def read(self, lines: Iterable[bytes]) -> None:
        """Look through these; a line without the id is not even parsed."""
        for line in lines:
            if self._bytes in line and (found := _told(line.decode("utf-8", "replace"))) is not None:
                self.add(found)

    def add(self, told: dict[str, Any]) -> None:
        """One line's object, or a row of a worker that was asked."""
        request_id = told.get("request_id")
        if told.get("event", "exchange") != "exchange":
            if request_id is not None and str(told["event"]).startswith("connection_"):
                self._events.append(told)
        elif self._id in (request_id, told.get("upstream_request_id")):
            key = (str(request_id), str(told.get("time")), str(told.get("total_ms")))
            self._exchanges[key] = self._exchanges.get(key, {}) | told

    @property
    def exchanges(self) -> list[dict[str, Any]]:
        """Newest first; with ``events``, those of connections, oldest first, where there are any."""
        found = sorted(self._exchanges.values(), key=lambda one: str(one.get("time")), reverse=True)
        return [one | {"events": events} if (events := self._of(one)) else one for one in found]

    def _of(self, exchange: dict[str, Any]) -> list[dict[str, Any]]:
        events = [one for one in self._events if one["request_id"] == exchange.get("request_id")]
        return sorted({json.dumps(one, sort_keys=True): one for one in events}.values(), key=_time)


def _time(told: dict[str, Any]) -> str:
    return str(told.get("time"))


def _told(line: str, deep: bool = False) -> dict[str, Any] | None:
    """The object of ours in a line: with text before and behind it, or inside another one."""
    at = -1
    for _ in range(_MOST_STARTS):
        at = line.find("{", at + 1)
        if at < 0:
            return None
        try:
            found = _DECODER.raw_decode(line, at)[0]
        except (ValueError, RecursionError):
            continue
        if "event" in found:
            return dict(found)
        for name in _WRAPPERS:
            if not deep and isinstance(found.get(name), str) and (inner := _told(found[name], True)) is not None:
                return inner
    return None
