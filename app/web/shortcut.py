"""Lead data-plane requests past Flask's request machinery where nothing hangs on it.

Context: a Flask request (contexts, session, routing, signals, hooks) is 100 Python calls and 30 objects in
reference cycles, a tenth of an exchange's CPU, and the data plane uses none of it. Choice: our own application,
the one that ``create_app`` makes, hands the environ straight to the view while that cannot be told from outside.
Price: this list of what could tell; where any of it holds, and in blueprints, requests go Flask's way.

    a hook, a route, an error handler or a signal's receiver was added; the view or a method of the application
    was replaced; TRUSTED_HOSTS is set; a path of the operator's pages; a test client that wants to look at the
    request afterwards

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import flask
from flask import Flask
from werkzeug.routing import Map, RuleFactory

Environ = dict[str, Any]
_PREFIXES = ("/v1/", "/anthropic/")
_REPLACEABLE = frozenset(
    {
        "dispatch_request",
        "finalize_request",
        "full_dispatch_request",
        "handle_exception",
        "handle_user_exception",
        "make_response",
        "preprocess_request",
        "process_response",
        "request_class",
        "request_context",
        "session_interface",
    }
)
_SIGNALS = (
    flask.request_started,
    flask.request_finished,
    flask.request_tearing_down,
    flask.got_request_exception,
    flask.appcontext_pushed,
    flask.appcontext_popped,
    flask.appcontext_tearing_down,
)


class _CountedMap(Map):
    """Routes, and how often one was added: a later one may be for paths of the data plane."""

    added = 0

    def add(self, rulefactory: RuleFactory) -> None:
        """werkzeug's own."""
        self.added += 1
        super().add(rulefactory)


class DirectFlask(Flask):
    """A Flask application with a shorter way for the data plane.

    Call ``lead`` once all routes of the application's own are in place.
    """

    url_map_class = _CountedMap
    _direct: Callable[[Environ], Any] | None = None
    _routes = 0
    _failed: Callable[[Exception, Environ], Any]
    _view: Any = None
    _endpoint = ""
    _elsewhere: frozenset[str] = frozenset()

    def lead(
        self,
        endpoint: str,
        direct: Callable[[Environ], Any],
        failed: Callable[[Exception, Environ], Any],
        elsewhere: Iterable[str],
    ) -> None:
        """Take the shorter way from now on.

        Args:
            endpoint: Of the data plane's view.
            direct: Makes the response to an environ as that view makes it of Flask's request.
            failed: Makes the response where it raised, as the application's handler for exceptions does.
            elsewhere: Paths below the data plane's that are somebody else's.
        """
        self._direct, self._failed = direct, failed
        self._endpoint, self._view = endpoint, self.view_functions[endpoint]
        self._elsewhere = frozenset(elsewhere)
        self._routes = self._added()

    def _added(self) -> int:
        routes = self.url_map
        assert isinstance(routes, _CountedMap)  # noqa: S101 - url_map_class
        return routes.added

    def register_error_handler(self, *args: Any, **kwargs: Any) -> None:
        """Flask's own; a handler that comes later may be for what the view raises."""
        self._direct = None
        super().register_error_handler(*args, **kwargs)

    def wsgi_app(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        direct = self._direct
        if direct is not None:
            path = environ.get("PATH_INFO", "")
            if path.startswith(_PREFIXES) and path not in self._elsewhere and not self._watched(environ):
                try:
                    response = direct(environ)
                except Exception as error:  # noqa: BLE001 - the rim, as Flask's own handler of exceptions is
                    response = self._failed(error, environ)
                answered: Iterable[bytes] = response(environ, start_response)
                return answered
        return super().wsgi_app(environ, start_response)

    def _watched(self, environ: Environ) -> bool:
        """Whether anybody would see the difference."""
        if (
            self.before_request_funcs
            or self.after_request_funcs
            or self.teardown_request_funcs
            or self.teardown_appcontext_funcs
            or self.url_value_preprocessors
            or self.view_functions[self._endpoint] is not self._view
            or self._added() != self._routes
            or self.config["TRUSTED_HOSTS"]
            or not _REPLACEABLE.isdisjoint(self.__dict__)
            or "werkzeug.debug.preserve_context" in environ
        ):
            return True
        for signal in _SIGNALS:  # noqa: SIM110 - a generator would cost a frame per request
            if signal.receivers:
                return True
        return False
