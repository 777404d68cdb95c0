"""Offer the gateway in the shapes that applications take it in.

    create_app(settings)            a Flask application of its own: data plane and operator's pages
    create_blueprint(url_prefix=…)  the same in an existing Flask application
    GatewayMiddleware(app, prefix)  the same in front of any WSGI application
    start_worker, stop_worker, …    what gunicorn.conf.py calls

All of them in one process share one bridge.

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Blueprint, Flask
from werkzeug.exceptions import HTTPException

from app.assembly import Assembly
from app.errors import GatewayError, InvalidRequest, MethodNotAllowed, UnknownRoute
from app.settings import Settings, load
from app.web.proxy import add_rule, mount, request_id_of
from app.web.render import render_error
from app.web.shortcut import DirectFlask

StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


_assembled: list[Assembly] = []


def _without_effect(settings: Settings) -> list[str]:
    """Settings that are set and do nothing here: said at start, so that nobody relies on them."""
    found = []
    if settings.gateway_api_keys and not settings.anthropic_api_keys:
        found.append("GATEWAY_API_KEYS: the gateway holds no upstream credential, so callers bring their own")
    if not settings.gateway_api_keys and (
        settings.gateway_requests_per_minute
        or settings.gateway_concurrent_requests
        or settings.gateway_tokens_per_day
    ):
        found.append("GATEWAY_* limits: they hold per gateway key, and there is none")
    if settings.gateway_admin_key is not None and settings.recent_records == 0:
        found.append("GATEWAY_ADMIN_KEY: it opens what is remembered of exchanges, and RECENT_RECORDS is 0")
    if settings.alert_webhook_url is not None and not settings.enable_performance_monitor:
        found.append("ALERT_WEBHOOK_URL: there are no alerts with ENABLE_PERFORMANCE_MONITOR=false")
    return found


def _assemble(settings: Settings | None) -> Assembly:
    assembly = Assembly(settings if settings is not None else load())
    for what in _without_effect(assembly.settings):
        assembly.log.event("setting_without_effect", what=what)
    _assembled.append(assembly)
    return assembly


def create_app(settings: Settings | None = None) -> Flask:
    """A Flask application that is the gateway.

    Args:
        settings: What to run with; from the environment if None.

    Raises:
        ConfigError: The environment's settings are faulty.
    """
    assembly = _assemble(settings)
    app = DirectFlask("penstock")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False
    pages = assembly.ops.routes(assembly.settings.enable_metrics_endpoint)
    for path, endpoint, view in pages:
        app.add_url_rule(path, endpoint, view)
    for path in ("/v1/<penstock_rest:rest>", "/anthropic/<penstock_rest:rest>"):
        add_rule(app.url_map, path, "native")
    app.view_functions["native"] = assembly.proxy.native
    for path, endpoint, view in assembly.remembered.pages:
        add_rule(app.url_map, path, endpoint)
        app.view_functions[endpoint] = view

    def failed(error: HTTPException) -> Any:
        from flask import request

        made: GatewayError = MethodNotAllowed() if error.code == 405 else UnknownRoute()
        return render_error(made, request_id_of(request.environ))

    app.register_error_handler(404, failed)
    app.register_error_handler(405, failed)

    def unexpected(error: Exception) -> Any:
        from flask import request

        return _unexpected(assembly, error, request.environ)

    app.register_error_handler(Exception, unexpected)
    app.extensions["penstock"] = assembly
    app.lead(
        "native",
        lambda environ: assembly.proxy.serve(environ),
        lambda error, environ: _unexpected(assembly, error, environ),
        (path for path, _, _ in pages),
    )
    return app


def _unexpected(assembly: Assembly, error: Exception, environ: dict[str, Any]) -> Any:
    request_id = request_id_of(environ)
    if isinstance(error, HTTPException):
        if (error.code or 500) < 400:
            return error
        return render_error(InvalidRequest(error.description), request_id)
    assembly.log.event("unexpected_error", request_id=request_id, error=repr(error))
    return render_error(GatewayError(), request_id)


def create_blueprint(
    url_prefix: str | None = None, settings: Settings | None = None, name: str = "penstock"
) -> Blueprint:
    """The gateway as a blueprint for an existing Flask application.

    It brings ``/v1/…``, ``/anthropic/…`` and the operator's pages below ``url_prefix``, and touches nothing else
    of the application. With a prefix, every other path below it is answered with an Anthropic-shaped 404.

    Args:
        url_prefix: For example ``/llm``; may also be given to ``register_blueprint``.
        settings: What to run with; from the environment if None.
        name: Of the blueprint, where two are mounted.
    """
    assembly = _assemble(settings)
    blueprint = Blueprint(name, "penstock", url_prefix=url_prefix)
    for path, endpoint, view in assembly.ops.routes(assembly.settings.enable_metrics_endpoint):
        blueprint.add_url_rule(path, endpoint, view)
    mount(blueprint, assembly.proxy, catch_all=url_prefix is not None, pages=assembly.remembered.pages)
    return blueprint


class GatewayMiddleware:
    """The gateway in front of any WSGI application.

    Args:
        app: Gets every request that is not below ``prefix``, untouched.
        prefix: For example ``/llm``; the gateway answers ``/llm/v1/…``, ``/llm/anthropic/…``, ``/llm/health`` ….
        settings: What to run with; from the environment if None.

    Raises:
        ValueError: ``prefix`` does not start with a slash or ends with one.
    """

    def __init__(self, app: WsgiApp, prefix: str = "/llm", settings: Settings | None = None) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError(
                f"prefix must look like '/llm': it starts with a slash and ends without; got {prefix!r}"
            )
        self._app = app
        self._prefix = prefix
        self._gateway = create_app(settings)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Dispatch by path."""
        path = environ.get("PATH_INFO", "")
        prefix = self._prefix
        if path != prefix and not path.startswith(prefix + "/"):
            return self._app(environ, start_response)
        inner = dict(environ)
        inner["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix
        inner["PATH_INFO"] = path[len(prefix) :]
        return self._gateway(inner, start_response)


def start_worker(worker: Any = None) -> None:
    """gunicorn's ``post_worker_init``; elsewhere call it once per process, or let the first request do it."""
    for assembly in _assembled:
        if worker is not None:
            assembly.workers = worker.cfg.workers
        assembly.remembered.asking.join()
        assembly.keeper.start(worker)


def stop_worker(worker: Any = None) -> None:
    """gunicorn's ``worker_exit``."""
    del worker
    for assembly in _assembled:
        assembly.keeper.stop()
        assembly.remembered.asking.close()
        assembly.sharing.close()
        assembly.limits.close()


def before_request(worker: Any, request: Any) -> None:
    """gunicorn's ``pre_request``."""
    del worker
    for assembly in _assembled:
        assembly.keeper.before_request(request)


def after_request(worker: Any, request: Any) -> None:
    """gunicorn's ``post_request``."""
    del worker
    for assembly in _assembled:
        assembly.keeper.after_request(request)
