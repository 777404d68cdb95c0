"""Callers with limits, from the request to its record: who was refused, where, and what is left to say.

Runs on: worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from app.assembly import Assembly
from app.exchange import Record
from app.factory import create_app
from app.observe.logs import ExchangeLog
from app.settings import Settings
from app.store import counters
from tests.unit.web.conftest import Upstream

Make = Callable[..., Settings]
KEYED = {"ANTHROPIC_API_KEYS": "ours", "GATEWAY_API_KEYS": "gate-1,gate-2"}


def recorded(app: Flask) -> list[Record]:
    """What is recorded from now on."""
    told: list[Record] = []
    gateway = app.extensions["penstock"].gateway
    gateway.records.observers = (*gateway.records.observers, told.extend)
    return told


def test_a_limited_caller_is_named_in_the_record(settings: Make, upstream: Upstream) -> None:
    app = create_app(settings(**KEYED, GATEWAY_REQUESTS_PER_MINUTE="1"))
    records = recorded(app)
    client = app.test_client()
    answers = [client.post("/v1/messages", headers={"x-api-key": "gate-2"}, buffered=True) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert [answer.headers["x-penstock-ratelimit-requests-remaining"] for answer in answers] == ["0", "0"]
    assert [(one.caller, one.route, one.slug) for one in records] == [
        ("key-2", "messages", ""),
        ("key-2", "messages", "caller_limited"),
    ]
    assert len(upstream.seen) == 1


def test_a_body_over_its_limit_says_what_is_left_and_gives_the_place_back(
    settings: Make, upstream: Upstream
) -> None:
    app = create_app(settings(**KEYED, GATEWAY_CONCURRENT_REQUESTS="1", MAX_BODY_BYTES="1024"))
    records = recorded(app)
    for _ in range(2):
        answer = app.test_client().post("/v1/messages", headers={"x-api-key": "gate-1"}, data=b"x" * 2000)
        assert answer.status_code == 413
        assert answer.headers["x-penstock-ratelimit-concurrent-remaining"] == "0"
    assert {(one.caller, one.route, one.slug) for one in records} == {("key-1", "messages", "request_too_large")}
    assert upstream.seen == []


def test_without_a_key_there_is_no_caller_to_name(settings: Make, upstream: Upstream) -> None:
    app = create_app(settings(**KEYED))
    records = recorded(app)
    assert app.test_client().post("/v1/messages").status_code == 401
    assert [(one.caller, one.route, one.slug) for one in records] == [("", "other", "unauthenticated")]


def test_counters_that_cannot_be_shared_are_told_and_stop_nothing(
    settings: Make, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As for the 65th worker of a node: it counts alone."""
    monkeypatch.setenv(counters.VARIABLE, str(tmp_path / "missing" / "file"))
    monkeypatch.setenv(f"{counters.VARIABLE}_OWNER", str(os.getpid()))
    app = create_app(settings(**KEYED, GATEWAY_REQUESTS_PER_MINUTE="5"))
    assembly: Assembly = app.extensions["penstock"]
    told: list[str] = []
    # whichever assembly of this process looks first tells it: the bridge, and what happened on it,
    # is theirs together
    monkeypatch.setattr(ExchangeLog, "event", lambda _, name, **__: told.append(name))
    assert assembly._kept_pid == 0, "no loop and no keeper while it is assembled"
    answer = app.test_client().post("/v1/messages", headers={"x-api-key": "gate-1"})
    assert (answer.status_code, answer.headers["x-penstock-ratelimit-requests-remaining"]) == (200, "4")
    assembly.health.publish()
    assert told.count("caller_counters_unavailable") == 1
    assert assembly.health.state()["reasons"] == ["counters_unavailable"]
