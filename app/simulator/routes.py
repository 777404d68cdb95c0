"""Which endpoint a method and path mean, whatever prefix stands in front.

Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Route(NamedTuple):
    """An endpoint's name and the identifier its path carries, or an empty string."""

    name: str
    arg: str = ""

    @property
    def control(self) -> bool:
        """Whether this is a question to the simulator itself, not to the pretended provider."""
        return self.name.startswith("__")


_CONTROL = {("GET", "/__stats"), ("POST", "/__reset"), ("GET", "/__last"), ("GET", "/__requests")}
_CONTROL |= {("GET", "/__keys"), ("POST", "/__keys")}
_ID = r"/([A-Za-z0-9_.:@-]+)"
_TABLE: tuple[tuple[str, str, str], ...] = (
    ("POST", r"/messages", "messages"),
    ("POST", r"/messages/count_tokens", "count_tokens"),
    ("POST", r"/messages/batches", "batch_create"),
    ("GET", r"/messages/batches", "batch_list"),
    ("GET", rf"/messages/batches{_ID}", "batch"),
    ("DELETE", rf"/messages/batches{_ID}", "batch_delete"),
    ("POST", rf"/messages/batches{_ID}/cancel", "batch"),
    ("GET", rf"/messages/batches{_ID}/results", "batch_results"),
    ("GET", r"/models", "models"),
    ("GET", rf"/models{_ID}", "model"),
    ("POST", r"/files", "file_upload"),
    ("GET", r"/files", "file_list"),
    ("GET", rf"/files{_ID}", "file"),
    ("DELETE", rf"/files{_ID}", "file_delete"),
    ("GET", rf"/files{_ID}/content", "file_content"),
)
_ROUTES = tuple((method, re.compile(rf"(?:.*){pattern}"), name) for method, pattern, name in _TABLE)
_MISSING = Route("missing")


def match(method: str, path: str) -> Route:
    """The route of ``path`` (without query); ``missing`` when no endpoint serves it."""
    if path.startswith("/__"):
        return Route(path[1:]) if (method, path) in _CONTROL else _MISSING
    if path.endswith("/echo"):
        return Route("echo")
    for wanted, pattern, name in _ROUTES:
        if method == wanted and (found := pattern.fullmatch(path)):
            return Route(name, found.group(1) if found.groups() else "")
    return _MISSING
