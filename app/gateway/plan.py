"""Turn an Exchange into a Plan: where it goes, with which headers, by when; a 4xx ends here, nothing sent.

Pure: the clock is passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidRequest
from app.exchange import Exchange, Plan
from app.policy.affinity import conversation, model
from app.providers.base import Endpoint, Provider
from app.wire import headers as wire
from app.wire.trace import NO_TRACE, Trace, handed_on

_TARGET = re.compile(r"/[\x21-\x7e]*")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?=[/?#\\]|%5c|%2f|$)", re.IGNORECASE)
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_MODEL_WINDOW_BYTES = 4096
_NOTHING: frozenset[str] = frozenset()
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_RETRIES_AT_MOST = 1000
MODEL_SEARCH_BYTES = 64 << 20
_SEARCH_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Rules:
    """What plans of one provider have in common; made once from the settings.

    Attributes:
        provider: The provider.
        origin: ``scheme://host[:port]`` of the upstream that is asked first.
        version: Value for a missing version header.
        strip_credentials: The gateway holds credentials: the caller's end here.
        request_timeout_s: Whole non-stream exchange.
        stream_timeout_s: Longest silence inside a stream or transfer.
        affine: There are several keys to choose from, so that a conversation should keep its own (B34).
        by_model: Some keys serve some models only, so that the model has to be known.
    """

    provider: Provider
    origin: str
    version: str
    strip_credentials: bool
    request_timeout_s: float
    stream_timeout_s: float
    affine: bool = False
    by_model: bool = False


@lru_cache(maxsize=256)
def check_target(target: str) -> None:
    """Refuse targets that could mean another path upstream than they say.

    Raises:
        InvalidRequest: Not origin-form, raw control or non-ASCII characters, a fragment, or a dot segment.
    """
    if not _TARGET.fullmatch(target):
        raise InvalidRequest(
            "The request target must be a path in printable ASCII; percent-encode everything else."
        )
    if "#" in target:
        raise InvalidRequest("The request target must not hold a fragment ('#').")
    path = target.partition("?")[0]
    if "\\" in path:
        raise InvalidRequest("The path must not hold a backslash; send it as %5C.")
    if _DOT_SEGMENT.search(path):
        raise InvalidRequest("The request target must not hold '.' or '..' segments, percent-encoded or not.")


def endpoint_of(provider: Provider, target: str) -> Endpoint:
    """The endpoint that ``target`` (path and query) belongs to."""
    return provider.endpoint(target.partition("?")[0])


def model_of(body: bytes) -> str:
    """The model a JSON body names, for labels only: looked for near its two ends, never parsed; "" if not seen."""
    found = _MODEL.search(body, 0, _MODEL_WINDOW_BYTES)
    if found is None and len(body) > _MODEL_WINDOW_BYTES:
        found = _MODEL.search(body, len(body) - _MODEL_WINDOW_BYTES)
    return found.group(1).decode("utf-8", "replace") if found else ""


def may_stream(body: bytes) -> bool:
    """Could this body ask for an event stream? True for large ones, which are not searched."""
    return len(body) > _SEARCH_LIMIT_BYTES or b'"stream"' in body


def client_retries(exchange: Exchange) -> int:
    """How often the client's SDK says it has sent this before (B32); 0 where it does not say."""
    told = wire.first(exchange.headers, "x-stainless-retry-count")
    return min(int(told), _RETRIES_AT_MOST) if told is not None and told.isascii() and told.isdigit() else 0


def make_plan(exchange: Exchange, rules: Rules, endpoint: Endpoint, now: float, trace: Trace = NO_TRACE) -> Plan:
    """The plan for one exchange.

    Args:
        exchange: What the client sent.
        rules: Of the provider.
        endpoint: Of the target.
        now: Monotonic seconds.
        trace: Its place in its trace.

    Raises:
        InvalidRequest: The target or a header may not be sent on.
    """
    check_target(exchange.target)
    provider = rules.provider
    drop = provider.credential_headers if rules.strip_credentials else _NOTHING
    pairs = wire.request_headers(exchange.headers, drop)
    if problem := wire.fault(pairs):
        raise InvalidRequest(f"The request is not valid: {problem}.")
    if wire.first(pairs, provider.version_header) is None:
        pairs.append((provider.version_header, rules.version))
    if trace.parent:
        pairs = handed_on(pairs, trace)
    if exchange.streamed and exchange.content_length is not None:
        pairs.append(("content-length", str(exchange.content_length)))
    return Plan(
        provider=provider.name,
        method=exchange.method,
        target=exchange.target,
        headers=tuple(pairs),
        body=exchange.body,
        deadline_at=now + rules.request_timeout_s,
        silence_s=rules.stream_timeout_s,
        may_stream=may_stream(exchange.body),
        whole=not endpoint.transfer,
        caller=exchange.caller,
        model=model(exchange.body, MODEL_SEARCH_BYTES) if rules.by_model else "",
        conversation=conversation(exchange.headers, exchange.body) if rules.affine else b"",
        repeatable=endpoint.repeatable or exchange.method in _SAFE,
        proves_key=endpoint.repeatable,
        client_retries=client_retries(exchange),
        request_id=exchange.id,
    )
