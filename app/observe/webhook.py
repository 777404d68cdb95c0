"""Post alerts to a webhook: JSON that Slack takes, too, tried again for about a minute (B44).

    {"alert", "state", "rule", "value", "threshold", "window_s", "at", "host", "text"}

``alert`` is the same for the begin and the end of one occurrence, so that a receiver can pair them, and can tell
an alert that it was sent twice. The address is a secret: no error of this module holds any part of it. Redirects
are not followed, and no proxy is used.

Runs on: worker, in a thread of its own.
"""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import orjson

from app.observe.alerts import Alert
from app.observe.errands import Errands

TIMEOUT_S: Final = 5.0
WAITS_S: tuple[float, ...] = (1.0, 3.0, 8.0, 16.0, 32.0)
"""Pauses before the second try and all that follow."""

Done = Callable[[Alert, str], None]
"""Takes an alert and why it could not be delivered, "" where it was."""
Tell = Callable[[dict[str, object]], None]


class Undelivered(Exception):
    """The receiver did not take it; the text says why."""


class Webhook:
    """One receiver.

    Args:
        url: http or https; may hold a user and a password.
        context: Makes the TLS context, at the first alert.
        done: Is told what became of each alert.
        tell: Takes the event ``alert_delivery_retried``.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext], done: Done, tell: Tell) -> None:
        self._parts = urlsplit(url)
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._done = done
        self._tell = tell
        self._errands = Errands("penstock-webhook", self._deliver)

    def put(self, alert: Alert) -> None:
        """Have it delivered; never waits. Where too many wait already, the oldest is given up."""
        gone = self._errands.put(alert)
        if gone is not None:
            self._done(gone, "too many alerts are waiting")

    def stop(self) -> None:
        """What has not been delivered by now will not be, by this process."""
        self._errands.stop()

    def _deliver(self, alert: Alert) -> None:
        fault = ""
        for number, wait_s in enumerate((0.0, *WAITS_S), 1):
            if not self._errands.pause(wait_s):
                return
            fault = self._fault(alert)
            if not fault:
                break
            self._tell({"event": "alert_delivery_retried", "rule": alert.rule, "tried": number, "error": fault})
        self._done(alert, fault)

    def _fault(self, alert: Alert) -> str:
        """Try once: why it could not be delivered, or ""."""
        try:
            if self._parts.scheme == "https" and self._context is None:
                self._context = self._make_context()
            post(self._parts, orjson.dumps(alert._asdict()), self._context)
        except Undelivered as error:
            return str(error)
        except OSError as error:  # a library's own text may name the host
            return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)
        except (http.client.HTTPException, ValueError) as error:
            return type(error).__name__
        return ""


def post(parts: SplitResult, body: bytes, context: ssl.SSLContext | None) -> None:
    """One POST of JSON.

    Args:
        parts: Of the address.
        body: JSON.
        context: For https.

    Raises:
        Undelivered: It was answered, but not with a 2xx.
        OSError: No connection, or no answer in time.
        HTTPException: The answer is none.
    """
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body, _headers(parts))
        status = connection.getresponse().status
    finally:
        connection.close()
    if 300 <= status < 400:
        raise Undelivered(f"status {status}; redirects are not followed")
    if not 200 <= status < 300:
        raise Undelivered(f"status {status}")


def _headers(parts: SplitResult) -> dict[str, str]:
    headers = {"content-type": "application/json", "user-agent": "penstock"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
    return headers
