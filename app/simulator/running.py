"""A simulator that runs elsewhere, as a test or a bench sees it: addresses, and questions over its plain port.

Runs on: the caller's thread.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """Addresses of a running simulator.

    Attributes:
        plain_url: HTTP/1.1 without TLS.
        tls_url: HTTP/2 and HTTP/1.1 by ALPN.
        ca_path: PEM file of the authority to trust.
        pid: Its process.
    """

    plain_url: str
    tls_url: str
    ca_path: str
    pid: int

    def stats(self) -> dict[str, Any]:
        """All counters."""
        answer: dict[str, Any] = self._ask("GET", "/__stats")
        return answer

    def reset(self) -> None:
        """Sets the counters to zero and forgets flaky callers."""
        self._ask("POST", "/__reset")

    def last(self) -> dict[str, Any] | None:
        """The last API request."""
        answer: dict[str, Any] | None = self._ask("GET", "/__last")
        return answer

    def requests(self) -> list[dict[str, str]]:
        """The last 1000 API requests, oldest first."""
        answer: list[dict[str, str]] = self._ask("GET", "/__requests")
        return answer

    def _ask(self, method: str, path: str) -> Any:
        where = urlsplit(self.plain_url)
        connection = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, headers={"connection": "close"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
