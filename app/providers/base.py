"""Say what a provider is: how it is addressed, authenticated and limited. A provider is a value, not a class.

Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One family of paths of a provider.

    Attributes:
        name: Low-cardinality label for logs and metrics.
        pattern: Matches the whole path without query.
        transfer: Bodies may be files: the request is streamed up, the answer streamed down over a connection of
            its own, and only silence is limited, not the whole time.
        repeatable: A request may be processed twice without harm beyond its cost, whatever its method.
    """

    name: str
    pattern: re.Pattern[str]
    transfer: bool = False
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """An upstream kind.

    Attributes:
        name: Key in ``PROVIDERS``, label in metrics.
        dialect: Dialect it speaks.
        credential_headers: Lower-case request headers that can carry a caller's credential.
        key_header: Lower-case header in which our own upstream key is sent.
        version_header: Lower-case header that is added when the caller sent none; its value is a setting.
        endpoints: Tried in order; the last one matches everything.
    """

    name: str
    dialect: str
    credential_headers: frozenset[str]
    key_header: str
    version_header: str
    endpoints: tuple[Endpoint, ...]

    def endpoint(self, path: str) -> Endpoint:
        """The first endpoint whose pattern matches ``path`` (no query)."""
        return next(e for e in self.endpoints if e.pattern.fullmatch(path))
