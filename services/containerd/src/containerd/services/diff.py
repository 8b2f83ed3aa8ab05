"""containerd.services.diff.v1.Diff"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import grpc.aio

from containerd.descriptors import Descriptor
from containerd.diff import Applier, Differ
from containerd.errors import Unimplemented
from containerd.scope import Scope
from containerd.services.mounts import descriptor_message, descriptor_value, mount_values
from containerd.services.wire import nanoseconds
from gantry.contracts.containerd.services.diff.v1 import diff_pb2 as messages
from gantry.contracts.containerd.services.diff.v1 import diff_pb2_grpc as service

__all__ = ["Diff"]

_Context = grpc.aio.ServicerContext[Any, Any]


class Diff(service.DiffServicer):
    """Serves an :class:`Applier` and a :class:`Differ`; they work in the threads of ``executor``."""

    def __init__(self, applier: Applier, differ: Differ, executor: Executor) -> None:
        self._executor = executor
        self._applier = applier
        self._differ = differ

    async def Apply(self, request: messages.ApplyRequest, context: _Context) -> messages.ApplyResponse:
        if request.payloads:
            names = ", ".join(sorted(request.payloads))
            raise Unimplemented(f"stream processor payloads ({names}) are not supported: not implemented")
        layer, mounts = descriptor_value(request.diff), mount_values(request.mounts)
        applied = await self._run(partial(self._applier.apply, Scope.current(), layer, mounts, sync=request.sync_fs))
        return messages.ApplyResponse(applied=descriptor_message(applied))

    async def Diff(self, request: messages.DiffRequest, context: _Context) -> messages.DiffResponse:
        source_date = nanoseconds(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        diff = partial(
            self._differ.diff,
            Scope.current(),
            mount_values(request.left),
            mount_values(request.right),
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            source_date=source_date,
        )
        made = await self._run(diff)
        return messages.DiffResponse(diff=descriptor_message(made))

    async def _run(self, work: Callable[[], Descriptor]) -> Descriptor:
        """Run what may take long in threads of its own: quick calls elsewhere do not wait behind it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
