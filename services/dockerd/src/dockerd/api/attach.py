"""``POST /containers/{id}/attach``, and what ``POST /exec/{id}/start`` shares with it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import NoReturn

import flask

from dockerd.api.headers import common_headers
from dockerd.api.request import query_bool, query_text
from dockerd.containers.model import Container, Status
from dockerd.engine import Engine, current_engine
from dockerd.errors import Conflict, EngineError
from dockerd.server.hijack import refuse, upgrade
from dockerd.stdio import AttachOptions
from dockerd.stdio.logs import LogQuery, LogReader

__all__ = ["blueprint", "start_exec"]

blueprint = flask.Blueprint("attach", __name__)

_log = logging.getLogger(__name__)


@blueprint.post("/containers/<reference>/attach")
def attach(reference: str) -> flask.Response:
    """Connect the client to a container's streams, now or from its start on."""
    engine = current_engine()
    try:
        container = engine.containers.get(reference)
        options = _options(container)
        options.check()
        _check_attachable(container, reference)
    except EngineError as error:
        # What the real engine does here, and only here: the error is text in the form of a stream.
        refuse(error.status, HTTPStatus(error.status).phrase, str(error))
    logs, stream = query_bool("logs"), query_bool("stream")

    def take(client: socket.socket, early_input: bytes) -> None:
        if logs and not _send_log(container, client, options):
            return
        engine.containers.publish(container, "attach")
        if stream:
            engine.streams.attach(container, None, client, early_input, options)
        else:
            client.close()

    upgrade(take, multiplexed=options.multiplexed)


def start_exec(
    engine: Engine,
    container: Container,
    exec_id: str,
    options: AttachOptions,
    start: Callable[[], None],
) -> NoReturn:
    """Answer the request by a stream to an exec that containerd knows and that was not started, then ``start`` it.

    ``options.multiplexed`` is false for an exec with a terminal. ``start`` calls Tasks.Start and raises an error of
    :mod:`dockerd.errors` when that fails, having deleted the exec at containerd; the client reads it in the stream.
    """

    def take(client: socket.socket, early_input: bytes) -> None:
        engine.streams.start_exec(container, exec_id, client, early_input, options, start)

    upgrade(take, multiplexed=options.multiplexed, headers=common_headers())


def _options(container: Container) -> AttachOptions:
    return AttachOptions(
        stdin=query_bool("stdin"),
        stdout=query_bool("stdout"),
        stderr=query_bool("stderr"),
        multiplexed=not container.tty,
        detach_keys=query_text("detachKeys"),
        close_stdin_on_eof=container.stdin_once,
    )


def _check_attachable(container: Container, reference: str) -> None:
    status = container.state.status
    if status is Status.PAUSED:
        raise Conflict(f"container {reference} is paused, unpause the container before attach")
    if status is Status.RESTARTING:
        raise Conflict(f"container {reference} is restarting, wait until the container is running")


def _send_log(container: Container, client: socket.socket, options: AttachOptions) -> bool:
    """Send what the log holds, before the stream goes on. False: the client has left."""
    if not container.log_path or not (options.stdout or options.stderr):
        return True
    query = LogQuery(stdout=options.stdout, stderr=options.stderr, multiplexed=options.multiplexed)
    reader = LogReader(container.log_path, query)
    client.settimeout(30)  # a client that asks for the log reads it
    try:
        while piece := reader.read():
            client.sendall(piece)
        client.settimeout(None)
    except OSError as error:
        _log.debug("container %s: a client left while it was sent the log: %s", container.id, error)
        client.close()
        return False
    finally:
        reader.close()
    return True
