"""A simulator that runs elsewhere, as a test or a bench sees it: addresses, and questions over its plain port.

Runs on: the caller's thread.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
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
        """Sets the counters to zero; forgets flaky callers and the programs of keys."""
        self._ask("POST", "/__reset")

    def last(self) -> dict[str, Any] | None:
        """The last API request."""
        answer: dict[str, Any] | None = self._ask("GET", "/__last")
        return answer

    def requests(self) -> list[dict[str, str]]:
        """The last 1000 API requests, oldest first."""
        answer: list[dict[str, str]] = self._ask("GET", "/__requests")
        return answer

    def set_keys(self, programs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Sets what each upstream key is answered from now on (``app.simulator.keys`` has the grammar).

        Raises:
            ValueError: A program is not in the grammar.
        """
        fault = self._ask("POST", "/__keys", json.dumps(programs)).get("fault")
        if fault:
            raise ValueError(fault)

    def keys(self) -> dict[str, list[tuple[float, int]]]:
        """Per upstream key, (seconds since ``set_keys``, status) of each messages request, in order of arrival."""
        found: dict[str, list[list[float]]] = self._ask("GET", "/__keys")
        return {key: [(t_s, int(status)) for t_s, status in rows] for key, rows in found.items()}

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        where = urlsplit(self.plain_url)
        connection = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body, headers={"connection": "close"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
