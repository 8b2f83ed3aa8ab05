"""containerd.services.images.v1.Images"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.descriptors import Descriptor
from containerd.images import Image, ImageStore
from containerd.scope import Scope
from containerd.services.wire import nanoseconds, timestamp
from gantry.contracts.containerd.services.images.v1 import images_pb2 as messages
from gantry.contracts.containerd.services.images.v1 import images_pb2_grpc as service
from gantry.contracts.containerd.types import descriptor_pb2

__all__ = ["Images"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _message(image: Image) -> messages.Image:
    return messages.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor_pb2.Descriptor(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations=image.target.annotations,
        ),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )


def _image(message: messages.Image, time: int) -> Image:
    target = message.target
    return Image(
        name=message.name,
        target=Descriptor(target.media_type, target.digest, target.size, dict(target.annotations)),
        labels=dict(message.labels),
        created_at=time,
        updated_at=time,
    )


class Images(service.ImagesServicer):
    """Serves an :class:`ImageStore`; ``collect`` collects the garbage, for a client that asked to wait for it."""

    def __init__(self, store: ImageStore, collect: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._collect = collect

    async def Get(self, request: messages.GetImageRequest, context: _Context) -> messages.GetImageResponse:
        image = await asyncio.to_thread(self._store.get, Scope.current(), request.name)
        return messages.GetImageResponse(image=_message(image))

    async def List(self, request: messages.ListImagesRequest, context: _Context) -> messages.ListImagesResponse:
        found = await asyncio.to_thread(self._store.list, Scope.current(), list(request.filters))
        return messages.ListImagesResponse(images=[_message(image) for image in found])

    async def Create(self, request: messages.CreateImageRequest, context: _Context) -> messages.CreateImageResponse:
        image = _image(request.image, nanoseconds(request.source_date_epoch))
        created = await asyncio.to_thread(self._store.create, Scope.current(), image)
        return messages.CreateImageResponse(image=_message(created))

    async def Update(self, request: messages.UpdateImageRequest, context: _Context) -> messages.UpdateImageResponse:
        image = _image(request.image, nanoseconds(request.source_date_epoch))
        updated = await asyncio.to_thread(self._store.update, Scope.current(), image, list(request.update_mask.paths))
        return messages.UpdateImageResponse(image=_message(updated))

    async def Delete(self, request: messages.DeleteImageRequest, context: _Context) -> Empty:
        target = request.target.digest if request.HasField("target") else ""
        await asyncio.to_thread(self._store.delete, Scope.current(), request.name, target)
        if request.sync:
            await self._collect()
        return Empty()
