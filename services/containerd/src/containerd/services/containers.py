"""containerd.services.containers.v1.Containers"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.errors import InvalidArgument
from containerd.events import Exchange
from containerd.metadata.containers import Container, ContainerStore
from containerd.namespaces import namespace_required
from containerd.services.wire import any_message, any_value, timestamp
from gantry.contracts.containerd.events import container_pb2 as event_types
from gantry.contracts.containerd.services.containers.v1 import containers_pb2 as messages
from gantry.contracts.containerd.services.containers.v1 import containers_pb2_grpc as service

__all__ = ["Containers"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _message(container: Container) -> messages.Container:
    return messages.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=messages.Container.Runtime(name=container.runtime, options=any_message(container.runtime_options)),
        spec=any_message(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp(container.created_at),
        updated_at=timestamp(container.updated_at),
        extensions={name: value for name, item in container.extensions.items() if (value := any_message(item))},
        sandbox=container.sandbox,
    )


def _container(message: messages.Container) -> Container:
    return Container(
        id=message.id,
        runtime=message.runtime.name,
        runtime_options=any_value(message.runtime.options),
        spec=any_value(message.spec),
        image=message.image,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        labels=dict(message.labels),
        extensions={name: value for name, item in message.extensions.items() if (value := any_value(item))},
    )


class Containers(service.ContainersServicer):
    """Serves a :class:`ContainerStore` and publishes what changes.

    ``released`` is called after a deletion: the container's snapshot may be garbage now.
    """

    def __init__(self, store: ContainerStore, events: Exchange, released: Callable[[], None]) -> None:
        self._store = store
        self._events = events
        self._released = released

    async def Get(self, request: messages.GetContainerRequest, context: _Context) -> messages.GetContainerResponse:
        container = await asyncio.to_thread(self._store.get, namespace_required(), request.id)
        return messages.GetContainerResponse(container=_message(container))

    async def List(self, request: messages.ListContainersRequest, context: _Context) -> messages.ListContainersResponse:
        found = await asyncio.to_thread(self._store.list, namespace_required(), list(request.filters))
        return messages.ListContainersResponse(containers=[_message(container) for container in found])

    async def ListStream(
        self, request: messages.ListContainersRequest, context: _Context
    ) -> AsyncIterator[messages.ListContainerMessage]:
        for container in await asyncio.to_thread(self._store.list, namespace_required(), list(request.filters)):
            yield messages.ListContainerMessage(container=_message(container))

    async def Create(
        self, request: messages.CreateContainerRequest, context: _Context
    ) -> messages.CreateContainerResponse:
        created = await asyncio.to_thread(self._store.create, namespace_required(), _container(request.container))
        response = messages.CreateContainerResponse(container=_message(created))
        runtime = event_types.ContainerCreate.Runtime(
            name=created.runtime, options=any_message(created.runtime_options)
        )
        self._events.publish(
            "/containers/create", event_types.ContainerCreate(id=created.id, image=created.image, runtime=runtime)
        )
        return response

    async def Update(
        self, request: messages.UpdateContainerRequest, context: _Context
    ) -> messages.UpdateContainerResponse:
        if not request.container.id:
            raise InvalidArgument("Container.ID required")
        updated = await asyncio.to_thread(
            self._store.update, namespace_required(), _container(request.container), list(request.update_mask.paths)
        )
        event = event_types.ContainerUpdate(
            id=updated.id, image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
        )
        self._events.publish("/containers/update", event)
        return messages.UpdateContainerResponse(container=_message(updated))

    async def Delete(self, request: messages.DeleteContainerRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._store.delete, namespace_required(), request.id)
        self._events.publish("/containers/delete", event_types.ContainerDelete(id=request.id))
        self._released()
        return Empty()
