"""Further processes in containers: ``/containers/{id}/exec`` and ``/exec``."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import flask

from dockerd import errors
from dockerd.api import request
from dockerd.api.containers import terminal_size
from dockerd.api.headers import common_headers
from dockerd.containers.exec import Exec
from dockerd.containers.model import Container
from dockerd.engine import Engine, current_engine
from dockerd.server.hijack import upgrade
from dockerd.stdio import AttachOptions

__all__ = ["blueprint"]

blueprint = flask.Blueprint("exec", __name__)


@blueprint.post("/containers/<reference>/exec")
def create(reference: str) -> flask.Response:
    """Prepare a process in a running container."""
    made = current_engine().execs.create(reference, request.json_body())
    return request.json_reply({"Id": made.id}, status=201)


@blueprint.post("/exec/<exec_id>/start")
def start(exec_id: str) -> flask.Response:
    """Run a prepared process; the connection becomes its streams, unless it is to run detached."""
    engine = current_engine()
    body = request.json_body(required=False)
    console_size = body.get("ConsoleSize")
    found = engine.execs.get(exec_id)
    if not isinstance(console_size, list) or len(console_size) != 2 or not found.request.tty:
        console_size = None
    options = AttachOptions(
        stdin=found.request.attach_stdin,
        stdout=found.request.attach_stdout,
        stderr=found.request.attach_stderr,
        multiplexed=not found.request.tty,
        detach_keys=found.request.detach_keys,
        close_stdin_on_eof=True,
    )
    options.check()
    container = engine.execs.prepare(exec_id, console_size=console_size)
    if not body.flag("Detach"):
        _start_attached(engine, container, exec_id, options)
    try:
        engine.execs.start(exec_id)
    finally:
        engine.execs.clean(exec_id)
    return flask.Response(status=200)


def _start_attached(engine: Engine, container: Container, exec_id: str, options: AttachOptions) -> NoReturn:
    def take(client: socket.socket, early_input: bytes) -> None:
        engine.streams.start_exec(container, exec_id, client, early_input, options, lambda: engine.execs.start(exec_id))
        # Not before: a deletion ends the connection in which the reason of a failure is told.
        engine.execs.clean(exec_id)

    upgrade(take, multiplexed=options.multiplexed, headers=common_headers())


@blueprint.post("/exec/<exec_id>/resize")
def resize(exec_id: str) -> flask.Response:
    """Set the size of the process's terminal."""
    height, width = terminal_size()
    current_engine().execs.resize(exec_id, height, width)
    return flask.Response(status=200)


@blueprint.get("/exec/<exec_id>/json")
def inspect(exec_id: str) -> flask.Response:
    """Show one exec."""
    engine = current_engine()
    found = engine.execs.get(exec_id)
    if engine.containers.find(found.container_id) is None:
        raise errors.NotFound(f"No such exec instance: {exec_id}")
    return request.json_reply(_body(found))


def _body(found: Exec) -> dict[str, Any]:
    asked = found.request
    process: dict[str, Any] = {
        "tty": asked.tty,
        "entrypoint": found.command[0],
        "arguments": found.command[1:],
        "privileged": asked.privileged,
    }
    if asked.user:
        process["user"] = asked.user
    return {
        "ID": found.id,
        "Running": found.running,
        "ExitCode": found.exit_code,
        "ProcessConfig": process,
        "OpenStdin": asked.attach_stdin,
        "OpenStderr": asked.attach_stderr,
        "OpenStdout": asked.attach_stdout,
        "CanRemove": False,
        "ContainerID": found.container_id,
        "DetachKeys": asked.detach_keys,
        "Pid": found.pid,
    }
