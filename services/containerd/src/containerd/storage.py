"""The storage half of the daemon, put together: content, images, snapshots, diff, transfer, garbage collection."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from containerd.config import Config
from containerd.content import ContentStore
from containerd.diff import Applier, Differ
from containerd.errors import NotFound
from containerd.events import Exchange
from containerd.gc import Collector
from containerd.images import ImageStore
from containerd.metadata.leases import LeaseStore
from containerd.mounts import Mount
from containerd.plugins import PluginInfo
from containerd.scope import Scope
from containerd.services.content import Content
from containerd.services.diff import Diff
from containerd.services.images import Images
from containerd.services.snapshots import Snapshots
from containerd.services.transfer import Transfer
from containerd.snapshots import NativeSnapshotter, OverlaySnapshotter, Snapshotter
from containerd.streaming import Streams
from containerd.transfer.service import TransferService
from gantry.contracts.containerd.events import content_pb2, snapshot_pb2
from gantry.contracts.containerd.services.content.v1.content_pb2_grpc import add_ContentServicer_to_server
from gantry.contracts.containerd.services.diff.v1.diff_pb2_grpc import add_DiffServicer_to_server
from gantry.contracts.containerd.services.images.v1 import events_pb2 as image_events
from gantry.contracts.containerd.services.images.v1.images_pb2_grpc import add_ImagesServicer_to_server
from gantry.contracts.containerd.services.snapshots.v1.snapshots_pb2_grpc import add_SnapshotsServicer_to_server
from gantry.contracts.containerd.services.transfer.v1.transfer_pb2_grpc import add_TransferServicer_to_server
from gantry.database import Database

__all__ = ["Storage", "build"]

_log = logging.getLogger(__name__)

COLLECTION_DELAY = 0.5
"""Seconds from the first change until a collection: what is deleted together goes together."""
REST = 20
"""A collection waits at least this many times as long as the last one took."""
LONG_WORK = 32
"""Transfers, diffs and collections that can run at once; more of them wait."""
PERIOD = 600.0
"""Seconds after which a collection is made anyway, for what expires by itself."""

Register = Callable[[Any, Any], None]

_EVENTS: dict[str, type[Message]] = {
    "/content/create": content_pb2.ContentCreate,
    "/content/delete": content_pb2.ContentDelete,
    "/snapshot/prepare": snapshot_pb2.SnapshotPrepare,
    "/snapshot/commit": snapshot_pb2.SnapshotCommit,
    "/snapshot/remove": snapshot_pb2.SnapshotRemove,
    "/images/create": image_events.ImageCreate,
    "/images/update": image_events.ImageUpdate,
    "/images/delete": image_events.ImageDelete,
}


class Storage:
    """Everything that stores something. Made in the event loop, which also calls all methods."""

    def __init__(
        self, config: Config, database: Database, leases: LeaseStore, events: Exchange, streams: Streams
    ) -> None:
        root = Path(config.root)
        self._loop = asyncio.get_running_loop()
        self._events = events
        notify = {"publish": self._publish, "dirty": self._dirty}
        self.content = ContentStore(root / "io.containerd.content.v1.content", database, **notify)  # type: ignore[arg-type]
        self.images = ImageStore(database, **notify)  # type: ignore[arg-type]
        self.snapshotters: dict[str, Snapshotter] = {}
        for kind in (OverlaySnapshotter, NativeSnapshotter):
            directory = root / f"io.containerd.snapshotter.v1.{kind.name}"
            self.snapshotters[kind.name] = kind(directory, database, **notify)  # type: ignore[arg-type]
        self._executor = ThreadPoolExecutor(LONG_WORK, thread_name_prefix="storage")
        applier = Applier(self.content)
        host_dir = str(config.plugin("io.containerd.transfer.v1.local").get("config_path", ""))
        self._transfers = transfers = TransferService(
            self.content, self.images, self.snapshotters, leases, applier, host_dir, released=self._dirty
        )
        self._collector = Collector(database, self.content, self.snapshotters, self._publish)
        self._collecting = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._periodic: asyncio.Task[None] | None = None
        self.servicers: Sequence[tuple[Register, object]] = (
            (add_ContentServicer_to_server, Content(self.content)),
            (add_ImagesServicer_to_server, Images(self.images, self.collect)),
            (add_SnapshotsServicer_to_server, Snapshots(self.snapshotters)),
            (add_DiffServicer_to_server, Diff(applier, Differ(self.content), self._executor)),
            (add_TransferServicer_to_server, Transfer(transfers, streams, self._executor)),
        )
        self.plugins: Sequence[PluginInfo] = tuple(_plugins(root))

    async def start(self) -> None:
        """Remove what a killed daemon has left behind."""
        for snapshotter in self.snapshotters.values():
            await asyncio.to_thread(snapshotter.recover)
        await self.collect()
        self._periodic = asyncio.create_task(self._collect_periodically())

    async def stop(self) -> None:
        """End the collections. What is half removed on the disk is removed after the next start."""
        if self._timer is not None:
            self._timer.cancel()
        if self._periodic is not None:
            self._periodic.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._transfers.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def mounts(self, namespace: str, snapshotter: str, key: str) -> Sequence[Mount]:
        """Return the mounts of a snapshot; for a thread to call. Raises :class:`NotFound`."""
        if snapshotter not in self.snapshotters:
            raise NotFound(f"snapshotter not loaded: {snapshotter}: not found")
        return self.snapshotters[snapshotter].mounts(Scope(namespace), key)

    def schedule_collection(self) -> None:
        """Say that something may have become garbage: it is collected in a moment, together with what follows."""
        if self._timer is None:
            delay = max(COLLECTION_DELAY, self._not_before - self._loop.time())
            self._timer = self._loop.call_later(delay, self._begin)

    async def collect(self) -> None:
        """Collect the garbage now, and return when it is gone."""
        async with self._collecting:
            started = time.monotonic()
            await self._loop.run_in_executor(self._executor, self._collector.collect)
            self._not_before = self._loop.time() + REST * (time.monotonic() - started)

    def _begin(self) -> None:
        self._timer = None
        task = asyncio.create_task(self._collect_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _collect_quietly(self) -> None:
        try:
            await self.collect()
        except Exception:
            _log.exception("garbage collection failed")

    async def _collect_periodically(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            await self._collect_quietly()

    def _dirty(self) -> None:
        self._loop.call_soon_threadsafe(self.schedule_collection)

    def _publish(self, scope: Scope, topic: str, fields: Mapping[str, object]) -> None:
        self._events.publish(topic, _EVENTS[topic](**fields), namespace=scope.namespace)


def build(config: Config, database: Database, leases: LeaseStore, events: Exchange, streams: Streams) -> Storage:
    """Put the storage half together. To be called in the event loop; :meth:`Storage.start` comes next."""
    return Storage(config, database, leases, events, streams)


def _plugins(root: Path) -> list[PluginInfo]:
    machine = os.uname().machine
    here = (("linux", {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(machine, machine)),)
    metadata = ("io.containerd.metadata.v1",)
    plugins = [PluginInfo("io.containerd.content.v1", "content", exports={"root": str(root)})]
    for kind in (OverlaySnapshotter, NativeSnapshotter):
        name = kind.name
        exports = {"root": str(root / f"io.containerd.snapshotter.v1.{name}")}
        capabilities = ("rebase",) if kind.rebases else ()
        plugins.append(PluginInfo("io.containerd.snapshotter.v1", name, (), here, exports, capabilities))
    plugins += [
        PluginInfo("io.containerd.differ.v1", "walking", metadata, here),
        PluginInfo("io.containerd.gc.v1", "scheduler", metadata),
        PluginInfo("io.containerd.transfer.v1", "local", metadata, here),
    ]
    services = ("content", "diff", "images", "snapshots")
    plugins += [PluginInfo("io.containerd.service.v1", f"{name}-service", metadata) for name in services]
    plugins += [PluginInfo("io.containerd.grpc.v1", name) for name in (*services, "transfer")]
    return plugins
