"""What the Engine API has and this engine has not: refused by name instead of being a page that does not exist."""

from __future__ import annotations

import flask

from dockerd.api.request import json_reply
from dockerd.errors import NotSupported, Unavailable

__all__ = ["blueprint"]

blueprint = flask.Blueprint("absent", __name__)

_ANY = ["GET", "POST", "PUT", "DELETE"]

# What a real engine says that is not part of a swarm: clients that list everything know it.
_NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


@blueprint.get("/plugins")
def plugins() -> flask.Response:
    """There are none."""
    return json_reply([])


@blueprint.route("/nodes", methods=["GET"])
@blueprint.route("/services", methods=["GET"])
@blueprint.route("/tasks", methods=["GET"])
@blueprint.route("/secrets", methods=["GET"])
@blueprint.route("/configs", methods=["GET"])
@blueprint.route("/swarm", methods=["GET"])
def swarm_state() -> flask.Response:
    """Answer as an engine outside a swarm."""
    raise Unavailable(_NOT_A_MANAGER)


@blueprint.route("/swarm/<path:_rest>", methods=_ANY)
@blueprint.route("/nodes/<path:_rest>", methods=_ANY)
@blueprint.route("/services/<path:_rest>", methods=_ANY)
@blueprint.route("/tasks/<path:_rest>", methods=_ANY)
@blueprint.route("/secrets/<path:_rest>", methods=_ANY)
@blueprint.route("/configs/<path:_rest>", methods=_ANY)
def swarm(_rest: str) -> flask.Response:
    """Refused."""
    raise NotSupported(f"swarm is not supported by this engine ({flask.request.path})")


@blueprint.route("/plugins/<path:_rest>", methods=_ANY)
def plugin(_rest: str) -> flask.Response:
    """Refused."""
    raise NotSupported("plugins are not supported by this engine")


@blueprint.route("/build", methods=["POST"])
@blueprint.route("/build/<path:_rest>", methods=["POST"])
@blueprint.route("/session", methods=["POST"])
@blueprint.route("/grpc", methods=["POST"])
def build(_rest: str = "") -> flask.Response:
    """Refused."""
    raise NotSupported("building images is not supported by this engine version")


@blueprint.get("/containers/<reference>/attach/ws")
def attach_websocket(reference: str) -> flask.Response:
    """Refused."""
    raise NotSupported(f"attaching to {reference} by websocket is not supported by this engine: use POST attach")
