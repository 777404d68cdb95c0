"""Say what a fact is that workers tell each other, and what a row of facts amounts to.

    cooling, benched   this credential is of no use until ``until_at``
    open               the breaker of this credential, or of the provider itself, is open until ``until_at``
    restored           this credential is of use again: takes back all three
    closed             this breaker has closed: takes back ``open``

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Kind = Literal["cooling", "benched", "restored", "open", "closed"]
Key = tuple[str, str, Kind]

KINDS: Final[tuple[Kind, ...]] = ("cooling", "benched", "restored", "open", "closed")
"""In this order they are numbered on the board: append only."""
TAKES_BACK: Final[Mapping[Kind, tuple[Kind, ...]]] = MappingProxyType(
    {"restored": ("cooling", "benched", "open"), "closed": ("open",)}
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing a worker has found out.

    Attributes:
        kind: What.
        provider: Of which provider.
        credential: Label of the credential; "" is the provider itself.
        until_at: Instant (monotonic s of this machine) at which it ends by itself; no matter in what takes back.
    """

    kind: Kind
    provider: str
    credential: str
    until_at: float

    @property
    def key(self) -> Key:
        """What a later fact of the same kind replaces."""
        return (self.provider, self.credential, self.kind)

    def holds(self, now: float) -> bool:
        """Whether it keeps something out of use at ``now``."""
        return self.kind not in TAKES_BACK and self.until_at > now


def merged(facts: Iterable[Fact]) -> list[Fact]:
    """What ``facts``, oldest first, amount to: the last word of each kind, and nothing that was taken back.

    Of two of a kind the longer stands: two answers to one 429 may name different times. What takes back stays in
    the list, for whoever reads it may have heard the earlier word before.
    """
    last: dict[Key, Fact] = {}
    for fact in facts:
        for kind in TAKES_BACK.get(fact.kind, ()):
            last.pop((fact.provider, fact.credential, kind), None)
        before = last.pop(fact.key, fact)
        last[fact.key] = before if before.until_at > fact.until_at else fact
    return list(last.values())


def in_force(facts: Iterable[Fact], now: float) -> list[Fact]:
    """What a newcomer has to know of ``facts`` (oldest first): what still holds at ``now``."""
    return [fact for fact in merged(facts) if fact.holds(now)]
