"""Show what callers name, the model and the path, without the secrets that may stand in it by mistake.

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable

_REMEMBERED = 1024
_LONGEST = 256


class Cleaned:
    """Texts as they may be shown; those seen before cost one look.

    Args:
        redact: Takes secrets out of a text.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """``text`` without secrets. From any thread."""
        found = self._known.get(text)
        if found is not None:
            return found
        found = self._redact(text)
        if len(text) <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = found
        return found
