"""factory: as an application, a blueprint and middleware the gateway leaves what it is mounted in alone (B6).

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, session

from app.factory import GatewayMiddleware, create_app, create_blueprint
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

Make = Callable[..., Settings]


@pytest.fixture
def host(settings: Make, upstream: Upstream) -> Flask:
    """An application with habits of its own, and the gateway below ``/llm``."""
    app = Flask("host")
    app.secret_key = "secret"
    calls: list[str] = []
    app.extensions["calls"] = calls

    @app.before_request
    def before() -> None:
        calls.append("before")

    @app.after_request
    def after(response: Response) -> Response:
        response.headers["x-host"] = "yes"
        return response

    @app.errorhandler(404)
    def lost(_: Exception) -> tuple[str, int]:
        return "host's own 404", 404

    @app.errorhandler(Exception)
    def failed(_: Exception) -> tuple[str, int]:
        return "host's own 500", 500

    @app.get("/own")
    def own() -> str:
        session["seen"] = "yes"
        return "own"

    @app.get("/boom")
    def boom() -> str:
        raise ValueError

    app.register_blueprint(create_blueprint(url_prefix="/llm", settings=settings()))
    return app


def test_b6_the_hosts_routes_hooks_handlers_and_session_stay(host: Flask) -> None:
    client = host.test_client()
    own = client.get("/own")
    assert (own.data, own.headers["x-host"]) == (b"own", "yes")
    assert "session=" in own.headers["set-cookie"]
    assert client.get("/nowhere").data == b"host's own 404"
    assert client.get("/boom").data == b"host's own 500"
    assert host.extensions["calls"] == ["before"] * 3


@pytest.mark.parametrize("mount", ["/llm", "/llm/anthropic"])
def test_b6_the_blueprint_serves_below_its_prefix(host: Flask, upstream: Upstream, mount: str) -> None:
    answer = host.test_client().post(f"{mount}/v1/messages?x=%41", data=b"{}")
    assert (answer.status_code, answer.headers["x-host"]) == (200, "yes")
    assert upstream.last.target.startswith("/v1/messages?x=")
    assert host.test_client().get("/llm/health").json == {"status": "ok"}


@pytest.mark.parametrize("path", ["/llm/", "/llm/nothing", "/llm/v2/messages"])
def test_b6_other_paths_below_the_prefix_are_anthropic_404s(host: Flask, path: str) -> None:
    answer = host.test_client().get(path)
    assert (answer.status_code, answer.headers["x-penstock-error"]) == (404, "unknown_route")


def test_b6_without_a_prefix_other_paths_are_the_hosts(settings: Make, upstream: Upstream) -> None:
    app = Flask("host")
    app.register_blueprint(create_blueprint(settings=settings()))
    assert app.test_client().post("/v1/messages").status_code == 200
    assert "x-penstock-error" not in app.test_client().get("/other").headers


def test_an_encoded_mount_is_refused(host: Flask, upstream: Upstream) -> None:
    answer = host.test_client().get("/llm/v1/x", environ_overrides={"RAW_URI": "/%6clm/v1/x"})
    assert (answer.status_code, upstream.seen) == (400, [])


def other(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Any WSGI application."""
    start_response("200 OK", [("x-seen", environ["PATH_INFO"])])
    return [b"other"]


def test_b6_middleware_takes_what_is_below_its_prefix_only(settings: Make, upstream: Upstream) -> None:
    from werkzeug.test import Client

    client = Client(GatewayMiddleware(other, prefix="/llm", settings=settings()))
    for path in ("/", "/llmx", "/v1/messages", "/health"):
        answer = client.get(path)
        assert (answer.data, answer.headers["x-seen"]) == (b"other", path)
    assert client.get("/llm/health").json == {"status": "ok"}
    assert client.get("/llm").status_code == 404
    assert client.post("/llm/v1/messages?a=b").status_code == 200
    assert upstream.last.target == "/v1/messages?a=b"


@pytest.mark.parametrize("prefix", ["llm", "/llm/", "/", ""])
def test_a_prefix_looks_like_a_prefix(settings: Make, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        GatewayMiddleware(other, prefix=prefix, settings=settings())


def test_b17_two_gateways_in_one_process_keep_apart(settings: Make, upstream: Upstream) -> None:
    one = create_app(
        settings(ANTHROPIC_API_KEYS="one", GATEWAY_API_KEYS="g", ANTHROPIC_UPSTREAM_URL="https://one")
    )
    two = create_app(settings(ANTHROPIC_UPSTREAM_URL="https://two"))
    one.test_client().get("/v1/x", headers={"x-api-key": "g"})
    assert (upstream.last.origin, ("x-api-key", "one") in upstream.last.headers) == ("https://one", True)
    two.test_client().get("/v1/x")
    assert upstream.last.origin == "https://two"
    assert "x-api-key" not in dict(upstream.last.headers)
