"""The gateway inside other applications: a blueprint next to an application's own routes, and a middleware."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, Response, abort, jsonify

from app.factory import GatewayMiddleware, create_blueprint

flask_app = Flask(__name__)
seen: list[str] = []


@flask_app.get("/own")
def own() -> Response:
    return jsonify(own=True)


@flask_app.get("/fails")
def fails() -> Response:
    abort(404)


@flask_app.errorhandler(404)
def not_found(error: object) -> tuple[str, int]:
    return "the application's own 404", 404


@flask_app.before_request
def before() -> None:
    seen.append("before")


@flask_app.after_request
def after(response: Response) -> Response:
    response.headers["x-own-hook"] = str(len(seen))
    return response


flask_app.register_blueprint(create_blueprint(url_prefix="/llm"))


def plain_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Any WSGI application: says which path it was asked for."""
    body = f"plain {environ['SCRIPT_NAME']}|{environ['PATH_INFO']}".encode()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body)))])
    return [body]


wrapped = GatewayMiddleware(plain_app, prefix="/llm")
