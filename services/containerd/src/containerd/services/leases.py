"""containerd.services.leases.v1.Leases"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.metadata.leases import Lease, LeaseResource, LeaseStore
from containerd.namespaces import namespace_required
from containerd.services.wire import timestamp
from gantry.contracts.containerd.services.leases.v1 import leases_pb2 as messages
from gantry.contracts.containerd.services.leases.v1 import leases_pb2_grpc as service

__all__ = ["Leases"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _message(lease: Lease) -> messages.Lease:
    return messages.Lease(id=lease.id, labels=lease.labels, created_at=timestamp(lease.created_at))


def _random_id() -> str:
    return f"{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"


class Leases(service.LeasesServicer):
    """Serves a :class:`LeaseStore`.

    ``released`` is called after a lease or a resource of one is gone; ``collect`` collects the garbage and returns
    when it is gone, for a client that asked to wait.
    """

    def __init__(self, store: LeaseStore, released: Callable[[], None], collect: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._released = released
        self._collect = collect

    async def Create(self, request: messages.CreateRequest, context: _Context) -> messages.CreateResponse:
        lease = await asyncio.to_thread(
            self._store.create, namespace_required(), request.id or _random_id(), dict(request.labels)
        )
        return messages.CreateResponse(lease=_message(lease))

    async def Delete(self, request: messages.DeleteRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._store.delete, namespace_required(), request.id)
        if request.sync:
            await self._collect()
        else:
            self._released()
        return Empty()

    async def List(self, request: messages.ListRequest, context: _Context) -> messages.ListResponse:
        found = await asyncio.to_thread(self._store.list, namespace_required(), list(request.filters))
        return messages.ListResponse(leases=[_message(lease) for lease in found])

    async def AddResource(self, request: messages.AddResourceRequest, context: _Context) -> Empty:
        resource = LeaseResource(request.resource.type, request.resource.id)
        await asyncio.to_thread(self._store.add_resource, namespace_required(), request.id, resource)
        return Empty()

    async def DeleteResource(self, request: messages.DeleteResourceRequest, context: _Context) -> Empty:
        resource = LeaseResource(request.resource.type, request.resource.id)
        await asyncio.to_thread(self._store.delete_resource, namespace_required(), request.id, resource)
        self._released()
        return Empty()

    async def ListResources(
        self, request: messages.ListResourcesRequest, context: _Context
    ) -> messages.ListResourcesResponse:
        found = await asyncio.to_thread(self._store.resources, namespace_required(), request.id)
        return messages.ListResourcesResponse(
            resources=[messages.Resource(id=resource.id, type=resource.type) for resource in found]
        )
