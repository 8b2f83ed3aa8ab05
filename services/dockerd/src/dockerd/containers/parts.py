"""What the modules of this package share: the layers below, and the containers themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dockerd.config import Config
from dockerd.containers.model import Container
from dockerd.containers.registry import Handle, Registry
from dockerd.containers.store import ContainerStore

if TYPE_CHECKING:
    from dockerd.containerd_client import Client
    from dockerd.events import EventLog
    from dockerd.images import ImageService
    from dockerd.networks import NetworkService
    from dockerd.server.reactor import Reactor
    from dockerd.stdio import StreamService
    from dockerd.volumes import VolumeService

__all__ = ["OWNER_LABEL", "RUNTIME", "Parts"]

RUNTIME = "io.containerd.runc.v2"

OWNER_LABEL = "io.gantry.dockerd.data-root"
"""On containers and snapshots in containerd: which engine made them, by its data root."""


@dataclass(frozen=True)
class Parts:
    """Everything an operation on containers works with.

    ``background`` runs what nobody waits for (exits, restarts); ``helpers`` runs the pieces of one operation that go on
    at the same time, and never waits for anything else of its own. ``followers`` hear of every event, in the thread
    that brings it about.
    """

    config: Config
    containerd: Client
    reactor: Reactor
    events: EventLog
    streams: StreamService
    images: ImageService
    networks: NetworkService
    volumes: VolumeService
    store: ContainerStore
    registry: Registry
    background: ThreadPoolExecutor
    helpers: ThreadPoolExecutor
    followers: list[Callable[[Container, str], None]] = field(default_factory=list)

    def publish(self, container: Container, action: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell of what happened to a container, with the attributes that every event of it has."""
        base = {**container.labels, "image": container.config.image, "name": container.name}
        self.events.publish("container", action, container.id, base | dict(attributes or {}))
        for follow in self.followers:
            follow(container, action)

    def in_background(self, action: Callable[[], object]) -> None:
        """Run ``action`` in a thread of the pool; once the engine goes down, nothing new is begun."""
        with contextlib.suppress(RuntimeError):  # the pool is closed
            self.background.submit(action)

    def change(self, handle: Handle, **changes: object) -> Container:
        """Give the container a changed state, recorded before it is shown. The caller holds the container."""
        container = handle.container.with_state(**changes)
        self.store.save_state(container)
        handle.container = container
        return container
