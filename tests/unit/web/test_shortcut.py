"""web/shortcut: the data plane goes past Flask's request exactly where nobody could tell.

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest
from flask import Flask
from werkzeug.routing import Rule

from app.factory import create_app
from app.settings import Settings
from tests.unit.web.conftest import Upstream

Make = Callable[..., Settings]


@pytest.fixture
def app(settings: Make, upstream: Upstream) -> Flask:
    return create_app(settings())


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the requests that Flask made a request context for."""
    made: list[str] = []
    theirs = Flask.request_context

    def noting(self: Flask, environ: dict[str, Any]) -> Any:
        made.append(environ["PATH_INFO"])
        return theirs(self, environ)

    monkeypatch.setattr(Flask, "request_context", noting)
    return made


def ask(app: Flask, path: str = "/v1/messages", method: str = "POST") -> Any:
    """One request past Flask's test client, whose own context would count."""
    environ = flask.Flask.test_client(app)._request_from_builder_args((path,), {"method": method}).environ
    told: list[Any] = []
    start: Any = lambda status, headers: told.append((status, dict(headers)))  # noqa: E731
    body: Any = app.wsgi_app(environ, start)
    text = b"".join(body)
    getattr(body, "close", lambda: None)()
    return told[0][0], told[0][1], text


def test_the_data_plane_needs_no_request_context(app: Flask, contexts: list[str]) -> None:
    contexts.clear()
    status, _, _ = ask(app)
    assert (status, contexts) == ("200 OK", [])
    assert ask(app, "/anthropic/v1/models", "GET")[0] == "200 OK"
    assert contexts == []


@pytest.mark.parametrize("path", ["/health", "/anthropic/metrics", "/v2/x"])
def test_every_other_path_goes_flasks_way(app: Flask, contexts: list[str], path: str) -> None:
    contexts.clear()
    ask(app, path, "GET")
    assert contexts == [path]


def _signal(app: Flask) -> Any:
    def heard(*_: Any, **__: Any) -> None:
        return None

    flask.request_finished.connect(heard, app)
    return heard  # kept: blinker holds it weakly


def _replace(app: Flask) -> None:
    view: Any = app.view_functions["native"]
    app.view_functions["native"] = lambda **values: view(**values)


WATCHERS: dict[str, Callable[[Flask], Any]] = {
    "before_request": lambda app: app.before_request(lambda: None),
    "after_request": lambda app: app.after_request(lambda response: response),
    "teardown_request": lambda app: app.teardown_request(lambda error: None),
    "teardown_appcontext": lambda app: app.teardown_appcontext(lambda error: None),
    "url_value_preprocessor": lambda app: app.url_value_preprocessor(lambda endpoint, values: None),
    "route": lambda app: app.add_url_rule("/v1/mine", "mine", lambda: "mine"),
    "rule": lambda app: app.url_map.add(Rule("/v1/mine", endpoint="mine")),
    "error handler": lambda app: app.register_error_handler(KeyError, lambda error: ("", 500)),
    "method": lambda app: setattr(app, "process_response", app.process_response),
    "request class": lambda app: setattr(app, "request_class", type("Mine", (flask.Request,), {})),
    "trusted hosts": lambda app: app.config.update(TRUSTED_HOSTS=["localhost"]),
    "signal": _signal,
    "view": _replace,
}


@pytest.mark.parametrize("name", WATCHERS)
def test_what_hangs_on_flask_is_served(app: Flask, contexts: list[str], name: str) -> None:
    contexts.clear()
    kept = WATCHERS[name](app)
    assert ask(app)[0] == "200 OK"
    assert contexts == ["/v1/messages"], "Flask's way, so that it is called"
    del kept


def test_a_test_client_can_look_at_the_request_afterwards(app: Flask) -> None:
    with app.test_client() as client:
        assert client.post("/v1/messages").status_code == 200
        assert flask.request.path == "/v1/messages"


def test_an_after_request_hook_still_changes_the_answer(app: Flask) -> None:
    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["x-mark"] = "1"
        return response

    assert ask(app)[1]["x-mark"] == "1"


@pytest.mark.parametrize(("read", "change"), [(True, False), (True, True), (False, True)])
def test_an_after_request_hook_may_read_and_replace_the_body(app: Flask, read: bool, change: bool) -> None:
    plain = ask(app)[2]
    seen: list[bytes] = []

    @app.after_request
    def look(response: flask.Response) -> flask.Response:
        response.direct_passthrough = False
        if read:
            seen.append(response.get_data())
        if change:
            response.set_data(b"other")
        return response

    status, headers, body = ask(app)
    assert (status, body) == ("200 OK", b"other" if change else plain)
    assert headers["content-length"] == str(len(body))
    assert seen == [plain] * read


def test_a_replaced_body_ends_the_exchange_it_stood_for(app: Flask) -> None:
    """Whole, in pieces of unknown number, or none at all for HEAD."""
    life = app.extensions["penstock"].life

    @app.after_request
    def replace(response: flask.Response) -> flask.Response:
        response.response = (piece for piece in (b"a", b"bc"))
        return response

    status, headers, body = ask(app)
    assert (status, body, life.in_flight) == ("200 OK", b"abc", 0)
    assert "content-length" not in {name.lower() for name in headers}


def test_a_route_of_the_applications_own_wins(app: Flask) -> None:
    app.add_url_rule("/v1/mine", "mine", lambda: "mine")
    assert ask(app, "/v1/mine", "GET")[2] == b"mine"


def test_what_goes_wrong_in_the_view_is_the_gateways_own_error(
    app: Flask, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(environ: Any) -> Any:
        raise RuntimeError("inside")

    monkeypatch.setattr(app.extensions["penstock"].proxy, "serve", broken)
    told: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(app.extensions["penstock"].log, "event", lambda name, **more: told.append((name, more)))
    status, headers, body = ask(app)
    assert (status[:3], headers["x-penstock-error"]) == ("500", "internal")
    assert b"inside" not in body
    assert [name for name, _ in told] == ["unexpected_error"]
