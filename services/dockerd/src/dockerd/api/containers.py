"""Containers: ``/containers``, without logs and attach, which have modules of their own."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.api.later import reply_when_done
from dockerd.api.waiting import reply_when
from dockerd.containers import filters, stats, top, views
from dockerd.containers.model import Container
from dockerd.containers.wait import Condition
from dockerd.engine import Engine, current_engine
from dockerd.server.streaming import ResponseStream, open_stream

__all__ = ["blueprint"]

blueprint = flask.Blueprint("containers", __name__)

_STATS_INTERVAL = 1.0


@blueprint.post("/containers/create")
def create() -> flask.Response:
    """Make a container."""
    engine = current_engine()
    body = request.json_body()
    platform = request.query_text("platform")
    if platform:
        _check_platform(engine, str(body.get("Image") or ""), platform)
    container, warnings = engine.containers.create(body, request.query_text("name"))
    return request.json_reply({"Id": container.id, "Warnings": warnings}, status=201)


def _check_platform(engine: Engine, reference: str, platform: str) -> None:
    image = engine.images.resolve(reference)
    if re.match(r"[a-z0-9]+/[a-z0-9]+", platform) is None:
        raise errors.InvalidParameter(f'invalid platform: "{platform}"')
    system, architecture = platform.split("/")[:2]
    if (system, architecture) != (image.os, image.architecture):
        raise errors.NotFound(
            f"image with reference {reference} was found but does not provide the specified platform ({platform})"
        )


@blueprint.get("/containers/json")
def list_containers() -> flask.Response:
    """List containers."""
    engine = current_engine()
    chosen = filters.select(
        engine.containers.all(),
        request.query_filters(filters.LIST_FILTERS),
        filters.Selection(
            image_id=lambda reference: _image_id(engine, reference),
            container=engine.containers.get,
            settings=lambda container: _settings(engine, container),
        ),
        everything=request.query_bool("all"),
        limit=max(0, request.query_int("limit")),
    )
    sizes = _sizes(engine, chosen) if request.query_bool("size") else {}
    return request.json_reply([views.listed(entry, _settings(engine, entry), sizes.get(entry.id)) for entry in chosen])


def _image_id(engine: Engine, reference: str) -> str:
    try:
        return engine.images.resolve(reference).id
    except errors.NotFound:
        return ""


def _settings(engine: Engine, container: Container) -> dict[str, Any]:
    return engine.networks.settings(
        container.id,
        container.host_config.network_mode,
        container.endpoints,
        name=container.name,
        hostname=container.config.hostname,
    )


def _sizes(engine: Engine, containers: list[Container]) -> dict[str, dict[str, int]]:
    written = engine.containers.snapshot_usage(containers)
    image_sizes: dict[str, int] = {}
    for container in containers:
        if container.image_id not in image_sizes:
            try:
                image_sizes[container.image_id] = engine.images.resolve(container.image_id).size
            except errors.NotFound:
                image_sizes[container.image_id] = 0
    return {
        container.id: {
            "SizeRw": written[container.id],
            "SizeRootFs": written[container.id] + image_sizes[container.image_id],
        }
        for container in containers
    }


@blueprint.get("/containers/<reference>/json")
def inspect(reference: str) -> flask.Response:
    """Show one container."""
    engine = current_engine()
    container = engine.containers.get(reference)
    body = views.inspect(container, _settings(engine, container), engine.execs.ids(container.id))
    if request.query_bool("size"):
        body |= _sizes(engine, [container])[container.id]
    return request.json_reply(body)


@blueprint.post("/containers/<reference>/start")
def start(reference: str) -> flask.Response:
    """Run a container."""
    for option in ("checkpoint", "checkpoint-dir"):
        if request.query_text(option):
            raise errors.NotSupported(f"starting from a checkpoint ({option}) is not supported by this engine")
    current_engine().containers.start_container(reference)
    return request.no_content()


@blueprint.post("/containers/<reference>/stop")
def stop(reference: str) -> flask.Response:
    """Stop a container."""
    containers, timeout, signal = current_engine().containers, _timeout(), request.query_text("signal")
    return reply_when_done(lambda done: containers.begin_stop(reference, timeout, signal, done))


@blueprint.post("/containers/<reference>/restart")
def restart(reference: str) -> flask.Response:
    """Stop a container and run it again."""
    containers, timeout, signal = current_engine().containers, _timeout(), request.query_text("signal")
    return reply_when_done(lambda done: containers.begin_restart(reference, timeout, signal, done))


def _timeout() -> int | None:
    return request.query_int("t") if request.query_text("t") else None


@blueprint.post("/containers/<reference>/kill")
def kill(reference: str) -> flask.Response:
    """Send a container a signal."""
    current_engine().containers.kill(reference, request.query_text("signal"))
    return request.no_content()


@blueprint.post("/containers/<reference>/pause")
def pause(reference: str) -> flask.Response:
    """Freeze a container."""
    current_engine().containers.pause(reference)
    return request.no_content()


@blueprint.post("/containers/<reference>/unpause")
def unpause(reference: str) -> flask.Response:
    """Let a frozen container go on."""
    current_engine().containers.unpause(reference)
    return request.no_content()


@blueprint.post("/containers/<reference>/rename")
def rename(reference: str) -> flask.Response:
    """Give a container another name."""
    current_engine().containers.rename(reference, request.query_text("name"))
    return request.no_content()


@blueprint.post("/containers/<reference>/resize")
def resize(reference: str) -> flask.Response:
    """Set the size of a container's terminal."""
    height, width = terminal_size()
    current_engine().containers.resize(reference, height, width)
    return flask.Response(status=200)


def terminal_size() -> tuple[int, int]:
    """Height and width of a resize request. Raises InvalidParameter in the real engine's words."""
    sizes = []
    for name, words in (("h", "height"), ("w", "width")):
        text = request.query_text(name)
        if not text.isascii() or not text.isdecimal() or int(text) > 65535:
            raise errors.InvalidParameter(f'invalid resize {words} "{text}": invalid syntax')
        sizes.append(int(text))
    return sizes[0], sizes[1]


@blueprint.post("/containers/<reference>/wait")
def wait(reference: str) -> flask.Response:
    """Answer when a container has ended, or is removed. No thread waits for it."""
    engine = current_engine()
    condition = Condition.parse(request.query_text("condition"))
    container_id = engine.containers.get(reference).id
    reply_when(engine, container_id, condition)


@blueprint.get("/containers/<reference>/top")
def show_processes(reference: str) -> flask.Response:
    """Show a container's processes."""
    engine = current_engine()
    container = engine.containers.get(reference)
    if not container.state.running:
        raise errors.Conflict(f"container {container.id} is not running")
    arguments = request.query_text("ps_args", "-ef")
    table = top.table(engine.containers.pids(container), arguments)
    engine.containers.publish(container, "top")
    return request.json_reply({"Processes": table.rows, "Titles": table.titles})


@blueprint.get("/containers/<reference>/stats")
def show_stats(reference: str) -> flask.Response:
    """Show a container's use of resources: once, or every second."""
    engine = current_engine()
    container = engine.containers.get(reference)
    go_on = request.query_bool("stream", True)
    if go_on or not request.query_bool("one-shot"):
        _stream_stats(engine, container.id, go_on)
    return request.json_reply(_sample(engine, container, None))


def _stream_stats(engine: Engine, container_id: str, go_on: bool) -> NoReturn:
    stream = open_stream(content_type="application/json")
    _Sampler(engine, container_id, stream, go_on).begin()
    stream.detach()


def _sample(engine: Engine, container: Container, previous: dict[str, Any] | None) -> dict[str, Any]:
    metrics = engine.containers.metrics(container) if container.state.running else None
    if metrics is None:
        return stats.empty(container)
    return stats.sample(container, *metrics, previous)


class _Sampler:
    """Feeds one stats response, from a pool thread once a second."""

    def __init__(self, engine: Engine, container_id: str, stream: ResponseStream, go_on: bool) -> None:
        self._engine = engine
        self._id = container_id
        self._stream = stream
        self._go_on = go_on
        self._previous: dict[str, Any] | None = None

    def begin(self) -> None:
        """Take the first reading."""
        self._engine.containers.in_background(self._tick)

    def _tick(self) -> None:
        container = self._engine.containers.find(self._id)
        if container is None or self._stream.closed:
            self._stream.close()
            return
        try:
            body = _sample(self._engine, container, self._previous)
        except errors.EngineError:  # it has just ended
            body = stats.empty(container)
        # What is used since the reading before is the point: a single answer needs two readings.
        first, self._previous = self._previous is None, body if container.state.running else None
        if self._go_on or not first or not container.state.running:
            self._stream.write(request.encode_json(body))
        if not self._go_on and (not first or not container.state.running):
            self._stream.close()
            return
        self._engine.reactor.call_later(_STATS_INTERVAL, self.begin)


@blueprint.post("/containers/<reference>/update")
def update(reference: str) -> flask.Response:
    """Change limits and the restart policy of a container."""
    warnings = current_engine().containers.update(reference, request.json_body())
    return request.json_reply({"Warnings": warnings or None})


@blueprint.delete("/containers/<reference>")
def remove(reference: str) -> flask.Response:
    """Remove a container."""
    if request.query_bool("link"):
        raise errors.NotSupported("removing a link is not supported: this engine has no links")
    current_engine().containers.remove(reference, force=request.query_bool("force"), volumes=request.query_bool("v"))
    return request.no_content()


@blueprint.post("/containers/prune")
def prune() -> flask.Response:
    """Remove all containers that do not run."""
    engine = current_engine()
    matches = filters.prune_predicate(request.query_filters(filters.PRUNE_FILTERS))
    sizes: dict[str, int] = {}

    def chosen(container: Container) -> bool:
        if not matches(container):
            return False
        sizes.update(engine.containers.snapshot_usage([container]))
        return True

    removed = engine.containers.prune(chosen)
    reclaimed = sum(sizes[container.id] for container in removed)
    engine.events.publish("container", "prune", "", {"reclaimed": str(reclaimed)})
    return request.json_reply(
        {"ContainersDeleted": [container.id for container in removed] or None, "SpaceReclaimed": reclaimed}
    )
