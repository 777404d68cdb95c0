"""The Message Batches endpoints and the model list: small bodies in the SDK's shapes.

Runs on: simulator loop.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import OrderedDict
from typing import Any

from app.simulator import content
from app.simulator.scripts import fail, respond
from app.simulator.sink import Sink

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([^"\\]{1,64})"')
_CREATED = "2026-01-01T00:00:00Z"
_KEEP = 100
_MODELS = (
    ("claude-opus-4-1", "Claude Opus 4.1"),
    ("claude-sonnet-4-5", "Claude Sonnet 4.5"),
    ("claude-haiku-4-5", "Claude Haiku 4.5"),
    ("claude-sim-json-0ms", "Simulated JSON"),
    ("claude-sim-stream-100x20ms", "Simulated stream"),
)


class Batches:
    """Remembers the custom ids of the last 100 batches; any other batch has two requests."""

    def __init__(self) -> None:
        self._batches: OrderedDict[str, list[str]] = OrderedDict()
        self._numbers = itertools.count(1)

    def create(self, sink: Sink) -> None:
        """POST /messages/batches."""
        identifier = f"msgbatch_01SIM{next(self._numbers):012d}"
        self._batches[identifier] = [name.decode() for name in _CUSTOM_ID.findall(sink.body.first)]
        if len(self._batches) > _KEEP:
            self._batches.popitem(last=False)
        _json(sink, self._batch(sink, identifier, ended=False))

    def listing(self, sink: Sink) -> None:
        """GET /messages/batches."""
        data = [self._batch(sink, identifier, ended=True) for identifier in reversed(self._batches)]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        _json(sink, {"data": data, "has_more": False, "first_id": first, "last_id": last})

    def retrieve(self, sink: Sink) -> None:
        """GET /messages/batches/{id}, and its cancellation: ended by then."""
        _json(sink, self._batch(sink, sink.request.route.arg, ended=True))

    def delete(self, sink: Sink) -> None:
        """DELETE /messages/batches/{id}."""
        self._batches.pop(sink.request.route.arg, None)
        _json(sink, {"id": sink.request.route.arg, "type": "message_batch_deleted"})

    def results(self, sink: Sink) -> None:
        """GET /messages/batches/{id}/results: one JSON object a line."""
        lines = []
        for name in self._names(sink.request.route.arg):
            message = json.loads(content.message("claude-sim-json-0ms", content.text_of(0)))
            result = {"type": "succeeded", "message": message}
            lines.append(json.dumps({"custom_id": name, "result": result}).encode() + b"\n")
        respond(sink, 200, content.JSONL_HEAD, b"".join(lines))

    def _names(self, identifier: str) -> list[str]:
        return self._batches.get(identifier) or ["request-1", "request-2"]

    def _batch(self, sink: Sink, identifier: str, *, ended: bool) -> dict[str, Any]:
        """A batch object; its results_url is absolute, at the authority that was asked."""
        count = len(self._names(identifier))
        prefix = sink.request.path.partition("/messages/batches")[0]
        url = f"{sink.request.base_url}{prefix}/messages/batches/{identifier}/results"
        return {
            "id": identifier,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {
                "processing": 0 if ended else count,
                "succeeded": count if ended else 0,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "created_at": _CREATED,
            "expires_at": "2026-01-02T00:00:00Z",
            "ended_at": _CREATED if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": url if ended else None,
        }


def list_models(sink: Sink) -> None:
    """GET /models."""
    data = [_model(identifier, name) for identifier, name in _MODELS]
    _json(sink, {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


def one_model(sink: Sink) -> None:
    """GET /models/{id}: known ones, and any that names a scenario."""
    identifier = sink.request.route.arg
    names = dict(_MODELS)
    if identifier in names or identifier.startswith(("claude-sim-", "claude-lab-")):
        _json(sink, _model(identifier, names.get(identifier, identifier)))
    else:
        fail(sink, 404, detail=f"model: {identifier}")


def _model(identifier: str, name: str) -> dict[str, Any]:
    return {"type": "model", "id": identifier, "display_name": name, "created_at": _CREATED}


def _json(sink: Sink, data: dict[str, Any]) -> None:
    respond(sink, 200, content.JSON_HEAD, json.dumps(data).encode())
