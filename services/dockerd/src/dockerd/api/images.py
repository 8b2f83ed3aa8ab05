"""Images: ``/images`` and ``/distribution``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.engine import current_engine
from dockerd.images import Image, ImportRequest, parse_reference
from dockerd.images.listing import created_seconds, seconds
from dockerd.images.progress import error_line
from dockerd.images.registries import decode_credentials
from gantry.oci import platform as platforms
from gantry.oci.digest import is_digest
from gantry.oci.platform import InvalidPlatform, Platform
from gantry.oci.reference import InvalidReference, Reference

__all__ = ["blueprint"]

blueprint = flask.Blueprint("images", __name__)

Json = dict[str, Any]

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20
# What an image's configuration always shows, set or not.
_CONFIG: Json = {
    "Cmd": None,
    "Entrypoint": None,
    "Env": None,
    "Labels": None,
    "OnBuild": None,
    "User": "",
    "Volumes": None,
    "WorkingDir": "",
}


@blueprint.get("/images/json")
def list_images() -> flask.Response:
    """List images."""
    images = current_engine().images.list(request.query_filters())
    return request.json_reply([summary(image) for image in images])


@blueprint.post("/images/create")
def create_image() -> flask.Response:
    """Pull an image (``fromImage``), or make one of an archive (``fromSrc``)."""
    platform = _platform(request.query_text("platform"))
    if request.query_text("fromImage"):
        return _pull(platform)
    source = request.query_text("fromSrc")
    if source == "-":
        return _import(platform)
    if not source:
        raise errors.InvalidParameter("fromImage or fromSrc must be given")
    raise errors.NotSupported(
        f"importing from a URL ({source}) is not supported by this engine: send the archive itself"
    )


def _pull(platform: Platform | None) -> flask.Response:
    reference = parse_reference(request.query_text("fromImage"))
    tag = request.query_text("tag")
    if tag:
        reference = _with_tag_or_digest(reference, tag)
    credentials = decode_credentials(flask.request.headers.get("X-Registry-Auth", ""))
    return _lines(current_engine().images.exchange.pull(reference, credentials, platform))


def _with_tag_or_digest(reference: Reference, tag: str) -> Reference:
    if is_digest(tag):
        return parse_reference(f"{reference.name}@{tag}")
    try:
        return reference.with_tag(tag)
    except InvalidReference as error:
        raise errors.InvalidParameter(str(error)) from error


def _import(platform: Platform | None) -> flask.Response:
    name, tag = request.query_text("repo"), request.query_text("tag")
    if name and tag:
        name = str(_with_tag_or_digest(parse_reference(name), tag))
    message = request.query_text("message") or "Imported from -"
    asked = ImportRequest(tuple(flask.request.args.getlist("changes")), message, platform)
    body = flask.request.stream
    image = current_engine().images.import_archive(body, name, asked)
    return _lines(iter([{"status": image.id}]))


@blueprint.post("/images/load")
def load_images() -> flask.Response:
    """Take in an archive of images."""
    images = current_engine().images
    body = flask.request.stream
    pieces = iter(lambda: body.read(_CHUNK), b"")
    loaded = images.exchange.load(pieces, _json_platform(), quiet=request.query_bool("quiet", default=True))
    return _lines(loaded)


@blueprint.get("/images/get")
def save_images() -> flask.Response:
    """Write images to an archive."""
    names = [name for value in flask.request.args.getlist("names") for name in value.split(",") if name]
    if not names:
        raise errors.InvalidParameter("no image was named")
    return _archive(names)


@blueprint.get("/images/<path:name>/get")
def save_image(name: str) -> flask.Response:
    """Write one image to an archive."""
    return _archive([name])


@blueprint.get("/images/search")
def search_images() -> NoReturn:
    """Refused."""
    raise errors.NotSupported("searching a registry is not supported by this engine version")


@blueprint.post("/images/prune")
def prune_images() -> flask.Response:
    """Remove unused images."""
    pruned = current_engine().images.prune(request.query_filters())
    rows = [{kind: value} for kind, value in pruned.rows]
    return request.json_reply({"ImagesDeleted": rows or None, "SpaceReclaimed": pruned.space_reclaimed})


@blueprint.get("/images/<path:name>/json")
def inspect_image(name: str) -> flask.Response:
    """Show one image."""
    return request.json_reply(_details(current_engine().images.resolve(name, _json_platform())))


@blueprint.get("/images/<path:name>/history")
def image_history(name: str) -> flask.Response:
    """Show how an image was made."""
    steps = current_engine().images.history(name)
    rows = [
        {
            "Comment": step.comment,
            "Created": int(seconds(step.created)),
            "CreatedBy": step.created_by,
            "Id": step.id,
            "Size": step.size,
            "Tags": list(step.tags) or None,
        }
        for step in steps
    ]
    return request.json_reply(rows)


@blueprint.post("/images/<path:name>/tag")
def tag_image(name: str) -> flask.Response:
    """Give an image one more name."""
    target = parse_reference(request.query_text("repo"))
    tag = request.query_text("tag")
    if tag:
        target = _with_tag_or_digest(target, tag)
    current_engine().images.tag(name, str(target))
    return flask.Response(status=201)


@blueprint.post("/images/<path:name>/push")
def push_image(name: str) -> flask.Response:
    """Send an image to its registry."""
    reference = parse_reference(name)
    tag = request.query_text("tag") or reference.tag or ""
    credentials = decode_credentials(flask.request.headers.get("X-Registry-Auth", ""))
    lines = current_engine().images.exchange.push(reference.without_tag(), tag, credentials)
    return _lines(lines)


@blueprint.delete("/images/<path:name>")
def remove_image(name: str) -> flask.Response:
    """Remove a name, or an image."""
    deleted = current_engine().images.remove(name, force=request.query_bool("force"))
    return request.json_reply([{kind: value} for kind, value in deleted.rows])


@blueprint.get("/distribution/<path:name>/json")
def inspect_distribution(name: str) -> NoReturn:
    """Refused."""
    raise errors.NotSupported(
        f"asking a registry about {name} without pulling it is not supported by this engine version"
    )


def _lines(lines: Iterator[Json]) -> flask.Response:
    """A response of JSON lines. An error before the first is an answer with a status, later ones are the last line."""
    first = next(lines, None)

    def body() -> Iterable[bytes]:
        if first is not None:
            yield request.encode_json(first)
        try:
            for line in lines:
                yield request.encode_json(line)
        except errors.EngineError as error:
            yield request.encode_json(error_line(str(error)))
        except Exception as error:
            _log.exception("a transfer failed")
            yield request.encode_json(error_line(f"internal error: {error}"))

    return flask.Response(body(), content_type="application/json")


def _archive(names: Sequence[str]) -> flask.Response:
    pieces = current_engine().images.exchange.save(names, _json_platform())
    first = next(pieces, b"")

    def body() -> Iterable[bytes]:
        yield first
        yield from pieces

    return flask.Response(body(), content_type="application/x-tar")


def _platform(text: str) -> Platform | None:
    if not text:
        return None
    try:
        return platforms.parse(text)
    except InvalidPlatform as error:
        raise errors.InvalidParameter(str(error)) from error


def _json_platform() -> Platform | None:
    """``platform`` as a JSON object: inspect, load and save since API 1.48."""
    text = request.query_text("platform")
    if not text:
        return None
    try:
        value = json.loads(text)
        return Platform(value["os"], value["architecture"], value.get("variant") or "").normalized()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InvalidParameter(f"failed to parse platform: {text}") from error


def summary(image: Image) -> Json:
    """How a listing shows an image."""
    body: Json = {
        "Containers": -1,
        "Created": int(created_seconds(image)),
        "Id": image.id,
        "Labels": dict(image.labels) or None,
        "ParentId": "",
        "RepoDigests": list(image.repo_digests),
        "RepoTags": list(image.repo_tags),
        "SharedSize": -1,
        "Size": image.size,
    }
    if not request.api_at_least("1.44"):
        body["VirtualSize"] = image.size
    if not request.api_at_least("1.43"):
        # Older clients are told what an absent name looks like.
        body["RepoDigests"] = body["RepoDigests"] or ["<none>@<none>"]
        body["RepoTags"] = body["RepoTags"] or ["<none>:<none>"]
    return body


def _details(image: Image) -> Json:
    document = image.content.config
    body: Json = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": _comment(document),
        "Created": image.created or None,
        "DockerVersion": document.get("docker_version") or "",
        "Author": document.get("author") or "",
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Data": None, "Name": current_engine().config.storage_driver},
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in image.content.diff_ids]},
        "Metadata": {"LastTagTime": _moment(image.records[0].updated_at)},
        "Config": {**_CONFIG, **image.config},
    }
    if image.content.platform.variant:
        body["Variant"] = image.content.platform.variant
    if not request.api_at_least("1.44"):
        body["VirtualSize"] = image.size
    return body


def _moment(since_epoch: float) -> str:
    """RFC 3339 with nanoseconds."""
    return datetime.fromtimestamp(since_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _comment(document: Any) -> str:
    """The comment of the last step, where that is what the image was made with."""
    steps = document.get("history")
    last = steps[-1] if isinstance(steps, list) and steps else {}
    return str(document.get("comment") or (last.get("comment") if isinstance(last, dict) else "") or "")
