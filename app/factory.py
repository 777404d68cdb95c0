"""Put the parts together: the one place where they meet.

    create_app(settings)            a Flask application of its own: data plane and operator's pages
    create_blueprint(url_prefix=…)  the same in an existing Flask application
    GatewayMiddleware(app, prefix)  the same in front of any WSGI application
    start_worker, stop_worker, …    what gunicorn.conf.py calls

All of them in one process share one bridge, one pool, one life.

Runs on: worker (the pools it makes are made on the loop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask
from werkzeug.exceptions import HTTPException

from app.bridge.call import Bridge, get_bridge
from app.bridge.loop import BackgroundLoop
from app.errors import GatewayError, InvalidRequest, MethodNotAllowed, UnknownRoute
from app.gateway.body import BodyRules
from app.gateway.handle import Gateway, Options
from app.gateway.life import Life
from app.gateway.plan import Rules
from app.observe import metrics
from app.observe.logs import ExchangeLog, make_logger
from app.providers.table import PROVIDERS
from app.settings import Settings, environment, load
from app.upstream.dispatch import Dispatcher
from app.upstream.pool import Pool, PoolOptions
from app.web.health import Health
from app.web.ops import Ops
from app.web.proxy import Proxy, add_rule, mount, request_id_of
from app.web.render import render_error
from app.web.server import Keeper
from app.wire import sse

StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Assembly:
    """All parts for one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept_pid = 0
        self.provider = PROVIDERS["anthropic"]
        self.rules = Rules.of(
            self.provider,
            settings.anthropic_upstream_url,
            version=settings.anthropic_version,
            strip_credentials=bool(settings.anthropic_api_keys),
            request_timeout_s=settings.request_timeout_s,
            stream_timeout_s=settings.stream_timeout_s,
        )
        self._ca_pem = Path(settings.ssl_cert_file).read_bytes() if settings.ssl_cert_file else None
        self.log = ExchangeLog(make_logger(settings.log_level, settings.log_format))
        self.life = Life(settings.drain_timeout_s)
        self.health = Health(
            self.bridge, self.dispatcher, self.life, self.log, self.rules.origin, self.provider.name
        )
        self.gateway = Gateway(
            _options(settings, self.rules),
            self.bridge,
            self.dispatcher,
            self.life,
            (self.log, metrics.observe, self.health.observe),
        )
        keys = tuple(k.get_secret_value().encode() for k in settings.gateway_api_keys)
        self.proxy = Proxy(
            self.gateway,
            keys if settings.anthropic_api_keys else (),
            settings.max_body_bytes,
            settings.max_file_bytes,
            settings.body_timeout_s,
        )
        self.ops = Ops(self.health, _configuration(settings), "PROMETHEUS_MULTIPROC_DIR" in environment())
        self.keeper = Keeper(self.health, self.life, self.log, settings.production_warmup_connections)

    def bridge(self) -> Bridge:
        """This process's bridge; under servers without our hooks its first use also starts the keeper."""
        bridge = get_bridge(self.settings.router_thread_pool_size)
        if self._kept_pid != bridge.pid:
            self._kept_pid = bridge.pid
            self.keeper.start()
        return bridge

    def dispatcher(self, loop: BackgroundLoop) -> Dispatcher:
        """The dispatcher of ``loop``; on that loop only."""
        key = f"dispatcher-{id(self)}"
        found: Dispatcher | None = loop.local.get(key)
        if found is None:
            found = loop.local[key] = Dispatcher(lambda origin: self._pool(origin, loop))
        return found

    def _pool(self, origin: str, loop: BackgroundLoop) -> Pool:
        settings = self.settings
        options = PoolOptions(
            origin=origin,
            transport=settings.upstream_transport,
            max_connections=settings.anthropic_max_connections,
            max_keepalive=settings.anthropic_max_keepalive,
            keepalive_expiry_s=settings.anthropic_keepalive_expiry_s,
            connect_timeout_s=settings.connect_timeout_s,
            pool_timeout_s=settings.pool_timeout_s,
            streams_per_connection=settings.anthropic_streams_per_connection,
            http2=settings.production_enable_http2,
            ca_pem=self._ca_pem,
            write_timeout_s=settings.write_timeout_s,
        )
        return Pool(options, loop.events)


def _options(settings: Settings, rules: Rules) -> Options:
    heartbeat = sse.PING if settings.stream_heartbeat_kind == "ping" else sse.COMMENT
    return Options(
        rules=rules,
        body=BodyRules(settings.anthropic_chunk_size_bytes, settings.stream_heartbeat_s, heartbeat),
        keys=tuple((key.name, key.get_secret_value()) for key in settings.anthropic_api_keys),
        write_timeout_s=settings.write_timeout_s,
        public_url=(settings.public_url or "") if settings.rewrite_results_url else "",
    )


def _configuration(settings: Settings) -> dict[str, int]:
    return {
        "max_connections": settings.anthropic_max_connections,
        "max_keepalive": settings.anthropic_max_keepalive,
        "chunk_size": settings.anthropic_chunk_size_bytes,
    }


_assembled: list[Assembly] = []


def _without_effect(settings: Settings) -> list[str]:
    """Settings that are set and do nothing here: said at start, so that nobody relies on them."""
    found = []
    if settings.gateway_api_keys and not settings.anthropic_api_keys:
        found.append("GATEWAY_API_KEYS: the gateway holds no upstream credential, so callers bring their own")
    if settings.enable_request_body_logging or settings.enable_response_body_logging:
        found.append("ENABLE_*_BODY_LOGGING: this version logs no bodies")
    if len(settings.anthropic_api_keys) > 1 and any(key.models for key in settings.anthropic_api_keys):
        found.append("keys[].models: this version takes the keys in turn")
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
    app = Flask("penstock")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False
    for path, endpoint, view in assembly.ops.routes(assembly.settings.enable_metrics_endpoint):
        app.add_url_rule(path, endpoint, view)
    for path in ("/v1/<penstock_rest:rest>", "/anthropic/<penstock_rest:rest>"):
        add_rule(app.url_map, path, "native")
    app.view_functions["native"] = assembly.proxy.native

    def failed(error: HTTPException) -> Any:
        from flask import request

        made: GatewayError = MethodNotAllowed() if error.code == 405 else UnknownRoute()
        return render_error(made, request_id_of(request.environ))

    app.register_error_handler(404, failed)
    app.register_error_handler(405, failed)
    app.register_error_handler(Exception, _unexpected(assembly))
    app.extensions["penstock"] = assembly
    return app


def _unexpected(assembly: Assembly) -> Callable[[Exception], Any]:
    def failed(error: Exception) -> Any:
        from flask import request

        request_id = request_id_of(request.environ)
        if isinstance(error, HTTPException):
            if (error.code or 500) < 400:
                return error
            return render_error(InvalidRequest(error.description), request_id)
        assembly.log.event("unexpected_error", request_id=request_id, error=repr(error))
        return render_error(GatewayError(), request_id)

    return failed


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
    mount(blueprint, assembly.proxy, catch_all=url_prefix is not None)
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
        assembly.keeper.start(worker)


def stop_worker(worker: Any = None) -> None:
    """gunicorn's ``worker_exit``."""
    del worker
    for assembly in _assembled:
        assembly.keeper.stop()


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
