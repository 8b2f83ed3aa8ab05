"""The one error vocabulary of the engine; :mod:`dockerd.api` translates it to HTTP once.

Statuses are those of the Engine API description; messages are what the user reads after
``Error response from daemon:``.
"""

from __future__ import annotations

__all__ = [
    "Conflict",
    "EngineError",
    "Forbidden",
    "InvalidParameter",
    "NotFound",
    "NotModified",
    "NotSupported",
    "SystemFailure",
    "Unauthorized",
    "Unavailable",
]


class EngineError(Exception):
    """Something that the engine refuses or cannot do. ``status`` is the HTTP status."""

    status = 500


class NotModified(EngineError):
    """Already in the state asked for (a start of a running container)."""

    status = 304


class InvalidParameter(EngineError):
    """The request is wrong in itself; the message names the field."""

    status = 400


class Unauthorized(EngineError):
    """A registry refused the credentials."""

    status = 401


class Forbidden(EngineError):
    """Understood and refused."""

    status = 403


class NotFound(EngineError):
    """The thing named does not exist."""

    status = 404


class Conflict(EngineError):
    """The thing is in a state that does not allow this, or the name is taken."""

    status = 409


class SystemFailure(EngineError):
    """A layer below failed."""

    status = 500


class NotSupported(EngineError):
    """Known to the API, not offered by this engine; the message names the option."""

    status = 501


class Unavailable(EngineError):
    """A service needed for this does not answer, or a feature is off."""

    status = 503
