"""policy/retry: what follows a failed try, what an answer asks for, and the budget (B30 to B33).

Pure.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.retry import (
    Again,
    Budget,
    Chances,
    Failure,
    Kind,
    PassOn,
    Rules,
    State,
    decide,
    retry_after_s,
    should_retry,
)

RULES = Rules()
ALONE = Chances(repeatable=True, resendable=True, another=False, fallback=False, time_left_s=600.0)
ANOTHER = replace(ALONE, another=True)
FALLBACK = replace(ALONE, fallback=True)
BOTH = replace(ANOTHER, fallback=True)
TOO_LATE = replace(ALONE, time_left_s=0.5)
FIRST = State(left=2, made=1)
LAST = State(left=1, made=2)
SAME = Again(0.5, "same", charged=True)  # half of the first backoff
ROTATE = Again(0.0, "rotate", charged=False)
ROTATE_CHARGED = Again(0.0, "rotate", charged=True)
ELSEWHERE = Again(0.0, "fallback", charged=False)
AT_ONCE = Again(0.0, "same", charged=False)
NOT = PassOn("not_retryable")

WALL = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


def told(
    failure: Failure, chances: Chances = ALONE, state: State = FIRST, chance: float = 0.5, may: bool = True
) -> PassOn | Again:
    return decide(state, failure, chances, RULES, lambda: may, lambda: chance)


def status(code: int, retry_after: float | None = None, again: bool | None = None) -> Failure:
    return Failure("status", code, retry_after, again)


# --- how many tries


@pytest.mark.parametrize(
    ("attempts", "client_retries", "left"),
    [(3, 0, 3), (3, 1, 2), (3, 2, 1), (3, 3, 1), (3, 99, 1), (1, 0, 1), (0, 0, 1), (3, -5, 3)],
)
def test_b32_the_clients_retries_are_tries_made(attempts: int, client_retries: int, left: int) -> None:
    assert State.after(0, Rules(max_attempts=attempts), client_retries) == State(left, 0)


def test_each_try_is_one_less() -> None:
    assert State.after(2, RULES, 0) == State(1, 2)


@given(attempts=st.integers(1, 9), client_retries=st.integers(0, 9), chances=st.sampled_from([ALONE, BOTH]))
def test_an_exchange_ends_after_its_tries_whatever_fails(
    attempts: int, client_retries: int, chances: Chances
) -> None:
    rules = Rules(max_attempts=attempts)
    tries = 0
    answer: PassOn | Again | None = None
    while not isinstance(answer, PassOn):
        tries += 1
        state = State.after(tries, rules, client_retries)
        answer = decide(state, status(429), chances, rules, lambda: True, lambda: 0.0)
    assert tries == max(1, attempts - client_retries)


# --- what is retried


@pytest.mark.parametrize("code", range(400, 600))
def test_b30_alone_every_status(code: int) -> None:
    retried = code in {408, 409, 429} or code >= 500
    assert told(status(code)) == (SAME if retried else NOT)


@pytest.mark.parametrize("code", range(400, 600))
def test_b33_every_status_with_another_credential(code: int) -> None:
    expected: PassOn | Again = told(status(code))
    if code in {401, 403, 429}:
        expected = ROTATE
    elif code in {503, 529}:
        expected = ROTATE_CHARGED
    assert told(status(code), ANOTHER) == expected


@pytest.mark.parametrize("code", range(400, 600))
def test_every_status_with_a_fallback(code: int) -> None:
    expected: PassOn | Again = told(status(code))
    assert told(status(code), FALLBACK) == (ELSEWHERE if code in {401, 403, 429, 503, 529} else expected)
    assert told(status(code), FALLBACK, LAST) == (NOT if expected == NOT and code not in {401, 403} else ELSEWHERE)


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 504, 520, 521, 522, 523, 524, 529])
def test_b30_the_statuses_named(code: int) -> None:
    assert isinstance(told(status(code)), Again)


@pytest.mark.parametrize("code", [100, 200, 302, 600, 999])
def test_what_is_no_error_status_is_not_retried(code: int) -> None:
    assert told(status(code), BOTH) == NOT


# kind, alone, another credential, a fallback, both
KINDS: list[tuple[Kind, PassOn | Again, PassOn | Again, PassOn | Again, PassOn | Again]] = [
    ("connect", SAME, SAME, ELSEWHERE, ELSEWHERE),
    ("overloaded", SAME, ROTATE_CHARGED, ELSEWHERE, ROTATE_CHARGED),
    ("broken", SAME, SAME, SAME, SAME),
    ("unprocessed", AT_ONCE, AT_ONCE, AT_ONCE, AT_ONCE),
    ("pool", NOT, NOT, NOT, NOT),
]


@pytest.mark.parametrize(("kind", "alone", "another", "fallback", "both"), KINDS, ids=lambda one: str(one)[:12])
def test_every_kind(
    kind: Kind, alone: PassOn | Again, another: PassOn | Again, fallback: PassOn | Again, both: PassOn | Again
) -> None:
    got = [told(Failure(kind), chances) for chances in (ALONE, ANOTHER, FALLBACK, BOTH)]
    assert got == [alone, another, fallback, both]


@pytest.mark.parametrize("kind", ["connect", "overloaded", "broken", "unprocessed"])
def test_the_last_try_goes_to_the_fallback(kind: Kind) -> None:
    assert told(Failure(kind), FALLBACK, LAST) == ELSEWHERE
    assert told(Failure("pool"), FALLBACK, LAST) == NOT


def test_a_broken_exchange_is_not_repeated_unless_that_does_no_harm() -> None:
    for chances in (ALONE, BOTH):
        assert told(Failure("broken"), replace(chances, repeatable=False)) == NOT
    assert told(Failure("connect"), replace(ALONE, repeatable=False)) == SAME
    assert told(status(500), replace(ALONE, repeatable=False)) == SAME


@pytest.mark.parametrize(
    "failure", [Failure(kind) for kind, *_ in KINDS] + [status(code, again=True) for code in (401, 429, 500, 529)]
)
def test_b30_what_cannot_be_sent_again_is_not(failure: Failure) -> None:
    assert told(failure, replace(BOTH, resendable=False)) == NOT


@pytest.mark.parametrize("code", [400, 404, 408, 409, 413, 422, 500, 503, 529])
def test_x_should_retry_decides_a_repetition(code: int) -> None:
    assert told(status(code, again=True)) == SAME
    assert told(status(code, again=False)) == NOT


@pytest.mark.parametrize(("code", "again"), [*product([401, 403], [None, True, False])])
def test_a_rotation_is_no_repetition(code: int, again: bool | None) -> None:
    """A key that may not do this never repeats it, and another is tried whatever the answer to the first said."""
    assert told(status(code, again=again)) == NOT
    assert told(status(code, again=again), ANOTHER) == ROTATE
    assert told(status(code, again=again), FALLBACK) == ELSEWHERE
    assert told(status(code, again=again), BOTH) == ROTATE


def test_only_an_answer_has_a_status() -> None:
    assert told(Failure("broken", status=429), BOTH) == SAME
    assert told(Failure("broken", status=503), BOTH) == SAME
    assert told(Failure("connect", status=401), ANOTHER) == SAME


@pytest.mark.parametrize("failure", [status(429), status(401), status(529), Failure("connect")])
def test_no_tries_left(failure: Failure) -> None:
    assert told(failure, BOTH, State(left=0, made=3)) == PassOn("tries_used_up")


# --- when


@pytest.mark.parametrize(
    ("made", "chance", "after_s"),
    [(1, 0.0, 0.0), (1, 0.5, 0.5), (2, 0.5, 1.0), (3, 0.5, 2.0), (4, 0.5, 4.0), (5, 0.5, 6.0), (5000, 0.5, 6.0)],
)
def test_b31_full_jitter_doubles_to_the_cap(made: int, chance: float, after_s: float) -> None:
    assert told(status(500), state=State(5, made), chance=chance) == Again(after_s, "same", True)


@pytest.mark.parametrize(
    ("asked_s", "chance", "after_s"),
    [(0.0, 0.9, 0.0), (1.0, 0.0, 1.0), (1.0, 0.5, 1.05), (10.0, 0.5, 10.125), (12.0, 0.0, 12.0)],
)
def test_b31_retry_after_is_obeyed_never_early(asked_s: float, chance: float, after_s: float) -> None:
    answer = told(status(429, asked_s), chance=chance)
    assert isinstance(answer, Again)
    assert answer.after_s == pytest.approx(after_s)


def test_b31_over_the_cap_it_is_passed_on() -> None:
    assert told(status(429, 12.001)) == PassOn("retry_after_too_long")
    assert told(status(429, 3600.0), ANOTHER) == ROTATE
    assert told(status(429, 3600.0), FALLBACK) == ELSEWHERE


@pytest.mark.parametrize(
    ("left_s", "answer"), [(0.5, PassOn("deadline")), (0.51, SAME), (-1.0, PassOn("deadline"))]
)
def test_b31_inside_the_deadline(left_s: float, answer: PassOn | Again) -> None:
    assert told(status(500), replace(ALONE, time_left_s=left_s)) == answer


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_b31_after_the_deadline_nothing_goes_elsewhere_either(left_s: float) -> None:
    for failure in (status(429), status(529), Failure("connect"), Failure("unprocessed")):
        assert told(failure, replace(BOTH, time_left_s=left_s)) == PassOn("deadline")


def test_an_unprocessed_request_goes_again_at_once_but_once() -> None:
    failure = Failure("unprocessed")
    assert told(failure, may=False) == AT_ONCE
    assert told(failure, state=LAST, chance=0.5) == Again(1.0, "same", charged=True)


# --- the budget's say


@pytest.mark.parametrize(
    ("failure", "chances", "free"),
    [
        (status(500), ALONE, False),
        (status(429, 1.0), ALONE, False),
        (Failure("connect"), ALONE, False),
        (status(529), ANOTHER, False),
        (Failure("overloaded"), ANOTHER, False),
        (status(429), ANOTHER, True),
        (status(401), ANOTHER, True),
        (status(529), FALLBACK, True),
        (Failure("connect"), FALLBACK, True),
    ],
)
def test_b32_what_repeats_load_asks_the_budget(failure: Failure, chances: Chances, free: bool) -> None:
    refused = told(failure, chances, may=False)
    assert refused == (told(failure, chances) if free else PassOn("budget"))


def test_b32_what_is_free_or_too_late_takes_nothing_from_the_budget() -> None:
    budget = Budget(floor=1)
    for failure, chances in ((status(429), ANOTHER), (Failure("unprocessed"), ALONE), (status(500), TOO_LATE)):
        decide(FIRST, failure, chances, RULES, lambda: budget.take(0.0), lambda: 0.5)
    assert budget.left(0.0) == 1


FAILURES = st.builds(
    Failure,
    kind=st.sampled_from(["connect", "unprocessed", "broken", "status", "status", "status", "overloaded", "pool"]),
    status=st.sampled_from([0, 200, 400, 401, 403, 404, 408, 409, 429, 500, 503, 520, 524, 529]),
    retry_after_s=st.none() | st.floats(0, 30),
    should_retry=st.sampled_from([None, None, True, False]),
)
CHANCES = st.builds(
    Chances,
    repeatable=st.booleans(),
    resendable=st.sampled_from([True, True, True, False]),
    another=st.booleans(),
    fallback=st.booleans(),
    time_left_s=st.floats(-1, 30),
)
ALL_RULES = st.builds(Rules, max_attempts=st.integers(1, 9), base_s=st.floats(0, 5), cap_s=st.floats(0, 20))


@settings(max_examples=400)
@given(
    state=st.builds(State, left=st.integers(0, 5), made=st.integers(1, 200)),
    failure=FAILURES,
    chances=CHANCES,
    rules=ALL_RULES,
    may=st.booleans(),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_what_no_decision_does(
    state: State, failure: Failure, chances: Chances, rules: Rules, may: bool, chance: float
) -> None:
    asked: list[bool] = []

    def may_charge() -> bool:
        asked.append(may)
        return may

    answer = decide(state, failure, chances, rules, may_charge, lambda: chance)
    if isinstance(answer, PassOn):
        assert asked == ([False] if answer.why == "budget" else []), "a retry was charged and not made"
        return
    assert asked == ([True] if answer.charged else [False] if asked and answer.where == "fallback" else [])
    assert state.left > 0
    assert chances.resendable
    assert failure.kind != "pool"
    assert failure.kind != "broken" or chances.repeatable
    assert answer.where != "rotate" or chances.another
    assert answer.where != "fallback" or chances.fallback
    assert 0 <= answer.after_s < chances.time_left_s
    free = failure.kind == "unprocessed" and state.made == 1
    if answer.where != "same" or free:
        assert answer.after_s == 0
    elif failure.retry_after_s is None:
        assert answer.after_s <= rules.cap_s
    else:
        assert failure.retry_after_s <= answer.after_s <= failure.retry_after_s + 0.25
        assert failure.retry_after_s <= rules.cap_s
    if answer.where == "same":
        assert answer.charged is not free
        assert failure.kind != "status" or failure.status not in (401, 403)


# --- what an answer asks for


@pytest.mark.parametrize(
    ("pairs", "seconds"),
    [
        ([], None),
        ([("retry-after", "3")], 3.0),
        ([("Retry-After", " 3 ")], 3.0),
        ([("RETRY-AFTER", "0.25")], 0.25),
        ([("retry-after", "3.")], 3.0),
        ([("retry-after", ".5")], 0.5),
        ([("retry-after", "+3")], 3.0),
        ([("retry-after", "0")], 0.0),
        ([("retry-after", "-3")], 0.0),
        ([("retry-after", "-0.1")], 0.0),
        ([("retry-after-ms", "1500")], 1.5),
        ([("Retry-After-Ms", "0.5")], 0.0005),
        ([("retry-after-ms", "-1")], 0.0),
        ([("retry-after", "7"), ("retry-after-ms", "250")], 0.25),
        ([("retry-after-ms", "soon"), ("retry-after", "7")], 7.0),
        ([("retry-after-ms", "soon")], None),
        ([("retry-after", "1"), ("retry-after", "9")], 1.0),
        ([("date", "3"), ("x-retry-after", "3")], None),
    ],
)
def test_b31_retry_after_in_figures(pairs: list[tuple[str, str]], seconds: float | None) -> None:
    assert retry_after_s(iter(pairs), WALL) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:42 GMT", 5.0),  # IMF-fixdate
        ("Sunday, 06-Nov-94 08:49:42 GMT", 5.0),  # RFC 850
        ("Sun Nov  6 08:49:42 1994", 5.0),  # asctime
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Sun, 06 Nov 1994 09:49:42 +0100", 5.0),
        ("Mon, 07 Nov 1994 08:49:37 GMT", 86400.0),
    ],
)
def test_b31_retry_after_as_a_date(value: str, seconds: float) -> None:
    assert retry_after_s([("retry-after", value)], WALL) == seconds
    assert retry_after_s([("retry-after-ms", value)], WALL) is None


def test_b31_a_date_without_a_zone_is_utc_wherever_the_gateway_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "XXX+5")
        time.tzset()
        seconds = retry_after_s([("retry-after", "Sun Nov  6 08:49:42 1994")], WALL)
    time.tzset()
    assert seconds == 5.0


UNREADABLE = [
    *(
        "",
        " ",
        "soon",
        "5s",
        "5 seconds",
        "1e3",
        "nan",
        "inf",
        "-inf",
        "1_000",
        "0x10",
        "--1",
        ".",
        "1.2.3",
        "1,5",
    ),
    *("٣", "9999999999", "9" * 5000, "Fri, 31 Feb 2025 00:00:00 GMT", "2025-01-01T00:00:00Z", "Nov 1994"),
    *("Sun, 06 Nov 1994 08:49:37 +9999999999999999", "Sun, 06 Nov 99999 08:49:37 GMT", "G" * 5000, "\x00"),
]


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: value[:20])
def test_b31_what_cannot_be_read_asks_nothing(value: str) -> None:
    assert retry_after_s([("retry-after", value)], WALL) is None
    assert retry_after_s([("retry-after-ms", value)], WALL) is None


WORDS = st.sampled_from(
    ["Sun,", "06", "Nov", "1994", "08:49:37", "GMT", "-0000", "+99", "94", "06-Nov-94", "-", "é"]
)


@given(st.text(max_size=40) | st.lists(WORDS, max_size=7).map(" ".join))
def test_b31_no_header_breaks_it(value: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry_after_s([(name, value)], WALL)
        assert seconds is None or 0 <= seconds < 1e12


@pytest.mark.parametrize(
    ("pairs", "answer"),
    [
        ([], None),
        ([("x-should-retry", "true")], True),
        ([("X-Should-Retry", "FALSE ")], False),
        ([("x-should-retry", "1")], None),
        ([("x-should-retry", "")], None),
    ],
)
def test_should_retry(pairs: list[tuple[str, str]], answer: bool | None) -> None:
    assert should_retry(iter(pairs)) is answer


# --- the budget


def taken(budget: Budget, now: float, wanted: int = 1000) -> int:
    return sum(budget.take(now) for _ in range(wanted))


@pytest.mark.parametrize(("requests", "retries"), [(0, 10), (9, 10), (10, 11), (99, 19), (1000, 110)])
def test_b32_a_tenth_of_recent_traffic_and_a_floor(requests: int, retries: int) -> None:
    budget = Budget()
    for _ in range(requests):
        budget.on_request(0.0)
    assert budget.left(0.0) == retries
    assert taken(budget, 0.0) == retries
    assert (budget.left(0.0), budget.take(0.0)) == (0, False)


def test_b32_a_refused_retry_is_not_charged() -> None:
    budget = Budget(floor=1)
    assert taken(budget, 0.0) == 1
    budget.on_request(1.0)
    assert taken(budget, 9.0) == 0
    assert taken(budget, 10.0) == 1, "the refused ones were counted"


def test_b32_old_retries_and_old_traffic_slide_out() -> None:
    budget = Budget()
    for _ in range(100):
        budget.on_request(0.0)
    assert taken(budget, 0.0) == 20
    assert taken(budget, 9.9) == 0
    assert taken(budget, 10.0) == 10, "only the floor: the traffic that bore more is gone, and so are its retries"


def test_b32_more_retries_than_now_allowed_leave_none() -> None:
    budget = Budget()
    for _ in range(100):
        budget.on_request(0.0)
    assert taken(budget, 5.0) == 20
    assert budget.left(12.0) == 0


@given(
    ratio=st.sampled_from([0.0, 0.1, 0.5]),
    floor=st.integers(0, 5),
    steps=st.lists(st.tuples(st.floats(0, 6), st.integers(0, 40), st.integers(0, 20)), max_size=30),
)
def test_b32_never_more_than_the_share(ratio: float, floor: int, steps: list[tuple[float, int, int]]) -> None:
    """Whenever one is given, those of the last window are within the floor and the share of its requests."""
    budget = Budget(ratio, floor, 10.0)
    now = 0.0
    requests: list[float] = []
    retries: list[float] = []
    for passed, came, wanted in steps:
        now += passed
        for _ in range(came):
            budget.on_request(now)
        requests += [now] * came
        given = taken(budget, now, wanted)
        retries += [now] * given
        recent = sum(at >= now - 10.001 for at in requests)
        surely = sum(at > now - 8.999 for at in retries)
        assert not given or surely <= floor + ratio * recent


BUSY = Chances(repeatable=True, resendable=True, another=False, fallback=True, time_left_s=100.0)


@pytest.mark.parametrize(
    ("failure", "time_left_s", "may"),
    [
        (Failure("status", 500, retry_after_s=60.0), 100.0, True),
        (Failure("status", 500, retry_after_s=5.0), 4.0, True),
        (Failure("status", 500), 100.0, False),
        (Failure("broken"), 100.0, False),
    ],
)
def test_what_would_be_passed_on_goes_to_the_fallback_first(
    failure: Failure, time_left_s: float, may: bool
) -> None:
    def asked(fallback: bool) -> PassOn | Again:
        chances = replace(BUSY, fallback=fallback, time_left_s=time_left_s)
        return decide(State(2, 1), failure, chances, Rules(), lambda: may, lambda: 0.5)

    assert isinstance(asked(False), PassOn)
    assert asked(True) == Again(0.0, "fallback", charged=False)


def test_a_budget_that_is_used_up_stops_no_rotation_that_a_fallback_can_take() -> None:
    chances = replace(BUSY, another=True)
    found = decide(State(2, 1), Failure("status", 529), chances, Rules(), lambda: False, lambda: 0.5)
    assert found == Again(0.0, "fallback", charged=False)


def test_nothing_is_tried_elsewhere_when_time_is_over() -> None:
    chances = replace(BUSY, time_left_s=0.0)
    assert decide(State(2, 1), Failure("connect"), chances, Rules(), lambda: True, lambda: 0.5) == PassOn(
        "deadline"
    )


@pytest.mark.parametrize("another", [True, False])
def test_a_429_that_says_not_to_retry_is_not_repeated_but_rotated(another: bool) -> None:
    chances = replace(BUSY, another=another, fallback=False)
    failure = Failure("status", 429, should_retry=False)
    found = decide(State(2, 1), failure, chances, Rules(), lambda: True, lambda: 0.5)
    assert found == (Again(0.0, "rotate", charged=False) if another else PassOn("not_retryable"))
