"""containerd.services.snapshots.v1.Snapshots"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.errors import InvalidArgument
from containerd.scope import Scope
from containerd.services.mounts import mount_messages
from containerd.services.wire import timestamp
from containerd.snapshots import Kind, SnapshotInfo, Snapshotter
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2 as messages
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2_grpc as service

__all__ = ["Snapshots"]

_Context = grpc.aio.ServicerContext[Any, Any]
_PAGE = 100
_KINDS = {Kind.VIEW: messages.VIEW, Kind.ACTIVE: messages.ACTIVE, Kind.COMMITTED: messages.COMMITTED}


def _message(info: SnapshotInfo) -> messages.Info:
    return messages.Info(
        name=info.key,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


class Snapshots(service.SnapshotsServicer):
    """Serves the snapshotters, by name. An empty name is the default one."""

    def __init__(self, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._snapshotters = snapshotters

    def _snapshotter(self, name: str) -> Snapshotter:
        if not name:
            raise InvalidArgument("snapshotter argument missing: invalid argument")
        snapshotter = self._snapshotters.get(name)
        if snapshotter is None:
            raise InvalidArgument(f"snapshotter not loaded: {name}: invalid argument")
        return snapshotter

    async def Prepare(
        self, request: messages.PrepareSnapshotRequest, context: _Context
    ) -> messages.PrepareSnapshotResponse:
        snapshotter = self._snapshotter(request.snapshotter)
        mounts = await asyncio.to_thread(
            snapshotter.prepare, Scope.current(), request.key, request.parent, dict(request.labels)
        )
        return messages.PrepareSnapshotResponse(mounts=mount_messages(mounts))

    async def View(self, request: messages.ViewSnapshotRequest, context: _Context) -> messages.ViewSnapshotResponse:
        snapshotter = self._snapshotter(request.snapshotter)
        mounts = await asyncio.to_thread(
            snapshotter.view, Scope.current(), request.key, request.parent, dict(request.labels)
        )
        return messages.ViewSnapshotResponse(mounts=mount_messages(mounts))

    async def Mounts(self, request: messages.MountsRequest, context: _Context) -> messages.MountsResponse:
        mounts = await asyncio.to_thread(self._snapshotter(request.snapshotter).mounts, Scope.current(), request.key)
        return messages.MountsResponse(mounts=mount_messages(mounts))

    async def Commit(self, request: messages.CommitSnapshotRequest, context: _Context) -> Empty:
        snapshotter = self._snapshotter(request.snapshotter)
        labels = dict(request.labels)
        await asyncio.to_thread(snapshotter.commit, Scope.current(), request.name, request.key, labels, request.parent)
        return Empty()

    async def Remove(self, request: messages.RemoveSnapshotRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._snapshotter(request.snapshotter).remove, Scope.current(), request.key)
        return Empty()

    async def Stat(self, request: messages.StatSnapshotRequest, context: _Context) -> messages.StatSnapshotResponse:
        info = await asyncio.to_thread(self._snapshotter(request.snapshotter).stat, Scope.current(), request.key)
        return messages.StatSnapshotResponse(info=_message(info))

    async def Update(
        self, request: messages.UpdateSnapshotRequest, context: _Context
    ) -> messages.UpdateSnapshotResponse:
        snapshotter = self._snapshotter(request.snapshotter)
        labels, paths = dict(request.info.labels), list(request.update_mask.paths)
        info = await asyncio.to_thread(snapshotter.update, Scope.current(), request.info.name, labels, paths)
        return messages.UpdateSnapshotResponse(info=_message(info))

    async def List(
        self, request: messages.ListSnapshotsRequest, context: _Context
    ) -> AsyncIterator[messages.ListSnapshotsResponse]:
        snapshotter = self._snapshotter(request.snapshotter)
        found = await asyncio.to_thread(snapshotter.list, Scope.current(), list(request.filters))
        for start in range(0, len(found), _PAGE):
            yield messages.ListSnapshotsResponse(info=[_message(info) for info in found[start : start + _PAGE]])

    async def Usage(self, request: messages.UsageRequest, context: _Context) -> messages.UsageResponse:
        usage = await asyncio.to_thread(self._snapshotter(request.snapshotter).usage, Scope.current(), request.key)
        return messages.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: messages.CleanupRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._snapshotter(request.snapshotter).cleanup)
        return Empty()
