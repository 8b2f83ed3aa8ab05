"""The Engine API: paths, versions, errors. Each module of this package is one tag of the API description.

A module gives a ``blueprint`` whose paths have no version: the ``/v1.NN`` prefix is taken off before routing. Views
raise errors of :mod:`dockerd.errors`; they become ``{"message": ...}`` here, once.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.exceptions import HTTPException

from dockerd.api.headers import common_headers, unrouted_headers
from dockerd.api.request import json_reply
from dockerd.api.versions import parse_version, split_path
from dockerd.errors import EngineError, InvalidParameter
from dockerd.version import API_VERSION, MIN_API_VERSION

if TYPE_CHECKING:
    from dockerd.engine import Engine

__all__ = ["MODULES", "create_app"]

_log = logging.getLogger(__name__)

MODULES = (
    "system",
    "events",
    "containers",
    "logs",
    "attach",
    "exec",
    "archive",
    "commit",
    "images",
    "networks",
    "volumes",
    "absent",
)

_VERSION = "gantry.api_version"
"""The WSGI environment's key for the version prefix."""

# The real engine routes HEAD for these only; elsewhere it is a page that does not exist.
_HEAD_ENDPOINTS = frozenset({"system.ping", "archive.info"})

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _VersionPrefix:
    """Takes the version off the path, so that routes are written once."""

    def __init__(self, application: WSGI) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        version, path = split_path(environ.get("PATH_INFO", ""))
        environ["PATH_INFO"] = path
        environ[_VERSION] = version
        return self._application(environ, start_response)


def create_app(engine: Engine, modules: Sequence[str] = MODULES) -> flask.Flask:
    """Make the WSGI application that serves ``engine``; ``modules`` are those of this package that it routes to."""
    app = flask.Flask("dockerd", static_folder=None, template_folder=None)
    app.extensions["engine"] = engine
    app.url_map.strict_slashes = True
    app.provide_automatic_options = False  # type: ignore[attr-defined]
    for name in modules:
        app.register_blueprint(import_module(f"dockerd.api.{name}").blueprint)
    app.before_request(_negotiate)
    app.after_request(_add_headers)
    app.register_error_handler(EngineError, _engine_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.wsgi_app = _VersionPrefix(app.wsgi_app)  # type: ignore[method-assign]
    return app


class _TooOld(InvalidParameter):
    """A client of before JSON errors: it is answered in plain text."""


def _negotiate() -> flask.Response | None:
    request = flask.request
    version = request.environ.get(_VERSION)
    flask.g.api_version = parse_version(version or API_VERSION)
    if request.routing_exception is not None:
        return None  # the page does not exist, in whatever version
    if request.method == "OPTIONS":
        return _options()
    if request.method == "HEAD" and request.endpoint not in _HEAD_ENDPOINTS:
        return _page_not_found()
    if flask.g.api_version < parse_version(MIN_API_VERSION):
        raise _TooOld(
            f"client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version"
        )
    if flask.g.api_version > parse_version(API_VERSION):
        raise InvalidParameter(f"client version {version} is too new. Maximum supported API version is {API_VERSION}")
    return None


def _add_headers(response: flask.Response) -> flask.Response:
    for name, value in unrouted_headers() if getattr(flask.g, "unrouted", False) else common_headers():
        response.headers.setdefault(name, value)
    return response


def _options() -> flask.Response:
    response = flask.Response(status=200)
    del response.headers["Content-Type"]
    return response


def _page_not_found() -> flask.Response:
    flask.g.unrouted = True
    return json_reply({"message": "page not found"}, 404)


def _engine_error(error: EngineError) -> flask.Response:
    if error.status == 304:
        return flask.Response(status=304)
    if error.status >= 500:
        _log.error("%s %s: %s", flask.request.method, flask.request.path, error)
    if isinstance(error, _TooOld):
        return flask.Response(f"{error}\n", error.status, content_type="text/plain; charset=utf-8")
    return json_reply({"message": str(error)}, error.status)


def _http_error(error: HTTPException) -> flask.Response:
    if error.code in (404, 405):
        if flask.request.method == "OPTIONS":
            return _options()
        return _page_not_found()
    if error.code is not None and 300 <= error.code < 400:
        response = flask.Response(status=error.code)
        response.headers.update(error.get_response().headers)
        return response
    return json_reply({"message": error.description or error.name}, error.code or 500)


def _unexpected_error(error: Exception) -> flask.Response:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _log.error("%s %s: %s", flask.request.method, flask.request.path, error)
        where = f"{error.filename}: " if error.filename else ""
        return json_reply({"message": f"{where}no space left on device"}, 500)
    # A fault of the engine's own. The client gets its text, the log the place where it happened.
    _log.error("%s %s failed", flask.request.method, flask.request.path, exc_info=error)
    return json_reply({"message": f"{type(error).__name__}: {error}"}, 500)
