"""The head of a request, whatever protocol brought it.

Pure.
"""

from __future__ import annotations

from app.simulator.heads import Pairs
from app.simulator.routes import Route, match


class RequestHead:
    """One request's head; never changed once built, so equal HTTP/2 header blocks share it.

    Attributes:
        method: As sent.
        target: Path and query exactly as received.
        path: Target without query.
        headers: (name, value) pairs in the order received, HTTP/2 pseudo-headers left out.
        protocol: ``http/1.1-plain``, ``http/1.1-tls`` or ``h2``.
        authority: ``:authority`` or Host.
        route: What it means.
        key: Value of x-api-key, or the bearer token of authorization, or an empty string.
        scenario: Value of x-sim-scenario or x-lab-scenario, or an empty string.
        replay: Value of x-sim-replay, or an empty string.
    """

    __slots__ = (
        "authority",
        "headers",
        "key",
        "method",
        "path",
        "protocol",
        "replay",
        "route",
        "scenario",
        "target",
    )

    def __init__(self, method: str, target: str, headers: Pairs, protocol: str, authority: str = "") -> None:
        self.method = method
        self.target = target
        self.path = target.partition("?")[0]
        self.headers = headers
        self.protocol = protocol
        self.authority = authority
        self.scenario = self.replay = self.key = ""
        for name, value in headers:
            if len(name) in (9, 12, 13, 14):
                self._option(name.lower(), value)
        self.authority = authority or self.get("host")
        self.route: Route = match(method, self.path)

    def _option(self, name: str, value: str) -> None:
        """Notes a header that chooses the answer."""
        if name in ("x-sim-scenario", "x-lab-scenario"):
            self.scenario = value
        elif name == "x-sim-replay":
            self.replay = value
        elif name == "x-api-key":
            self.key = value
        elif name == "authorization" and value[:7].lower() == "bearer ":
            self.key = self.key or value[7:].strip()

    def get(self, name: str) -> str:
        """The first value of header ``name`` (lower case), or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def base_url(self) -> str:
        """Scheme and authority that an absolute link in an answer starts with."""
        scheme = "http" if self.protocol == "http/1.1-plain" else "https"
        return f"{scheme}://{self.authority}"
