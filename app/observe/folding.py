"""Keep a label's values few: the first so many names stand for themselves, all others are ``other``.

Pure.
"""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"
LONGEST: Final = 100
"""Characters a name may have."""
TYPES: Final = 24
"""Types of failures that stand for themselves in one process."""


class Fold:
    """Of one label, in one worker.

    Args:
        limit: Names that stand for themselves; "" always does.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known = {"": ""}

    def __call__(self, name: str) -> str:
        """``name`` itself, or ``other``: one too many, over 100 characters, or not printable."""
        found = self._known.get(name)
        if found is not None:
            return found
        if len(self._known) > self.limit or len(name) > LONGEST or not name.isprintable():
            return OTHER
        self._known[name] = name
        return name


def status_label(status: int) -> str:
    """An HTTP status as a label; ``other`` outside 100 to 599, so that there are five hundred at most."""
    return str(status) if 100 <= status <= 599 else OTHER


def reason_label(outcome: str) -> str:
    """What came of a try: a slug of ours as it is, a status as ``status_label`` has it."""
    return status_label(int(outcome)) if outcome.isdecimal() else outcome
