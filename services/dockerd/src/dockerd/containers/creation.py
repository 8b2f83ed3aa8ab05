"""Making a container: its record, its directory, its volumes and its root file system."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dockerd import errors
from dockerd.containers import create, devices, host, mounts, names
from dockerd.containers.create import Settings
from dockerd.containers.model import Container, MountPoint
from dockerd.containers.parts import OWNER_LABEL, Parts
from dockerd.containers.registry import Handle
from dockerd.containers.rootfs import open_rootfs
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2

if TYPE_CHECKING:
    from dockerd.images import Image
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Creation"]

_log = logging.getLogger(__name__)


class Creation:
    """Creates containers, and unmakes those that could not be finished."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def create(self, body: Mapping[str, Any], name: str = "") -> tuple[Container, list[str]]:
        """Create a container from a create request's body; returns it and the warnings for the user.

        Raises NotFound for an unknown image, Conflict for a name that is taken, InvalidParameter and NotSupported
        naming the option. After an error nothing is left.
        """
        parts = self._parts
        wanted = names.check_name(name) if name else ""
        request = create.parse(body)
        image = parts.images.resolve(request.config.image)
        container_id = create.new_id()
        settings = create.settle(request, image.config, container_id, parts.config, host.current())
        parts.networks.check(settings.endpoints)
        devices.check_rules(settings.host_config)
        points = mounts.plan(settings.host_config, settings.config.volumes or (), self._inherited(settings))
        draft = Container(
            id=container_id,
            name=wanted,
            created=time.time_ns(),
            image=request.config.image,
            image_id=image.id,
            chain_id=image.chain_id,
            config=settings.config,
            host_config=settings.host_config,
            path=settings.path,
            args=settings.args,
            mounts=points,
            endpoints=settings.endpoints,
            snapshotter=parts.config.storage_driver,
            root=parts.config.container_root(container_id),
        )
        draft = self._reserve(draft)
        try:
            container, root_mounts = self._make(draft, image)
        except BaseException:
            self.unmake(draft)
            raise
        handle = Handle(container)
        handle.root_mounts = root_mounts
        handle.pristine = True
        handle.clean = True
        parts.registry.add(handle)
        parts.publish(container, "create")
        return container, settings.warnings

    def unmake(self, container: Container) -> None:
        """Remove whatever there is of a container that was not finished. Safe to repeat."""
        parts = self._parts
        remove_snapshot(parts, container)
        named = {point.name for point in container.mounts if not point.anonymous}
        for volume in parts.volumes.release(container.id):
            if volume not in named:
                parts.volumes.remove(volume, force=True)
        shutil.rmtree(container.root, ignore_errors=True)
        parts.store.delete(container.id)

    def _inherited(self, settings: Settings) -> dict[str, Sequence[MountPoint]]:
        found: dict[str, Sequence[MountPoint]] = {}
        for text in settings.host_config.volumes_from or ():
            name = text.partition(":")[0]
            found[name] = self._parts.registry.find(name).container.mounts
        return found

    def _reserve(self, draft: Container) -> Container:
        attributes = create.log_attributes(draft.id, draft.name, draft.config, draft.log_options)
        if draft.name:
            draft = msgspec.structs.replace(draft, log_attributes=attributes)
            self._parts.store.reserve(draft)
            return draft
        for candidate in names.candidates():
            attributes = create.log_attributes(draft.id, candidate, draft.config, draft.log_options)
            draft = msgspec.structs.replace(draft, name=candidate, log_attributes=attributes)
            try:
                self._parts.store.reserve(draft)
            except errors.Conflict:
                continue
            return draft
        raise AssertionError("the candidates do not end")

    def _make(self, draft: Container, image: Image) -> tuple[Container, list[mount_pb2.Mount]]:
        os.makedirs(draft.root, mode=0o710, exist_ok=True)
        container = msgspec.structs.replace(draft, mounts=self._volumes(draft))
        try:
            root_mounts = self._prepare(draft)
        except errors.NotFound:  # of the parent: an image that was pulled but never used
            self._parts.images.ensure_unpacked(image)
            root_mounts = self._prepare(draft)
        self._populate(container, root_mounts)
        self._parts.store.complete(container)
        return container, root_mounts

    def _prepare(self, draft: Container) -> list[mount_pb2.Mount]:
        reply = self._parts.containerd.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=draft.snapshotter,
                key=draft.id,
                parent=draft.chain_id,
                labels={
                    # Nothing else refers to the snapshot before the container is started.
                    "containerd.io/gc.root": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    OWNER_LABEL: self._parts.config.data_root,
                },
            )
        )
        return list(reply.mounts)

    def _volumes(self, draft: Container) -> list[MountPoint]:
        """The mount points with their volumes made and in use; a bind's missing source is made, as ``-v`` has it."""
        parts = self._parts
        requests = {request.target: request for request in draft.host_config.mounts or ()}
        points = []
        for point in draft.mounts:
            if point.type == "bind":
                if not os.path.exists(point.source):
                    os.makedirs(point.source, exist_ok=True)
                points.append(point)
                continue
            if point.type != "volume":
                points.append(point)
                continue
            request = requests.get(point.destination)
            options = request.volume_options if request else None
            driver = options.driver_config if options else None
            volume = parts.volumes.ensure(
                point.name or None,
                driver=point.driver,
                driver_opts=driver.options if driver else None,
                labels=options.labels if options else None,
            )
            parts.volumes.acquire(volume.name, draft.id)
            points.append(msgspec.structs.replace(point, name=volume.name, source=volume.mountpoint))
        return points

    def _populate(self, container: Container, root_mounts: list[mount_pb2.Mount]) -> None:
        parts = self._parts
        empty = [
            point
            for point in container.mounts
            if point.type == "volume" and point.copy_up and parts.volumes.is_empty(point.name)
        ]
        if not empty:
            return
        with open_rootfs(root_mounts) as root:
            for point in empty:
                parts.volumes.populate(point.name, f"/proc/self/fd/{root}", point.destination)


def remove_snapshot(parts: Parts, container: Container) -> None:
    """Remove the container's root file system, if there is one."""
    try:
        parts.containerd.snapshots.Remove(
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=container.snapshotter, key=container.id)
        )
    except errors.NotFound:
        return
