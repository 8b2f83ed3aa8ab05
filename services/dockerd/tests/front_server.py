"""A daemon's server process with views that exercise it, for test_front_server.py: real gunicorn, no containerd."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

import flask

from dockerd import log
from dockerd.api import create_app
from dockerd.api.request import json_body, json_reply
from dockerd.config import Config, load
from dockerd.daemon import listen
from dockerd.errors import Conflict, NotModified
from dockerd.events import SCHEMA, EventLog
from dockerd.server.application import Application
from dockerd.server.hijack import refuse, upgrade
from dockerd.server.reactor import Reactor
from dockerd.server.streaming import open_stream
from gantry.database import Database

probe = flask.Blueprint("probe", __name__)


@probe.post("/probe/echo")
def echo() -> flask.Response:
    """Return the body."""
    return json_reply(dict(json_body()))


@probe.post("/probe/upgrade")
def take_connection() -> flask.Response:
    """Say what came early, then answer in capitals until the client has finished."""

    def serve(client: socket.socket) -> None:
        while data := client.recv(65536):
            client.sendall(data.upper())
        client.sendall(b"<bye>")
        client.close()

    def take(client: socket.socket, early: bytes) -> None:
        client.sendall(b"<" + early + b">")
        threading.Thread(target=serve, args=(client,)).start()

    upgrade(take, multiplexed=flask.request.args.get("raw") is None)


@probe.post("/probe/refuse")
def refuse_connection() -> flask.Response:
    """Refuse an upgrade as attach does."""
    refuse(404, "Not Found", "No such container: x")


@probe.get("/probe/forever")
def forever() -> flask.Response:
    """A stream that nobody writes to."""
    open_stream().detach()


@probe.post("/probe/publish")
def publish() -> flask.Response:
    """Make an event."""
    flask.current_app.extensions["engine"].events.publish("container", "start", "abc", {"name": "n"})
    return flask.Response(status=204)


@probe.get("/probe/fail/<kind>")
def fail(kind: str) -> flask.Response:
    """Fail in some way."""
    raise {"conflict": Conflict("it is taken"), "same": NotModified(""), "bug": ZeroDivisionError("oops")}[kind]


@probe.get("/probe/pid")
def pid() -> flask.Response:
    """Which worker this is."""
    engine = flask.current_app.extensions["engine"]
    return json_reply({"worker": os.getpid(), "master": os.getppid(), "labels": list(engine.config.labels)})


class Server(Application):
    """The daemon's server with an engine of events only."""

    def load(self) -> Any:
        reactor = Reactor()
        reactor.start()
        events = EventLog(Database(os.path.join(self._config.data_root, "e.db"), [SCHEMA]))
        engine: Any = SimpleNamespace(config=self._config, reactor=reactor, events=events, close=lambda: None)
        engine.containers = SimpleNamespace(all=list)
        app = create_app(engine, ("system", "events"))
        app.register_blueprint(probe)
        return app


def main(directory: str) -> None:
    """Serve on ``directory/s.sock``; ``directory/daemon.json`` is the configuration."""
    flags = {"data_root": directory, "exec_root": directory, "config_file": os.path.join(directory, "daemon.json")}

    def reread() -> Config:
        return load(flags)

    config = reread()
    log.set_up("info", False)
    listener = listen(os.path.join(directory, "s.sock"), None)
    print(json.dumps({"ready": True}), flush=True)
    Server(config, [listener.detach()], "/nowhere", lambda: None, reread).run()


if __name__ == "__main__":
    main(sys.argv[1])
