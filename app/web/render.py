"""Render: an answer as it came, or an error in the client's dialect.

Runs on: worker.
"""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Iterable
from typing import Any

from flask import Response
from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

from app.errors import GatewayError

StartResponse = Callable[..., Any]


def _status_line(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Status {status}"


_STATUS_LINES = {int(status): _status_line(int(status)) for status in http.HTTPStatus}


class PassedOn(Response):
    """An answer that nobody touches on its way out: no default headers, no corrections (B13).

    Hooks of the surrounding application may still change ``headers``, as with any response; until one of them
    looks, the pairs stay the plain list they came as.

    Args:
        body: Iterated and closed by the server.
        status: HTTP status.
        pairs: All headers.
    """

    default_mimetype = None
    automatically_set_content_length = False

    def __init__(self, body: Iterable[bytes], status: int, pairs: list[tuple[str, str]]) -> None:
        self._pairs: list[tuple[str, str]] | None = pairs
        self._headers: Headers | None = None
        self._status = _STATUS_LINES.get(status) or _status_line(status)
        self._status_code = status
        self.direct_passthrough = True
        self._on_close = []
        self.response = self._body = body

    @property
    def headers(self) -> Headers:
        """As Werkzeug knows them; made at the first look."""
        if self._headers is None:
            self._headers = Headers(self._pairs)
        return self._headers

    @headers.setter
    def headers(self, value: Headers) -> None:
        self._headers = value

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Send the head as it is and hand the body to the server, which closes it."""
        if self.response is not self._body:
            return self._changed(environ, start_response)
        pairs = self._pairs if self._headers is None else self._headers.to_wsgi_list()
        start_response(self._status, pairs)
        return ClosingIterator(self._body, self._on_close) if self._on_close else self._body

    def _changed(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """A hook has read the body, or put another in its place: that one goes out, with its own length."""
        headers = self.headers
        parts = list(self.iter_encoded()) if isinstance(self.response, list | tuple) else None
        if environ.get("REQUEST_METHOD") != "HEAD":
            headers.pop("content-length", None)
            if parts is not None:
                headers["content-length"] = str(sum(map(len, parts)))
        start_response(self._status, headers.to_wsgi_list())
        ends = [close] if (close := getattr(self._body, "close", None)) is not None else []
        return ClosingIterator(self.iter_encoded() if parts is None else parts, [*ends, *self._on_close])


def error_body(error: GatewayError, request_id: str) -> bytes:
    """Anthropic's error object."""
    payload = {
        "type": "error",
        "error": {"type": error.kind, "message": error.message},
        "request_id": request_id,
    }
    return json.dumps(payload).encode()


def error_headers(error: GatewayError, request_id: str) -> list[tuple[str, str]]:
    """Headers of an error of the gateway's own: its slug, and whether trying again makes sense."""
    headers = [
        ("content-type", "application/json"),
        ("x-penstock-error", error.slug),
        ("request-id", request_id),
        ("x-request-id", request_id),
    ]
    if error.retry_after_s is not None:
        headers.append(("retry-after", f"{error.retry_after_s:g}"))
    if error.should_retry is not None:
        headers.append(("x-should-retry", "true" if error.should_retry else "false"))
    headers += error.headers
    return headers


def render_error(error: GatewayError, request_id: str) -> Response:
    """An error of the gateway's own as a Flask response."""
    body = error_body(error, request_id)
    headers = [*error_headers(error, request_id), ("content-length", str(len(body)))]
    return PassedOn([body], error.status, headers)
