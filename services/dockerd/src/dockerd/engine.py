"""What the engine is made of, and the order in which its parts come up and go down.

An :class:`Engine` lives in a worker process: it is built after the fork, because a process that has used gRPC must
not be forked. Every part gets what it needs in its constructor, does no work there beyond opening things, and starts in
:meth:`Engine.start`, from the bottom up; reconciliation with the world that outlived the last engine happens there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import flask

from dockerd.config import Config
from dockerd.containerd_process import Supervisor
from dockerd.events import EventLog
from dockerd.server.reactor import Reactor
from dockerd.stdio import StreamService
from dockerd.stdio.inotify import DirectoryWatcher
from dockerd.store import open_database
from gantry.database import Database

if TYPE_CHECKING:
    from dockerd.containerd_client import Client
    from dockerd.containers import ContainerService, ExecService
    from dockerd.images import ImageService
    from dockerd.networks import NetworkService
    from dockerd.volumes import VolumeService

__all__ = ["NAMESPACE", "Engine", "build", "current_engine"]

NAMESPACE = "moby"
"""The containerd namespace of everything that the engine makes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """The parts of a running engine. One per worker process."""

    config: Config
    database: Database
    containerd: Client
    reactor: Reactor
    events: EventLog
    streams: StreamService
    images: ImageService
    networks: NetworkService
    volumes: VolumeService
    containers: ContainerService
    execs: ExecService
    log_watcher: DirectoryWatcher
    supervisor: Supervisor | None

    def start(self) -> None:
        """Bring the parts up: after this every request can be served."""
        self.reactor.start()
        if self.supervisor is not None:
            self.supervisor.start()
        self.streams.start()
        self.volumes.start()
        self.images.start()
        self.networks.start()
        self.containers.start()

    def close(self) -> None:
        """Let go of everything; running containers, their networks and their sessions go on."""
        if self.supervisor is not None:
            self.supervisor.close()
        for part in (
            self.containers,
            self.networks,
            self.images,
            self.volumes,
            self.streams,
            self.reactor,
            self.containerd,
        ):
            part.close()
        self.database.close()


def build(config: Config, containerd_address: str) -> Engine:
    """Compose an engine from ``config``; ``containerd_address`` is the path of containerd's gRPC socket."""
    from dockerd.containerd_client import Client
    from dockerd.containers import ContainerService, ExecService
    from dockerd.images import ImageService
    from dockerd.networks import NetworkService
    from dockerd.volumes import VolumeService

    database = open_database(config.data_root)
    containerd = Client(containerd_address, NAMESPACE)
    reactor = Reactor()
    events = EventLog(database)
    streams = StreamService(config, containerd, reactor)
    images = ImageService(config, database, containerd, events)
    networks = NetworkService(config, database, events)
    volumes = VolumeService(config, database, events)
    containers = ContainerService(
        config=config,
        database=database,
        containerd=containerd,
        reactor=reactor,
        events=events,
        streams=streams,
        images=images,
        networks=networks,
        volumes=volumes,
    )
    execs = ExecService(containers=containers, containerd=containerd, events=events, streams=streams)
    containers.check_health(execs)
    return Engine(
        config=config,
        database=database,
        containerd=containerd,
        reactor=reactor,
        events=events,
        streams=streams,
        images=images,
        networks=networks,
        volumes=volumes,
        containers=containers,
        execs=execs,
        log_watcher=DirectoryWatcher(reactor),
        supervisor=None if config.containerd else Supervisor(config, reactor),
    )


def current_engine() -> Engine:
    """Return the engine that serves the current request."""
    return cast("Engine", flask.current_app.extensions["engine"])
