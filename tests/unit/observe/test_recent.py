"""observe/recent: the last Records, so many and no more, without bodies; found by either id, newest first.

Pure.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import pytest

from app.exchange import Attempt, Captured, Record
from app.observe.log_line import fields
from app.observe.recent import MOST_FOUND, MOST_LISTED, Recent, row

AT = 1_795_253_400.123456
ISO = "2026-11-21T09:30:00.123456Z"
ATTEMPT = Attempt("200", 12.5, "new", "anthropic", "key-1", 0.0, 3.25)


def record(request_id: str = "id-1", **more: Any) -> Record:
    return Record(request_id, "messages", "POST", "/v1/messages", 200, "", at=AT)._replace(**more)


def kept(most: int, *records: Record) -> Recent:
    recent = Recent(most)
    for one in records:
        recent.observe([one])
    return recent


def test_so_many_are_kept_and_no_more_newest_first() -> None:
    recent = kept(3, *(record(str(number)) for number in range(10)))
    assert [one.request_id for one in recent.latest()] == ["9", "8", "7"]
    assert [one.request_id for one in recent.latest(2)] == ["9", "8"]
    assert recent.find("6") == []
    assert recent.find("7") == [record("7")]


def test_none_are_kept_where_none_are_wanted() -> None:
    assert kept(0, record()).latest() == []


def test_all_with_one_id_are_found_newest_first_up_to_a_bound() -> None:
    same = [record(status=number) for number in range(100, 100 + 2 * MOST_FOUND)]
    found = kept(1000, *same, record("other")).find("id-1")
    assert [one.status for one in found] == [one.status for one in reversed(same)][:MOST_FOUND]


def test_the_upstreams_id_finds_it_too_and_no_id_finds_nothing() -> None:
    recent = kept(9, record(), record("id-2", upstream_request_id="req_011"))
    assert [one.request_id for one in recent.find("req_011")] == ["id-2"]
    assert recent.find("id-") == []


def test_what_is_kept_of_a_record_without_bodies_is_the_record() -> None:
    recent, one = Recent(1), record()
    recent.observe([one])
    assert recent.latest()[0] is one


def test_bodies_and_headers_are_let_go() -> None:
    body = bytes(100_000)
    one = record(captured=Captured((("x-api-key", "secret"),), (), body, body))
    recent = kept(1, one)
    assert recent.latest() == [record()]
    del one
    assert sys.getrefcount(body) == 2


def test_a_row_is_the_log_lines_fields_with_time_and_worker() -> None:
    one = record(attempts=(ATTEMPT,), tokens={"input_tokens": 3}, gaps=(1, 2), gaps_ms=4.5)
    found = row(one)
    assert {name: found[name] for name in fields(one)} == fields(one)
    assert found.keys() - fields(one).keys() == {"time", "worker"}
    assert (found["time"], found["worker"]) == (ISO, os.getpid())


def test_an_answer_is_json_and_says_what_is_kept() -> None:
    recent = kept(9, record("old", at=AT - 60), record(attempts=(ATTEMPT,), path="/v1/\udcff"))
    found = recent.answer({"id": "id-1"})
    assert (found["worker"], found["kept"], found["since"]) == (os.getpid(), 2, "2026-11-21T09:29:00.123456Z")
    assert json.loads(json.dumps(found["records"])) == [json.loads(json.dumps(row(recent.latest()[0])))]
    assert kept(9).answer({"id": "x"}) == {"worker": os.getpid(), "kept": 0, "since": None, "records": []}


def test_the_latest_are_short_and_bounded() -> None:
    recent = kept(1000, *(record(str(number), attempts=(ATTEMPT,) * 2) for number in range(300)))
    rows = recent.answer({"latest": 2})["records"]
    assert [one["request_id"] for one in rows] == ["299", "298"]
    assert rows[0]["tries"] == 2
    assert rows[0].keys().isdisjoint({"path", "attempts", "tokens"})
    assert len(recent.answer({"latest": 10**9})["records"]) == MOST_LISTED
    assert recent.answer({"latest": -5})["records"] == []


@pytest.mark.parametrize(
    "argument", [None, [], "id-1", 3, {}, {"id": 1}, {"id": None}, {"latest": "9"}, {"x": "id-1"}]
)
def test_of_nonsense_nothing_is_known(argument: Any) -> None:
    assert kept(9, record()).answer(argument)["records"] == []


def test_others_may_append_while_one_looks() -> None:
    recent, over = kept(20_000, *(record(str(n)) for n in range(20_000))), threading.Event()

    def append() -> None:
        while not over.is_set():
            recent.observe([record("new")])

    thread = threading.Thread(target=append)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(100):
            assert len(recent.latest()) == 20_000
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
