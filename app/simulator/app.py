"""The pretended provider: endpoints, scenarios, echo, replay, and questions to the simulator itself.

Runs on: simulator loop.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from app.simulator import batches, content, scenarios, streams
from app.simulator.body import KEEP_BYTES, Asked
from app.simulator.files import Files
from app.simulator.keys import Programs
from app.simulator.replay import Recording
from app.simulator.scenarios import Scenario
from app.simulator.scripts import Scripts, fail, respond
from app.simulator.sink import Sink, Throttle
from app.simulator.stats import Stats
from app.simulator.ticker import Ticker

_DELAYED = {"json", "slowhead"}
_ORDINARY = {"demo", "slowread", "stream", "burst", "streamerror", "golden", "overloaded", "halfevent"}


class Provider:
    """Answers whatever the protocols bring.

    Args:
        ticker: Timers.
        recordings: What ``x-sim-replay: <index>`` serves.
    """

    def __init__(self, ticker: Ticker, recordings: Sequence[Recording] = ()) -> None:
        self.ticker = ticker
        self.stats = Stats()
        self._recordings = recordings
        self._scripts = Scripts()
        self._programs = Programs()
        files, batch = Files(), batches.Batches()
        self._endpoints: dict[str, Callable[[Sink], None]] = {
            "messages": self._messages,
            "count_tokens": lambda sink: respond(sink, 200, content.JSON_HEAD, b'{"input_tokens":2095}'),
            "batch_create": batch.create,
            "batch_list": batch.listing,
            "batch": batch.retrieve,
            "batch_delete": batch.delete,
            "batch_results": batch.results,
            "models": batches.list_models,
            "model": batches.one_model,
            "file_upload": files.upload,
            "file_list": files.listing,
            "file": files.metadata,
            "file_delete": files.delete,
            "file_content": files.download,
            "echo": _echo,
            "missing": lambda sink: fail(sink, 404),
        }

    def opened(self, sink: Sink) -> None:
        """A request's head has arrived."""
        if not sink.request.route.control:
            self.stats.opened(sink)
        if sink.request.scenario:
            scenario = scenarios.named(sink.request.scenario)
            self._throttle(sink, scenario)
            if scenario.kind == "early":
                fail(sink, scenario.status)

    def slow(self, sink: Sink, data: bytes) -> None:
        """The first piece of a body names a slowread model."""
        _, _, rest = data[:4096].partition(b"-slowread-")
        digits = rest[:9].split(b'"')[0].split(b"-")[0]
        if sink.throttle is None and sink.request.route.name == "messages" and digits.isdigit():
            self._throttle(sink, scenarios.named(f"slowread-{int(digits)}"))

    def _throttle(self, sink: Sink, scenario: Scenario) -> None:
        if scenario.rate_kbps:
            sink.throttle = Throttle(sink, scenario.rate_kbps)

    def answer(self, sink: Sink) -> None:
        """A request's body is complete."""
        request = sink.request
        if request.route.control:
            self._control(sink)
            return
        asked = sink.body.asked() if request.route.name == "messages" or request.scenario else None
        if asked is not None:
            sink.model = asked.model
        self.stats.received(sink)
        if request.route.name == "messages" and self._ruled(sink):
            return
        if request.replay:
            self._replay(sink)
        elif asked is not None and request.scenario:
            self._scripted(sink, asked)
        else:
            self._endpoints[request.route.name](sink)

    def _ruled(self, sink: Sink) -> bool:
        """Notes the request in its key's record; True if the key's program has answered it."""
        sink.attempt, answer = self._programs.meet(sink.request.key, time.monotonic(), time.time())
        if answer is None:
            return False
        fail(sink, answer.status, retry_after=answer.retry_after, headers=answer.headers, body=answer.body)
        return True

    def _scripted(self, sink: Sink, asked: Asked) -> None:
        """A scenario named by a header: on messages as by the model name, elsewhere where it makes sense."""
        scenario = scenarios.named(sink.request.scenario)
        endpoint = self._endpoints[sink.request.route.name]
        if sink.request.route.name == "messages":
            self._play(sink, scenario, asked)
        elif scenario.kind in _DELAYED:
            streams.later(sink, scenario.delay_ms / 1000, lambda: endpoint(sink))
        elif scenario.kind in _ORDINARY:
            endpoint(sink)
        else:
            self._scripts.play(sink, scenario, asked._replace(stream=False))

    def _messages(self, sink: Sink) -> None:
        """POST /messages."""
        asked = sink.body.asked()
        if asked.model:
            self._play(sink, scenarios.parse(asked.model), asked)
        else:
            fail(sink, 400, detail="model: Field required")

    def _play(self, sink: Sink, scenario: Scenario, asked: Asked) -> None:
        if scenario.kind == "slowread":
            scenario = replace(scenario, kind="json")
        self._scripts.play(sink, scenario, asked)

    def _replay(self, sink: Sink) -> None:
        """The recording that the request asks for."""
        index = int(sink.request.replay) if sink.request.replay.isdecimal() else -1
        if not 0 <= index < len(self._recordings):
            fail(sink, 404, detail=f"x-sim-replay: there are {len(self._recordings)} recordings")
            return
        recorded = self._recordings[index]
        sink.head(recorded.status, recorded.head, length=None if recorded.is_stream else len(recorded.body))
        streams.pour(sink, iter(recorded.pieces()))

    def _control(self, sink: Sink) -> None:
        """A question about what was seen."""
        name = sink.request.route.name
        data: dict[str, Any] | list[Any] | None = {}
        if name == "__stats":
            data = self.stats.snapshot()
        elif name == "__last":
            data = self.stats.last_request()
        elif name == "__requests":
            data = self.stats.recent_requests()
        elif name == "__keys":
            data = self._programs.record() if sink.request.method == "GET" else self._load(sink)
        else:
            self.stats.reset()
            self._scripts.tally.clear()
            self._programs = Programs()
        respond(sink, 400 if data and "fault" in data else 200, content.JSON_HEAD, json.dumps(data).encode())

    def _load(self, sink: Sink) -> dict[str, str]:
        """Takes the programs of all keys; says what is wrong with them, if anything."""
        try:
            self._programs.load(json.loads(sink.body.first), time.monotonic())
        except ValueError as fault:
            return {"fault": str(fault)}
        return {}


def _echo(sink: Sink) -> None:
    """What was received, as JSON."""
    request, body = sink.request, sink.body
    data = {
        "method": request.method,
        "target": request.target,
        "protocol": request.protocol,
        "authority": request.authority,
        "headers": [list(pair) for pair in request.headers],
        "body_bytes": body.size,
        "body_sha256": body.sha256,
        "body_b64": base64.b64encode(body.first).decode() if body.size <= KEEP_BYTES else None,
    }
    respond(sink, 200, content.JSON_HEAD, json.dumps(data).encode())
