"""Volumes: ``/volumes``."""

from __future__ import annotations

from typing import Any

import flask

from dockerd.api import request
from dockerd.engine import current_engine
from dockerd.volumes import Volume

__all__ = ["blueprint"]

blueprint = flask.Blueprint("volumes", __name__)


@blueprint.get("/volumes")
def list_volumes() -> flask.Response:
    """List volumes."""
    volumes = current_engine().volumes.list(request.query_filters())
    return request.json_reply({"Volumes": [summary(volume) for volume in volumes], "Warnings": None})


@blueprint.post("/volumes/create")
def create_volume() -> flask.Response:
    """Make a volume, or return the one with that name."""
    body = request.json_body()
    labels = body.text_map("Labels") if body.get("Labels") is not None else None
    volume = current_engine().volumes.ensure(
        body.text("Name") or None, body.text("Driver"), body.text_map("DriverOpts"), labels
    )
    return request.json_reply(summary(volume), status=201)


@blueprint.post("/volumes/prune")
def prune_volumes() -> flask.Response:
    """Remove unused volumes: since API 1.42 only anonymous ones, unless the filter ``all`` is given."""
    pruned = current_engine().volumes.prune(request.query_filters(), anonymous_only=request.api_at_least("1.42"))
    return request.json_reply({"VolumesDeleted": list(pruned.names), "SpaceReclaimed": pruned.space_reclaimed})


@blueprint.get("/volumes/<name>")
def inspect_volume(name: str) -> flask.Response:
    """Show one volume."""
    return request.json_reply(summary(current_engine().volumes.get(name)))


@blueprint.delete("/volumes/<name>")
def remove_volume(name: str) -> flask.Response:
    """Remove a volume that no container uses."""
    current_engine().volumes.remove(name, force=request.query_bool("force"))
    return request.no_content()


def summary(volume: Volume) -> dict[str, Any]:
    """How the API shows a volume."""
    return {
        "CreatedAt": volume.created_at,
        "Driver": volume.driver,
        "Labels": volume.labels,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": volume.options,
        "Scope": "local",
    }
