"""Speak HTTP for the data plane: read one request into an Exchange, pass its answer on, render what went wrong.

Runs on: worker.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request
from werkzeug.routing import Map, PathConverter, Rule

from app.errors import GatewayError, InvalidRequest, UnknownRoute
from app.exchange import Exchange, Headers
from app.gateway.account import Admission
from app.gateway.handle import Gateway
from app.gateway.plan import check_target, endpoint_of
from app.providers.base import Endpoint
from app.web.auth import authenticate, caller_of
from app.web.client import Environ, WsgiClient
from app.web.render import PassedOn, render_error
from app.wire.headers import first

_REQUEST_ID = re.compile(r"(?!sk-)[A-Za-z0-9+/=-]{20,200}")  # no id begins as a key does: it would be logged
_counter = itertools.count()


@functools.lru_cache(maxsize=4)
def _random(pid: int) -> str:
    del pid
    return uuid.uuid4().hex[:20]


def _process_id() -> str:
    """Random, one per process: request ids then only count, which costs no system call per request."""
    return _random(os.getpid())


_STREAM_UPLOADS_FROM_BYTES = 1 << 20
_NATIVE = "/anthropic"
_REMEMBERED = 256
_LONGEST_REMEMBERED = 256


class Rest(PathConverter):
    """Everything that is left of a path, empty segments and decoded newlines included."""

    name = "penstock_rest"
    regex = r"[\s\S]*?"
    part_isolating = False


class Proxy:
    """The data plane's views.

    Args:
        gateway: Serves exchanges.
        keys: Name and value of the gateway keys callers must present; empty lets everybody in.
        max_body_bytes: Limit of buffered bodies.
        max_file_bytes: Limit of streamed bodies.
        body_timeout_s: Longest silence while a client sends its body.
        admit: Asks a caller's limits; raises CallerLimited.
        admin_key: Opens the operator's pages and must not go upstream as a caller's; b"" if there is none.
    """

    def __init__(
        self,
        gateway: Gateway,
        keys: tuple[tuple[str, bytes], ...],
        max_body_bytes: int,
        max_file_bytes: int,
        body_timeout_s: float,
        admit: Callable[[str], Admission] | None = None,
        admin_key: bytes = b"",
    ) -> None:
        self._admit = admit
        self._admin_key = admin_key
        self._gateway = gateway
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._max_file_bytes = max_file_bytes
        self._body_timeout_s = body_timeout_s
        self._endpoints: dict[str, Endpoint] = {}

    def native(self, rest: str = "") -> Response:
        """``/v1/…`` and ``/anthropic/…``: pass it on as it is."""
        del rest  # the decoded path; the raw one is what goes on
        return self.serve(request.environ)

    def serve(self, environ: Environ) -> Response:
        """The same, without Flask's request."""
        received_at = time.monotonic()
        headers = request_headers(environ)
        request_id = request_id_of(environ)
        target = ""
        try:
            target = upstream_target(environ)
            return self._pass_on(environ, headers, target, request_id, received_at)
        except _Refusal as refusal:
            exchange = _exchange(environ, headers, target or "/", request_id, received_at, refusal)
            self._gateway.refuse(exchange, refusal.error)
            return render_error(refusal.error, request_id)
        except GatewayError as error:
            return render_error(error, request_id)

    def unknown(self, rest: str = "") -> Response:
        """Every other path below a mount."""
        del rest
        return render_error(UnknownRoute(), request_id_of(request.environ))

    def _pass_on(
        self, environ: Environ, headers: Headers, target: str, request_id: str, received_at: float
    ) -> Response:
        gateway = self._gateway
        caller, route = "", "other"
        try:
            if not target:
                raise UnknownRoute
            check_target(target)
            caller = authenticate(headers, self._keys) if self._keys else caller_of(headers, self._admin_key)
            endpoint = self._endpoint(target)
            route = endpoint.name
            admission = self._admit(caller) if self._admit is not None else None
        except GatewayError as error:
            raise _Refusal(error, caller, route) from error
        limit = self._max_file_bytes if endpoint.transfer else self._max_body_bytes
        try:
            client = WsgiClient(environ, limit, self._body_timeout_s, gateway.options.rules.request_timeout_s)
            body, streamed = self._body(client, endpoint)
        except BaseException as error:
            if admission is not None:
                admission.finish(0)
            if isinstance(error, GatewayError):
                error.headers += tuple(admission.headers) if admission is not None else ()
                raise _Refusal(error, caller, route) from error
            raise
        exchange = Exchange(
            id=request_id,
            method=environ["REQUEST_METHOD"],
            target=target,
            headers=headers,
            body=body,
            streamed=streamed,
            content_length=client.length,
            route=route,
            received_at=received_at,
            caller=caller,
        )
        answer = gateway.handle(exchange, endpoint, client, admission)
        if first(answer.headers, "x-request-id") is None:
            answer.headers.append(("x-request-id", request_id))
        return PassedOn(answer.body, answer.status, answer.headers)

    def _endpoint(self, target: str) -> Endpoint:
        """Of a target that was checked; the ones seen most are remembered."""
        found = self._endpoints.get(target)
        if found is None:
            found = endpoint_of(self._gateway.options.rules.provider, target)
            if len(target) <= _LONGEST_REMEMBERED:
                if len(self._endpoints) >= _REMEMBERED:
                    self._endpoints.clear()
                self._endpoints[target] = found
        return found

    @staticmethod
    def _body(client: WsgiClient, endpoint: Endpoint) -> tuple[bytes, bool]:
        length = client.length
        if endpoint.transfer and (length is None or length > _STREAM_UPLOADS_FROM_BYTES):
            return b"", True
        return (b"" if length == 0 else client.read_all()), False


class _Refusal(Exception):
    """Refused before the gateway had an exchange to record; with what was known of it by then."""

    def __init__(self, error: GatewayError, caller: str, route: str) -> None:
        self.error = error
        self.caller = caller
        self.route = route


def _exchange(
    environ: Environ, headers: Headers, target: str, request_id: str, received_at: float, refusal: _Refusal
) -> Exchange:
    method, route, caller = environ["REQUEST_METHOD"], refusal.route, refusal.caller
    return Exchange(request_id, method, target, headers, b"", False, None, route, received_at, caller)


def request_id_of(environ: Environ) -> str:
    """The client's ``X-Request-ID`` where it is one a PaaS router could have sent, else a new one."""
    given = environ.get("HTTP_X_REQUEST_ID")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return str(given)
    return f"req-{_process_id()}{next(_counter):012x}"


def request_headers(environ: Environ) -> Headers:
    """Header pairs as the client sent them.

    Under gunicorn with our hooks, from its parser: order and repeats kept. Elsewhere from the environ, where the
    server has joined repeats with commas already (RFC 9110 section 5.3 allows that).
    """
    parsed = getattr(environ["wsgi.input"], "penstock_request", None)
    if parsed is not None:
        return tuple(parsed.headers)
    pairs = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key[:5] == "HTTP_"]
    if environ.get("CONTENT_TYPE"):
        pairs.append(("content-type", environ["CONTENT_TYPE"]))
    return tuple(pairs)


def raw_target(environ: Environ) -> str:
    """Path and query as they stood in the request line; absolute-form loses its scheme and authority.

    RFC 9112 section 3.2.2: a server accepts absolute-form; which host it names plays no part here.
    """
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if not raw:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        raw = quote(path.encode("latin-1"), safe="/:@!$&'()*+,;=~-._")
        query = environ.get("QUERY_STRING", "")
        return f"{raw}?{query}" if query else raw
    scheme, found, rest = raw.partition("://")
    if found and scheme.isalpha() and not raw.startswith("/"):
        return "/" + rest.partition("/")[2]
    return raw


def upstream_target(environ: Environ) -> str:
    """The target for the upstream: the raw one without the mount and without ``/anthropic``; "" if there is none.

    Raises:
        InvalidRequest: The mount prefix is percent-encoded, so that it cannot be told from the path.
    """
    raw = raw_target(environ)
    mount = environ.get("SCRIPT_NAME", "") + environ.get("penstock.prefix", "")
    if mount:
        if not raw.startswith(mount + "/"):
            raise InvalidRequest("The path before /v1/ or /anthropic/ must not be percent-encoded.")
        raw = raw[len(mount) :]
    if raw.startswith(_NATIVE + "/"):
        raw = raw[len(_NATIVE) :]
        return raw if len(raw) > 1 else ""
    return raw if raw.startswith("/v1/") else ""


Routes = Sequence[tuple[str, str, Callable[..., Any]]]
"""Path, endpoint name and view of each."""


def mount(blueprint: Blueprint, proxy: Proxy, catch_all: bool, pages: Routes = ()) -> None:
    """Route the data plane on ``blueprint``, for every method, without redirects or automatic answers.

    Args:
        blueprint: Where.
        proxy: The data plane.
        catch_all: Every other path is answered, too: there is none.
        pages: Routed in the same way.
    """

    def add(state: Any) -> None:
        prefix = state.url_prefix or ""
        name = f"{state.name_prefix}.{state.name}".lstrip(".")
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            *pages,
            ("/v1/<penstock_rest:rest>", "native", proxy.native),
            (f"{_NATIVE}/<penstock_rest:rest>", "native", proxy.native),
        ]
        if catch_all:
            routes += [("/<penstock_rest:rest>", "unknown", proxy.unknown), ("/", "unknown", proxy.unknown)]
        for path, endpoint, view in routes:
            add_rule(state.app.url_map, prefix + path, f"{name}.{endpoint}")
            state.app.view_functions[f"{name}.{endpoint}"] = prefixed(view, prefix)

    blueprint.record(add)


def add_rule(url_map: Map, path: str, endpoint: str) -> None:
    """One rule for all methods; ``//`` and trailing slashes are the upstream's business."""
    url_map.converters.setdefault(Rest.name, Rest)
    for upgrade in (False, True):  # a request that would upgrade is an ordinary one here: Upgrade is hop-by-hop
        url_map.add(
            Rule(
                path,
                endpoint=endpoint,
                methods=None,
                strict_slashes=False,
                merge_slashes=False,
                websocket=upgrade,
            )
        )


def prefixed(view: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    """``view`` that finds its mount prefix in the environ."""
    if not prefix:
        return view

    def with_prefix(**values: Any) -> Any:
        request.environ["penstock.prefix"] = prefix
        return view(**values)

    return with_prefix
