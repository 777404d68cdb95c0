"""The error tree: what went wrong, told by branch and slug, never by text.

    GatewayError            status, slug (stable, low-cardinality: the metric label), message; cause kept
    ├ ConfigError           start-up only
    ├ RequestError  4xx     InvalidRequest · Unauthenticated · UnknownRoute · MethodNotAllowed
    │                       BodyTooLarge · BodyTimeout · CallerLimited · UnservedModel · UnknownRecord
    │                       Untranslatable(path)
    ├ Refused       503/429 nothing was sent: QueueFull · QueueTimeout · BreakerOpen · NoCredential · Draining
    ├ UpstreamError 502/504 something may have been sent: ConnectFailed · ProtocolBroken · DeadlinePassed
    │                       StreamBroken
    └ ClientGone    499     counted; never rendered, never held against the upstream

Retry and breaker look at the branch. The client sees ``status``, the Anthropic error ``kind`` and the message.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class GatewayError(Exception):
    """Base of everything the gateway itself says went wrong.

    Attributes:
        status: HTTP status the client gets.
        slug: Stable name of this error; metric label and ``x-penstock-error`` header.
        kind: ``error.type`` in the Anthropic error body.
        retry_after_s: Seconds for ``retry-after``; None leaves the header out. A class has its usual one.
        should_retry: Told to SDKs as ``x-should-retry``; None leaves the header out.
        message: One sentence that names what was wrong and what is allowed. Never carries a secret.
        journey: How far the exchange had come (``exchange.Journey``) when this ended it; None: not yet crossed.
        headers: More headers for its answer.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    kind: ClassVar[str] = "api_error"
    retry_after_s: float | None = None
    should_retry: bool | None = None
    default: ClassVar[str] = "The gateway failed to handle this request."

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        self.message = message or self.default
        self.journey: object | None = None
        self.headers: tuple[tuple[str, str], ...] = ()
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        super().__init__(self.message)


class ConfigError(GatewayError):
    """Settings that cannot be run with. ``faults`` lists all of them, one sentence each."""

    slug = "config"

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class RequestError(GatewayError):
    """The client's request cannot be served as it stands (4xx); nothing was sent."""

    status = 400
    slug = "invalid_request"
    kind = "invalid_request_error"
    should_retry = False
    default = "The request is malformed."


class InvalidRequest(RequestError):
    """Framing, target, header or value that is not allowed."""


class Unauthenticated(RequestError):
    """No valid gateway key was presented."""

    status = 401
    slug = "unauthenticated"
    kind = "authentication_error"
    default = "Present one of this gateway's keys as x-api-key or as Authorization: Bearer."


class UnknownRoute(RequestError):
    """A path that no endpoint serves."""

    status = 404
    slug = "unknown_route"
    kind = "not_found_error"
    default = "No such path. Native paths start with /v1/ or /anthropic/."


class UnknownRecord(RequestError):
    """No exchange with the id that was asked for is remembered any more."""

    status = 404
    slug = "unknown_record"
    kind = "not_found_error"
    default = "No exchange with that id is kept."


class MethodNotAllowed(RequestError):
    """A method that this path does not take."""

    status = 405
    slug = "method_not_allowed"
    default = "This path does not take that method."


class BodyTooLarge(RequestError):
    """The request body is over the limit of its path."""

    status = 413
    slug = "request_too_large"
    kind = "request_too_large"
    default = "The request body is too large."


class BodyTimeout(RequestError):
    """The client stopped sending its body."""

    status = 408
    slug = "body_timeout"
    should_retry = True
    default = "The request body stopped arriving."


class CallerLimited(RequestError):
    """A caller has used up what its gateway key allows: requests a minute, requests at once, or tokens a day."""

    status = 429
    slug = "caller_limited"
    kind = "rate_limit_error"
    retry_after_s = 1.0
    should_retry = True
    default = "This gateway key's limit is used up."


class UnservedModel(RequestError):
    """No configured upstream credential may serve the model (``models`` on keys)."""

    status = 404
    slug = "unserved_model"
    kind = "not_found_error"
    default = "No upstream credential of this gateway serves that model."


class Untranslatable(RequestError):
    """A field that cannot be expressed in the target dialect. ``path`` is its JSON path."""

    slug = "untranslatable"

    def __init__(self, path: str, message: str | None = None) -> None:
        self.path = path
        super().__init__(message or f"{path} cannot be expressed in the target dialect.")


class Refused(GatewayError):
    """The gateway would not send it now (503/429); nothing was sent, so trying again is safe."""

    status = 503
    slug = "refused"
    kind = "overloaded_error"
    retry_after_s = 1.0
    should_retry = True
    default = "The gateway cannot take this request now."


class QueueFull(Refused):
    slug = "queue_full"
    default = "request dropped: queue is full"


class QueueTimeout(Refused):
    slug = "queue_timeout"
    default = "The request waited too long for a free slot."


class BreakerOpen(Refused):
    slug = "breaker_open"
    default = "The upstream is failing; the gateway gives it time to recover."


class NoCredential(Refused):
    slug = "no_credential"
    default = "No upstream credential is usable right now."


class Draining(Refused):
    slug = "draining"
    default = "This gateway is shutting down; send the request again."


class UpstreamError(GatewayError):
    """The exchange with the upstream failed; some of the request may have been sent."""

    status = 502
    slug = "upstream"
    should_retry = True
    default = "The exchange with the upstream failed."


class ConnectFailed(UpstreamError):
    """No connection (refused, reset, DNS, TLS, too slow); nothing was sent."""

    slug = "connect_failed"
    default = "The upstream could not be reached."


class ProtocolBroken(UpstreamError):
    """The connection or stream broke before the response head."""

    slug = "protocol_broken"
    default = "The upstream broke the exchange off before it answered."


class DeadlinePassed(UpstreamError):
    """A deadline of the exchange passed."""

    status = 504
    slug = "deadline_passed"
    kind = "timeout_error"
    default = "The upstream did not answer in time."


class StreamBroken(UpstreamError):
    """The response body broke off, or fell silent for too long, after its head was handed up."""

    slug = "stream_broken"
    default = "The upstream's stream broke off."


class ClientGone(GatewayError):
    """The client left. Counted; never rendered, never held against the upstream."""

    status = 499
    slug = "client_gone"
    default = "The client left."
