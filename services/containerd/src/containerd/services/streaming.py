"""containerd.services.streaming.v1.Streaming"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from containerd.anyvalue import AnyValue
from containerd.errors import InvalidArgument
from containerd.namespaces import namespace_required
from containerd.services.wire import any_message
from containerd.streaming import Stream, Streams
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2 as messages
from gantry.contracts.containerd.services.streaming.v1 import streaming_pb2_grpc as service

__all__ = ["Streaming"]

_Context = grpc.aio.ServicerContext[Any, Any]
_INIT = messages.StreamInit.DESCRIPTOR.full_name


class Streaming(service.StreamingServicer):
    """Opens streams for :class:`Streams`. A call lasts as long as its stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Stream(
        self, request_iterator: AsyncIterator[any_pb2.Any], context: _Context
    ) -> AsyncIterator[any_pb2.Any]:
        namespace = namespace_required()
        requests = aiter(request_iterator)
        stream_id = _stream_id(await anext(requests, None))
        outgoing: asyncio.Queue[AnyValue] = asyncio.Queue(maxsize=8)
        stream = Stream(outgoing.put, _values(requests))
        self._streams.register(namespace, stream_id, stream)
        try:
            yield any_pb2.Any(type_url="google.protobuf.Empty")
            async for value in _until(outgoing, stream.ended):
                message = any_message(value)
                assert message is not None
                yield message
        finally:
            self._streams.unregister(namespace, stream_id)


def _stream_id(first: any_pb2.Any | None) -> str:
    if first is None or first.type_url.rpartition("/")[2] != _INIT:
        raise InvalidArgument(f"a stream begins with a {_INIT}: invalid argument")
    message = messages.StreamInit()
    try:
        message.ParseFromString(first.value)
    except DecodeError as error:
        raise InvalidArgument(f"{_INIT}: {error}: invalid argument") from error
    return message.id


async def _values(requests: AsyncIterator[any_pb2.Any]) -> AsyncIterator[AnyValue]:
    async for request in requests:
        yield AnyValue(request.type_url, request.value)


async def _until(queue: asyncio.Queue[AnyValue], ended: asyncio.Event) -> AsyncIterator[AnyValue]:
    """Yield what is queued until the event is set and the queue is empty."""
    ending = asyncio.ensure_future(ended.wait())
    try:
        while True:
            while not queue.empty():
                yield queue.get_nowait()
            if ended.is_set():
                return
            getting = asyncio.ensure_future(queue.get())
            await asyncio.wait((getting, ending), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
    finally:
        ending.cancel()
        while not queue.empty():  # frees a sender that waits for room
            queue.get_nowait()
