"""What facts amount to: the last word counts, the longer of two stands, what was taken back is gone."""

from __future__ import annotations

import pytest

from app.store.facts import KINDS, TAKES_BACK, Fact, Kind, in_force, merged


def fact(kind: Kind, until_at: float = 100.0, credential: str = "a") -> Fact:
    return Fact(kind, "anthropic", credential, until_at)


def test_kinds_are_numbered_as_they_always_were() -> None:
    assert KINDS == ("cooling", "benched", "restored", "open", "closed"), (
        "boards of a draining worker hold numbers"
    )


@pytest.mark.parametrize("kind", ["cooling", "benched", "open"])
def test_a_holding_fact_ends_by_itself(kind: Kind) -> None:
    assert fact(kind).holds(99.9)
    assert not fact(kind).holds(100.0)


@pytest.mark.parametrize("kind", TAKES_BACK)
def test_what_takes_back_holds_nothing(kind: Kind) -> None:
    assert not fact(kind).holds(0.0)


def test_of_two_of_a_kind_the_longer_stands() -> None:
    assert merged([fact("cooling", 10), fact("cooling", 5)]) == [fact("cooling", 10)]
    assert merged([fact("cooling", 5), fact("cooling", 10)]) == [fact("cooling", 10)]


def test_the_longer_does_not_stand_once_it_was_taken_back() -> None:
    assert merged([fact("cooling", 10), fact("restored"), fact("cooling", 5)]) == [
        fact("restored"),
        fact("cooling", 5),
    ]


@pytest.mark.parametrize(("kind", "gone"), [("restored", ("cooling", "benched", "open")), ("closed", ("open",))])
def test_taking_back(kind: Kind, gone: tuple[Kind, ...]) -> None:
    holding: list[Kind] = ["cooling", "benched", "open"]
    left = [fact(one) for one in holding if one not in gone]
    assert merged([*(fact(one) for one in holding), fact(kind)]) == [*left, fact(kind)]


def test_only_the_same_credential_is_taken_back() -> None:
    other, provider = fact("open", credential="b"), fact("open", credential="")
    assert in_force([other, provider, fact("closed")], 0) == [other, provider]
    assert in_force([fact("open"), other, fact("restored", credential="b")], 0) == [fact("open")]


def test_what_is_said_again_counts_as_said_last() -> None:
    assert merged([fact("cooling", 5), fact("open"), fact("cooling", 10)]) == [fact("open"), fact("cooling", 10)]


def test_a_newcomer_hears_what_still_holds() -> None:
    said = [fact("benched", 300), fact("cooling", 10), fact("open", 50), fact("closed")]
    assert in_force(said, 20) == [fact("benched", 300)]
