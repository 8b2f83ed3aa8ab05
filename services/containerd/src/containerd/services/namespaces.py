"""containerd.services.namespaces.v1.Namespaces"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.errors import InvalidArgument
from containerd.events import Exchange
from containerd.metadata.namespaces import Namespace, NamespaceStore
from gantry.contracts.containerd.events import namespace_pb2 as event_types
from gantry.contracts.containerd.services.namespaces.v1 import namespace_pb2 as messages
from gantry.contracts.containerd.services.namespaces.v1 import namespace_pb2_grpc as service

__all__ = ["Namespaces"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _message(namespace: Namespace) -> messages.Namespace:
    return messages.Namespace(name=namespace.name, labels=namespace.labels)


class Namespaces(service.NamespacesServicer):
    """Serves a :class:`NamespaceStore` and publishes what changes."""

    def __init__(self, store: NamespaceStore, events: Exchange) -> None:
        self._store = store
        self._events = events

    async def Get(self, request: messages.GetNamespaceRequest, context: _Context) -> messages.GetNamespaceResponse:
        namespace = await asyncio.to_thread(self._store.get, request.name)
        return messages.GetNamespaceResponse(namespace=_message(namespace))

    async def List(self, request: messages.ListNamespacesRequest, context: _Context) -> messages.ListNamespacesResponse:
        found = await asyncio.to_thread(self._store.list)
        return messages.ListNamespacesResponse(namespaces=[_message(namespace) for namespace in found])

    async def Create(
        self, request: messages.CreateNamespaceRequest, context: _Context
    ) -> messages.CreateNamespaceResponse:
        name, labels = request.namespace.name, dict(request.namespace.labels)
        created = await asyncio.to_thread(self._store.create, name, labels)
        self._events.publish("/namespaces/create", event_types.NamespaceCreate(name=name, labels=labels), name)
        return messages.CreateNamespaceResponse(namespace=_message(created))

    async def Update(
        self, request: messages.UpdateNamespaceRequest, context: _Context
    ) -> messages.UpdateNamespaceResponse:
        name, labels = request.namespace.name, dict(request.namespace.labels)
        paths = list(request.update_mask.paths)
        wanted = labels
        if paths:
            wanted = {}
            for path in paths:
                collection, _, key = path.partition(".")
                if collection != "labels" or not key:
                    raise InvalidArgument(f'cannot update "{path}" field')
                wanted[key] = labels.get(key, "")
        updated = await asyncio.to_thread(self._store.set_labels, name, wanted, replace=not paths)
        self._events.publish("/namespaces/update", event_types.NamespaceUpdate(name=name, labels=labels), name)
        return messages.UpdateNamespaceResponse(namespace=_message(updated))

    async def Delete(self, request: messages.DeleteNamespaceRequest, context: _Context) -> Empty:
        await asyncio.to_thread(self._store.delete, request.name)
        self._events.publish("/namespaces/delete", event_types.NamespaceDelete(name=request.name), request.name)
        return Empty()
