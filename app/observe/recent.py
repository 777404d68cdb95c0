"""Remember the last finished exchanges of this worker, for whoever asks about one of them.

Their bodies and headers are not kept: they are for the log, where a switch asks for them.

Runs on: worker.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from app.exchange import Record
from app.observe.log_line import Clock, fields

TOPIC: Final = "records"
MOST_LISTED: Final = 100
MOST_FOUND: Final = 20
"""Of one id: a client may give all its requests the same one."""
_CLOCK: Final = Clock()  # the log's own: one exchange has one time wherever it is told of
_SHORT: Final = (
    "time",
    "request_id",
    "upstream_request_id",
    "route",
    "model",
    "status",
    "slug",
    "total_ms",
    "gateway_ms",
    "provider",
    "credential",
    "caller",
    "client_left",
    "worker",
)


def _nothing() -> None:
    """There is nothing more to come."""


class Recent:
    """The last Records of this worker.

    Args:
        most: So many; 0 keeps none.
        settle: Has the Records made that are still to come; asked before anybody is answered.
    """

    def __init__(self, most: int, settle: Callable[[], None] = _nothing) -> None:
        self._kept: deque[Record] = deque(maxlen=most)
        self._settle = settle
        self.most = most

    def observe(self, records: Sequence[Record]) -> None:
        """Keep these, without their bodies and headers."""
        self._kept.extend(
            record if record.captured is None else record._replace(captured=None) for record in records
        )

    def find(self, request_id: str) -> list[Record]:
        """Every exchange with that id, the gateway's or the upstream's; newest first, ``MOST_FOUND`` at most."""
        found = (one for one in self.latest() if request_id in (one.request_id, one.upstream_request_id))
        return list(islice(found, MOST_FOUND))

    def latest(self, most: int | None = None) -> list[Record]:
        """The last ones, newest first; all that are kept, if not told how many."""
        kept = list(self._kept)  # a copy, made in one step: others append meanwhile
        kept.reverse()
        return kept[:most]

    def answer(self, argument: Any) -> dict[str, Any]:
        """What this worker knows, JSON-ready, for itself and for the others of its node.

        Args:
            argument: ``{"id": …}`` or ``{"latest": …}``; of anything else nothing is known.

        Returns:
            ``worker`` (its pid), ``kept`` (how many), ``since`` (when the oldest of them ended, ISO 8601 in UTC;
            None without any) and ``records``, newest first: the log line's fields, ``time`` and ``worker``; of
            the latest the short ones only.
        """
        self._settle()
        kept = self.latest()
        asked = argument if isinstance(argument, dict) else {}
        request_id, most = asked.get("id"), asked.get("latest")
        rows: list[dict[str, Any]] = []
        if isinstance(request_id, str):
            rows = [row(record) for record in self.find(request_id)]
        elif isinstance(most, int):
            rows = [_short(row(record)) for record in kept[: min(max(0, most), MOST_LISTED)]]
        since = _CLOCK.text(kept[-1].at) if kept else None
        return {"worker": os.getpid(), "kept": len(kept), "since": since, "records": rows}


def row(record: Record) -> dict[str, Any]:
    """The log line's fields, its ``time``, and the pid of the worker that served it."""
    found: dict[str, Any] = {"time": _CLOCK.text(record.at), "worker": os.getpid(), **fields(record)}
    found["tokens"] = dict(record.tokens)
    return found


def _short(whole: dict[str, Any]) -> dict[str, Any]:
    return {name: whole[name] for name in _SHORT} | {"tries": len(whole["attempts"])}
