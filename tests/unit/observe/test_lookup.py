"""observe/lookup: an exchange is found in lines as platforms print them, once, and nothing else is.

Pure.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.exchange import Record
from app.observe.log_line import fields, line
from app.observe.lookup import ID, Lookup

HEROKU = b"2026-11-21T09:30:00.123456+00:00 app[web.1]: "


def told(request_id: str = "id-1", **more: Any) -> dict[str, Any]:
    found = fields(Record(request_id, "messages", "POST", "/v1/messages", 200, ""))
    return {**found, "event": "exchange", "time": "2026-11-21T09:30:00.123456Z", **more}


def found(*lines: bytes, request_id: str = "id-1") -> list[dict[str, Any]]:
    lookup = Lookup(request_id)
    lookup.read(lines)
    return lookup.exchanges


@pytest.mark.parametrize(
    "printed",
    [
        line(told()),
        HEROKU + line(told()),
        b"heroku {not json} [{]: " + line(told()),
        line(told()).rstrip() + b" trailing } text\n",
        json.dumps({"log": line(told()).decode(), "stream": "stdout"}).encode(),
        json.dumps({"message": "web.1 | " + line(told()).decode(), "level": 3}).encode(),
        json.dumps({"kubernetes": {"pod": "x"}, "log": told()}).encode(),
        json.dumps(told(), indent=None).encode(),
    ],
    ids=["plain", "prefixed", "braces before", "text behind", "docker", "collector", "parsed", "spaced"],
)
def test_a_line_is_read_whatever_is_around_it(printed: bytes) -> None:
    assert found(b"other\n", printed, b"") == [json.loads(line(told()))]


@pytest.mark.parametrize(
    "other",
    [
        line(told("id-2")),
        line(told("id-10")),
        line(told("xid-1")),
        line(told("x", path="/v1/id-1")),
        line({"event": "worker_started", "request_id": "id-1"}),
        line({"event": "connection_opened", "request_id": "id-1"}),
        b'{"event": "exchange", "request_id": "id-1"',
        b"id-1",
        b'"id-1" {{{{{{{{{{{{',
        b"[" * 100_000 + b"id-1",
        b'{"a":' * 100_000 + b'"id-1"',
        b'\xff\xfe{"request_id": "id-1"}',
        json.dumps({"log": json.dumps({"log": line(told()).decode()})}).encode(),
    ],
)
def test_other_lines_are_passed_over(other: bytes) -> None:
    assert found(other) == []


def test_the_upstreams_id_finds_it_too() -> None:
    printed = line(told(upstream_request_id="req_011"))
    assert [one["request_id"] for one in found(printed, request_id="req_011")] == ["id-1"]


def test_one_exchange_in_several_files_is_one_with_all_that_is_known() -> None:
    lines = line(told()), line(told(request_headers={"a": "b"})), line(told(event="exchange"))
    assert found(*lines) == [json.loads(line(told(request_headers={"a": "b"})))]


def test_several_with_one_id_come_newest_first() -> None:
    lines = [line(told(time=f"2026-11-21T09:30:0{second}.000000Z")) for second in (1, 3, 2)]
    assert [one["time"][18] for one in found(*lines)] == ["3", "2", "1"]


def test_a_workers_row_and_the_logs_line_are_one() -> None:
    lookup = Lookup("id-1")
    lookup.read([line(told())])
    lookup.add({name: value for name, value in told().items() if name != "event"} | {"worker": 7})
    (one,) = lookup.exchanges
    assert one["worker"] == 7


def test_connection_events_of_its_id_go_with_it_once() -> None:
    def event(number: int, request_id: str = "id-1") -> bytes:
        return line({"event": "connection_opened", "request_id": request_id, "time": number})

    (one,) = found(event(2), line(told()), event(1), event(1), event(3, "id-1-other"))
    assert [event["time"] for event in one["events"]] == [1, 2]


@pytest.mark.parametrize("hostile", ["", "a.b", "a b", "a\n", "x" * 201, "é", "٣", "a;b", "\x00"])
def test_what_is_no_id(hostile: str) -> None:
    assert ID.fullmatch(hostile) is None


@pytest.mark.parametrize("fine", ["req-0123456789abcdef", "req_011CVXyz", "a/b+c==", "x" * 200])
def test_what_is_an_id(fine: str) -> None:
    assert ID.fullmatch(fine) is not None
