"""upstream/lane_news: what is told of connections, at which level, and how waits are charged.

Runs on: loop.
"""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace

import pytest

from app.observe.logs import ExchangeLog
from app.upstream import lane_news
from app.upstream.h2_connect import Closed
from app.upstream.lane_news import Events, News, Nobody, waited
from tests.unit.upstream.scripted import answer, run

ORIGIN = "https://upstream.test"
DEAD = Closed("No answer to a PING.", 12.34567, 9, 2, unresponsive=True)


def said(tells: bool) -> list[dict[str, object]]:
    """One of everything."""
    events: Events = deque()
    news = News(events, ORIGIN, tells=tells)
    asker = Nobody()
    news.opened(3, "req-1", "HTTP/2", connect_ms=1.2345, tls_ms=2.0, settings_ms=0.5)
    news.reused(3, "req-2")
    for connection, connect_ms in (("new", 4.0), ("new", 0.0), ("reused", 0.0), ("", 0.0)):
        one = answer()
        one.connection, one.connect_ms, one.tls_ms = connection, connect_ms, connect_ms / 2
        news.used(4, asker, one)
    news.closed(3, DEAD)
    news.closed(3, Closed("It was idle.", 30.0, 1, 0, unresponsive=False))
    news.gone(4, 5.00049)
    news.tell("connect_failed", request_id="req-3", error="x")
    assert all(event.pop("origin") == ORIGIN for event in events)
    return list(events)


def test_at_debug_every_connection_is_told() -> None:
    unknown = {"request_id": "", "lane": 4}
    dead = {"lane": 3, "reason": "No answer to a PING.", "age_s": 12.346}
    assert said(tells=True) == [
        {
            "event": "connection_opened",
            "request_id": "req-1",
            "lane": 3,
            "http_version": "HTTP/2",
            "connect_ms": 1.23,
            "tls_ms": 2.0,
            "settings_ms": 0.5,
        },
        {"event": "connection_reused", "request_id": "req-2", "lane": 3},
        {"event": "connection_opened", **unknown, "http_version": "HTTP/2", "connect_ms": 4.0, "tls_ms": 2.0},
        {"event": "connection_opened", **unknown, "http_version": "HTTP/2"},
        {"event": "connection_reused", **unknown},
        {"event": "connection_unresponsive", **dead, "broken": 2},
        {"event": "connection_closed", **dead, "streams": 9},
        {"event": "connection_closed", "lane": 3, "reason": "It was idle.", "age_s": 30.0, "streams": 1},
        {"event": "connection_closed", "lane": 4, "reason": "", "age_s": 5.0},
        {"event": "connect_failed", "request_id": "req-3", "error": "x"},
    ]


def test_otherwise_only_what_somebody_has_to_know() -> None:
    assert [event["event"] for event in said(tells=False)] == ["connection_unresponsive", "connect_failed"]


def test_an_unresponsive_connection_is_a_warning_and_the_others_are_for_debugging(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ExchangeLog("debug", "json").drain(deque(said(tells=True)))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    levels = {line["event"]: line["level"] for line in lines}
    assert levels.pop("connection_unresponsive") == "warning"
    assert {level for name, level in levels.items() if name.startswith("connection_")} == {"debug"}


def test_a_wait_is_charged_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=iter([1.0, 1.25, 2.0, 2.5]).__next__)
    monkeypatch.setattr(lane_news, "time", clock)

    async def there() -> str:
        return "there"

    async def never() -> None:
        raise TimeoutError

    async def scene() -> None:
        asker = Nobody()
        assert await waited(asker, there()) == "there"
        assert asker.connect_ms == 250.0
        with pytest.raises(TimeoutError):
            await waited(asker, never())
        assert asker.connect_ms == 750.0

    run(scene)
