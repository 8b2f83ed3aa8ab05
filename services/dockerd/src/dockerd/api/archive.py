"""Files of containers: ``/containers/{id}/archive``, ``export`` and ``changes``."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.containers.archive import PathStatus
from dockerd.engine import current_engine

__all__ = ["blueprint"]

blueprint = flask.Blueprint("archive", __name__)


@blueprint.route("/containers/<reference>/archive", methods=["HEAD"])
def info(reference: str) -> flask.Response:
    """Tell what is at a path of a container, in a header."""
    found = current_engine().containers.path_status(reference, _path())
    response = flask.Response(status=200)
    del response.headers["Content-Type"]
    response.headers["X-Docker-Container-Path-Stat"] = _header(found)
    return response


@blueprint.get("/containers/<reference>/archive")
def read(reference: str) -> flask.Response:
    """Send what is at a path of a container as a tar archive."""
    found, pieces = current_engine().containers.read_archive(reference, _path())
    response = flask.Response(pieces, content_type="application/x-tar")
    if _accepts_gzip():
        response.response = _compressed(pieces)
        response.headers["Content-Encoding"] = "gzip"
        response.call_on_close(pieces.close)  # type: ignore[attr-defined]
    response.headers["X-Docker-Container-Path-Stat"] = _header(found)
    return response


@blueprint.put("/containers/<reference>/archive")
def write(reference: str) -> flask.Response:
    """Extract a tar archive into a directory of a container."""
    current_engine().containers.write_archive(
        reference,
        _path(),
        flask.request.stream,
        copy_owner=request.query_bool("copyUIDGID"),
        keep_kinds=request.query_bool("noOverwriteDirNonDir"),
    )
    response = flask.Response(status=200)
    del response.headers["Content-Type"]
    return response


@blueprint.get("/containers/<reference>/export")
def export(reference: str) -> flask.Response:
    """Send the root file system of a container as a tar archive."""
    pieces = current_engine().containers.export(reference)
    return flask.Response(pieces, content_type="application/octet-stream")


@blueprint.get("/containers/<reference>/changes")
def changes(reference: str) -> flask.Response:
    """Show what a container has changed in its root file system."""
    found = current_engine().containers.changes(reference)
    return request.json_reply([{"Path": change.path, "Kind": change.kind} for change in found] or None)


def _path() -> str:
    path = request.query_text("path")
    if not path:
        raise errors.InvalidParameter("bad parameter: pathcannot be empty")
    return path


def _header(found: PathStatus) -> str:
    document = {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": found.mtime,
        "linkTarget": found.target,
    }
    return base64.b64encode(request.encode_json(document).rstrip()).decode()


def _accepts_gzip() -> bool:
    accepted = flask.request.headers.get("Accept-Encoding", "")
    return any(re.fullmatch(r"\s*gzip\s*(;\s*q=(1|0?\.0*[1-9]\d*).*)?", one) for one in accepted.split(","))


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for piece in pieces:
        data = compressor.compress(piece)
        if data:
            yield data
    yield compressor.flush()
