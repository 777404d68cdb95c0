"""gateway/handle as the client sees it: heartbeats before the head, and what follows them (B23).

Runs on: worker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from app.assembly import Assembly
from app.errors import ClientGone
from app.exchange import Record
from app.factory import create_app
from app.gateway.handle import asks_for_stream
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

STREAM = b'{"stream": true}'
EVENT = b"event: message_stop\ndata: {}\n\n"


@pytest.fixture
def app(settings: Callable[..., Settings], upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Heartbeats every millisecond; the upstream's head comes after a few loop turns more than that."""
    made = create_app(settings(STREAM_HEARTBEAT="1"))
    gateway = made.extensions["penstock"].gateway
    gateway.options = replace(gateway.options, body=replace(gateway.options.body, heartbeat_s=0.001))
    given = upstream.send

    async def late(*args: Any, **how: Any) -> Any:
        await asyncio.sleep(0.02)
        return await given(*args, **how)

    monkeypatch.setattr(upstream, "send", late)
    return made


@pytest.fixture
def records(app: Flask) -> list[Record]:
    """What is recorded."""
    told: list[Record] = []
    gateway = app.extensions["penstock"].gateway
    gateway.records.observers = (*gateway.records.observers, told.extend)
    return told


def test_b23_status_200_and_heartbeats_then_the_stream(
    app: Flask, upstream: Upstream, records: list[Record]
) -> None:
    upstream.answers(200, [("content-type", "text/event-stream")], EVENT)
    answer = app.test_client().post("/v1/messages", data=STREAM, buffered=True)
    assert answer.status_code == 200
    assert answer.data.startswith(b": ")
    assert answer.data.endswith(EVENT)
    assert answer.headers["x-accel-buffering"] == "no"
    assert (records[0].status, records[0].stream) == (200, True)


def test_b23_a_later_429_becomes_the_error_event(app: Flask, upstream: Upstream, records: list[Record]) -> None:
    body = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    upstream.answers(429, [("content-type", "application/json")], json.dumps(body).encode())
    data = app.test_client().post("/v1/messages", data=STREAM, buffered=True).data
    assert data.count(b"event: error") == 1
    assert json.loads(data.rpartition(b"data: ")[2]) == body
    assert (records[0].status, records[0].slug) == (200, "stream_broken")


def test_b23_who_asks_for_no_stream_waits_for_the_status(app: Flask, upstream: Upstream) -> None:
    upstream.answers(429, [], b"{}")
    assert app.test_client().post("/v1/messages", data=b"{}").status_code == 429


@pytest.mark.parametrize(
    ("body", "asked"),
    [(STREAM, True), (b'{"stream": 1}', False), (b"[]", False), (b"\xff", False), (b"", False)],
)
def test_only_true_asks(body: bytes, asked: bool) -> None:
    assert asks_for_stream(body) is asked


def test_a_deeply_nested_body_leaks_nothing(app: Flask) -> None:
    assembly: Assembly = app.extensions["penstock"]
    answer = app.test_client().post("/v1/messages", data=b"[" * 100_000, buffered=True)
    assert answer.status_code == 200
    assert assembly.life.in_flight == 0


def test_b21_a_client_that_leaves_before_the_head_is_499_in_the_record(
    app: Flask, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bridge.call.TICK_S", 0.001)
    monkeypatch.setattr("app.web.client.WsgiClient.gone", lambda self: True)
    app.test_client().post("/v1/messages", data=b"{}", buffered=True)
    assert (records[0].status, records[0].slug, records[0].client_left) == (499, ClientGone.slug, True)
    assert app.extensions["penstock"].life.in_flight == 0


def test_head_on_a_stream_has_no_body(app: Flask, upstream: Upstream) -> None:
    upstream.answers(200, [("content-type", "text/event-stream")])
    assert app.test_client().head("/v1/messages").status_code == 200
