"""What a key's program answers, on a clock that is passed in."""

from __future__ import annotations

from typing import Any

import pytest

from app.simulator import content
from app.simulator.heads import Head
from app.simulator.keys import KEPT, Answer, Attempt, Programs
from app.simulator.request import RequestHead

WALL_S = 1_700_000_000.5


def _programs(**rules: list[dict[str, Any]]) -> Programs:
    programs = Programs()
    programs.load(rules, 100.0)
    return programs


def _statuses(programs: Programs, *times_s: float, key: str = "k") -> list[int]:
    """Status of a request at each time after the start; 200 is the ordinary answer."""
    found = []
    for t_s in times_s:
        attempt, answer = programs.meet(key, 100.0 + t_s, WALL_S + t_s)
        status = 200 if answer is None else answer.status
        attempt.answered(status, content.JSON_HEAD, ())
        found.append(status)
    return found


def test_a_rule_holds_in_its_span_and_for_its_key_only() -> None:
    programs = _programs(k=[{"from_s": 1, "to_s": 3.0, "status": 529}, {"from_s": 5, "status": 401}])
    assert _statuses(programs, 0.9, 1.0, 2.9, 3.0, 4.9, 5.0, 1e6) == [200, 529, 529, 200, 200, 401, 401]
    assert _statuses(programs, 1.0, 5.0, key="other") == [200, 200]


def test_the_first_rule_that_applies_decides() -> None:
    programs = _programs(k=[{"to_s": 1, "status": 200}, {"to_s": 2, "status": 429}, {"status": 503}])
    assert _statuses(programs, 0.5, 1.5, 2.5) == [200, 429, 503]


def test_some_pass_before_a_rule_and_a_rule_is_used_up() -> None:
    programs = _programs(k=[{"status": 429, "after": 2, "times": 1}, {"from_s": 10, "status": 529}])
    assert _statuses(programs, 0, 1, 2, 3, 11) == [200, 200, 429, 200, 529]


def test_an_answer_carries_what_the_rule_says() -> None:
    programs = _programs(
        k=[
            {"to_s": 1, "status": 429, "retry_after": 2, "headers": {"x-should-retry": "false"}},
            {"to_s": 2, "status": 503, "body": "busy"},
            {"to_s": None, "status": 503, "body": {"a": 1}},
        ]
    )
    answers = [programs.meet("k", 100.0 + t_s, WALL_S)[1] for t_s in (0, 1, 2)]
    assert answers == [
        Answer(429, "2", (("x-should-retry", "false"),)),
        Answer(503, body=b"busy"),
        Answer(503, body=b'{"a": 1}'),
    ]


def _limits(attempt: Attempt) -> list[str]:
    assert [name for name, _ in attempt.limits] == [
        f"anthropic-ratelimit-requests-{what}" for what in ("limit", "remaining", "reset")
    ]
    return [value for _, value in attempt.limits]


def test_a_rate_refuses_what_is_over_it_until_its_window_closes() -> None:
    programs = _programs(k=[{"rate": {"limit": 2, "window_s": 2.2}}])
    met = [programs.meet("k", 100.0 + t_s, WALL_S + t_s) for t_s in (0.0, 1.0, 2.1, 2.3)]
    assert [answer and (answer.status, answer.retry_after) for _, answer in met] == [None, None, (429, "1"), None]
    assert [_limits(attempt) for attempt, _ in met] == [
        ["2", "1", "2023-11-14T22:13:23Z"],
        ["2", "0", "2023-11-14T22:13:23Z"],
        ["2", "0", "2023-11-14T22:13:23Z"],
        ["2", "1", "2023-11-14T22:13:25Z"],
    ]


def test_what_a_rate_refused_does_not_count() -> None:
    programs = _programs(k=[{"rate": {"limit": 1, "window_s": 1}}])
    assert _statuses(programs, 0, 0.1, 0.2, 0.3, 1.0, 1.1) == [200, 429, 429, 429, 200, 429]


def test_a_rate_names_its_limits_once() -> None:
    programs = _programs(k=[{"rate": {"limit": 9, "window_s": 1}}])
    attempt, _ = programs.meet("k", 100.0, WALL_S)
    for usual in (content.JSON_HEAD, content.SSE_HEAD):
        head, extra = attempt.answered(200, usual, (("x-more", "1"),))
        text = (head.h1 + b"".join(f"{name}: {value}\r\n".encode() for name, value in extra)).decode()
        assert text.count("anthropic-ratelimit-requests-limit: ") == 1
        assert "anthropic-ratelimit-requests-limit: 9\r\n" in text
        assert "x-more: 1\r\n" in text
        assert text.count("anthropic-ratelimit-tokens-limit: ") == 1
    strange = Head([("content-type", "text/plain")])
    assert attempt.answered(200, strange, ())[0] is strange


def test_an_ordinary_answer_is_left_alone() -> None:
    attempt, answer = _programs().meet("k", 100.0, WALL_S)
    assert answer is None
    assert attempt.answered(200, content.JSON_HEAD, ()) == (content.JSON_HEAD, ())


def test_the_record_is_in_order_from_the_start_of_the_programs() -> None:
    programs = Programs()
    assert _statuses(programs, 5.0) == [200]
    assert programs.record() == {"k": [(0.0, 200)]}
    programs.load({"k": [{"status": 401, "after": 1}]}, 100.0)
    _statuses(programs, 0.25, 0.5)
    programs.meet("", 101.0, WALL_S)
    assert programs.record() == {"k": [(0.25, 200), (0.5, 401)], "": [(1.0, 0)]}


def test_the_record_is_bounded() -> None:
    programs = Programs()
    for index in range(KEPT + 5):
        programs.meet("k", 100.0 + index, WALL_S)
    assert (len(programs.record()["k"]), programs.record()["k"][0]) == (KEPT, (5.0, 0))
    for index in range(3000):
        programs.meet(f"key-{index}", 200.0, WALL_S)
    assert len(programs.record()) == 1001
    assert sum(len(rows) for rows in programs.record().values()) == KEPT + 3000


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {"k": {"status": 429}},
        {"k": [7]},
        {"k": [{"stats": 429}]},
        {"k": [{"met": 1}]},
        {"k": [{"status": "many"}]},
        {"k": [{"rate": {"limit": 1}}]},
        {"k": [{"rate": 5}]},
        {"k": [{"headers": ["a"]}]},
    ],
)
def test_a_program_that_cannot_be_read_changes_nothing(data: object) -> None:
    programs = _programs(k=[{"status": 401}])
    with pytest.raises(ValueError, match=r"needed|k\[0\]"):
        programs.load(data, 0.0)
    assert _statuses(programs, 1.0) == [401]


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([("X-Api-Key", "one")], "one"),
        ([("Authorization", "Bearer two")], "two"),
        ([("authorization", "Bearer two"), ("x-api-key", "one")], "one"),
        ([("x-api-key", "one"), ("authorization", "bearer two")], "one"),
        ([("authorization", "Basic abc")], ""),
        ([], ""),
    ],
)
def test_a_request_has_the_key_it_came_with(headers: list[tuple[str, str]], key: str) -> None:
    assert RequestHead("POST", "/v1/messages", headers, "h2", "a").key == key
