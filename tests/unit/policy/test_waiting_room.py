"""policy/waiting_room: never too many, no slot lost, first come first served, callers in turn (B36).

Pure.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.policy.waiting_room import Full, WaitingRoom

CALLERS = st.sampled_from(["", "a", "b", "c", "d"])
PICK = st.integers(min_value=0, max_value=10**6)


def room(concurrency: int, buffer_size: int = 100, drop: bool = False) -> WaitingRoom[str]:
    return WaitingRoom(concurrency, buffer_size, drop)


def filled(*waiting: str) -> WaitingRoom[str]:
    """One slot, held by ``x``; tickets like ``a1`` of callers like ``a`` in line."""
    one = room(1)
    assert one.enter("x", "x")
    for ticket in waiting:
        assert not one.enter(ticket, ticket[0])
    return one


def drained(one: WaitingRoom[str]) -> list[str]:
    """Who runs, one after the other, when each leaves as soon as it has come."""
    order = []
    ticket = one.leave("x")
    while ticket is not None:
        order.append(ticket)
        ticket = one.leave(ticket)
    assert (one.running, one.waiting) == (0, 0)
    return order


def test_a_free_slot_is_given_at_once() -> None:
    one = room(2)
    assert one.enter("p", "a")
    assert one.enter("q", "a")
    assert not one.enter("r", "a")
    assert (one.running, one.waiting) == (2, 1)


def test_one_that_ends_makes_room_for_the_next() -> None:
    one = filled("a1")
    assert one.leave("x") == "a1"
    assert (one.running, one.waiting) == (1, 0)
    assert one.leave("a1") is None
    assert (one.running, one.waiting) == (0, 0)


def test_within_a_caller_the_first_come_is_the_first_served() -> None:
    assert drained(filled("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_callers_take_turns_however_long_the_line_of_one_is() -> None:
    assert drained(filled("a1", "a2", "a3", "a4", "b1", "c1", "b2")) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_caller_that_comes_back_goes_behind_the_others() -> None:
    one = filled("a1", "b1", "b2")
    assert one.leave("x") == "a1"
    assert not one.enter("a2", "a")
    assert not one.enter("c1", "c")
    order = [one.leave("a1"), one.leave("b1"), one.leave("a2"), one.leave("c1")]
    assert order == ["b1", "a2", "c1", "b2"]


def test_one_that_gives_up_is_passed_over() -> None:
    one = filled("a1", "a2", "b1")
    assert one.leave("a1") is None
    assert one.leave("b1") is None
    assert one.waiting == 1
    assert drained(one) == ["a2"]


def test_a_ticket_that_is_not_here_changes_nothing() -> None:
    one = filled("a1")
    assert one.leave("stranger") is None
    assert one.leave("x") == "a1"
    assert one.leave("x") is None, "left twice"
    assert (one.running, one.waiting) == (1, 0)


def test_b36_dropping_refuses_what_is_beyond_the_buffer() -> None:
    one = room(2, 3, drop=True)
    assert [one.enter(ticket, ticket) for ticket in "pqr"] == [True, True, False]
    with pytest.raises(Full):
        one.enter("s", "s")
    assert (one.running, one.waiting) == (2, 1)
    assert one.leave("s") is None, "it was never let in"
    assert one.leave("r") is None
    assert not one.enter("t", "t"), "a place in line was free again"


def test_b36_without_dropping_the_line_has_no_end() -> None:
    one = room(1, 1)
    assert one.enter("p", "a")
    assert not any(one.enter(str(number), "a") for number in range(50))
    assert one.waiting == 50


def test_a_larger_share_admits_at_once_and_in_turn() -> None:
    one = filled("a1", "a2", "b1", "b2")
    assert one.resize(4, 50) == ["a1", "b1", "a2"]
    assert (one.concurrency, one.buffer_size, one.running, one.waiting) == (4, 50, 4, 1)
    assert one.resize(9, 50) == ["b2"]


def test_a_smaller_share_waits_until_enough_have_left() -> None:
    one = room(3)
    for ticket in "pqr":
        assert one.enter(ticket, ticket)
    assert not one.enter("s", "s")
    assert one.resize(1, 1) == []
    assert one.leave("p") is None
    assert one.leave("q") is None
    assert one.leave("r") == "s"
    assert one.running == 1


def test_the_buffer_is_never_smaller_than_what_may_run() -> None:
    one = room(3, 2, drop=True)
    assert one.buffer_size == 3
    assert all(one.enter(ticket, ticket) for ticket in "pqr")
    one.resize(4, 1)
    assert one.buffer_size == 4
    assert one.enter("s", "s")
    with pytest.raises(Full):
        one.enter("t", "t")


@given(waiting=st.lists(st.sampled_from("abcde"), min_size=1, max_size=60))
def test_each_of_k_waiting_callers_is_admitted_once_in_any_k_admissions(waiting: list[str]) -> None:
    order = drained(filled(*(f"{caller}{number}" for number, caller in enumerate(waiting))))
    for start in range(len(order)):
        callers = {ticket[0] for ticket in order[start:]}
        turn = [ticket[0] for ticket in order[start : start + len(callers)]]
        assert sorted(turn) == sorted(callers)
    for caller in set(waiting):
        numbers = [int(ticket[1:]) for ticket in order if ticket[0] == caller]
        assert numbers == sorted(numbers)


class Anything(RuleBasedStateMachine):
    """Entering, ending, giving up and resizing in any order, against a plain account of who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = False
        self.concurrency, self.buffer_size = 2, 5
        self.room: WaitingRoom[int] = WaitingRoom(2, 5, False)
        self.number = 0
        self.running: list[int] = []
        self.lines: dict[str, list[int]] = {}
        # For each caller in line: how often each other was admitted since it got in line or was last admitted.
        self.overtaken: dict[str, Counter[str]] = {}

    @rule(drop=st.booleans())
    @precondition(lambda self: self.number == 0)
    def mode(self, drop: bool) -> None:
        self.drop = drop
        self.room = WaitingRoom(self.concurrency, self.buffer_size, drop)

    @rule(caller=CALLERS)
    def enter(self, caller: str) -> None:
        self.number += 1
        before = len(self.running) + self.in_line
        try:
            runs = self.room.enter(self.number, caller)
        except Full:
            assert self.drop and before >= self.buffer_size
            return
        assert not self.drop or before < self.buffer_size
        if runs:
            assert not self.in_line and len(self.running) < self.concurrency
            self.running.append(self.number)
        else:
            self.lines.setdefault(caller, []).append(self.number)
            self.overtaken.setdefault(caller, Counter())

    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        if self.running:
            self.admitted(self.room.leave(self.running.pop(pick % len(self.running))))

    @rule(pick=PICK)
    def give_up(self, pick: int) -> None:
        if not self.lines:
            return
        caller = sorted(self.lines)[pick % len(self.lines)]
        line = self.lines[caller]
        assert self.room.leave(line.pop(pick % len(line))) is None
        self.forget(caller)

    @rule(ticket=st.sampled_from([0, -1]))
    def stranger(self, ticket: int) -> None:
        assert self.room.leave(ticket) is None

    @rule(concurrency=st.integers(0, 6), more=st.integers(0, 6))
    def resize(self, concurrency: int, more: int) -> None:
        self.concurrency, self.buffer_size = concurrency, concurrency + more
        for ticket in self.room.resize(concurrency, concurrency + more):
            self.admitted(ticket)

    def admitted(self, ticket: int | None) -> None:
        if ticket is None:
            return
        assert len(self.running) < self.concurrency, "nobody is admitted without a free slot"
        caller = next(name for name, line in self.lines.items() if ticket in line)
        assert self.lines[caller].pop(0) == ticket, "first come, first served"
        self.running.append(ticket)
        for other, passed in self.overtaken.items():
            passed[caller] += other != caller
            assert passed[caller] <= 1, f"{caller!r} had two turns while {other!r} waited"
        self.overtaken[caller].clear()
        self.forget(caller)

    def forget(self, caller: str) -> None:
        if not self.lines[caller]:
            del self.lines[caller], self.overtaken[caller]

    @property
    def in_line(self) -> int:
        return sum(map(len, self.lines.values()))

    @invariant()
    def the_figures_agree(self) -> None:
        assert (self.room.running, self.room.waiting) == (len(self.running), self.in_line)
        assert (self.room.concurrency, self.room.buffer_size) == (self.concurrency, self.buffer_size)

    @invariant()
    def no_slot_is_lost(self) -> None:
        assert not self.in_line or len(self.running) >= self.concurrency

    def teardown(self) -> None:
        self.resize(1, 6)
        while self.running:
            self.end(0)
        assert not self.lines, "everybody in line was served in the end"


Anything.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnything = Anything.TestCase
