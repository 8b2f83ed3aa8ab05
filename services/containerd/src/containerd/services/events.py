"""containerd.services.events.v1.Events, and its ttrpc form, which shims forward their events to."""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.anyvalue import AnyValue
from containerd.errors import ContainerdError
from containerd.events import Envelope, Exchange
from containerd.namespaces import namespace_required
from containerd.services.wire import any_message, nanoseconds, timestamp
from gantry.contracts.containerd.services.events.ttrpc.v1 import events_pb2 as ttrpc_messages
from gantry.contracts.containerd.services.events.v1 import events_pb2 as messages
from gantry.contracts.containerd.services.events.v1 import events_pb2_grpc as service
from gantry.contracts.containerd.types import event_pb2 as types
from gantry.ttrpc import Code, TTRPCError
from gantry.ttrpc.server import Call

__all__ = ["Events", "ForwardedEvents"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _envelope(message: types.Envelope) -> Envelope:
    event = AnyValue(message.event.type_url, message.event.value)
    return Envelope(nanoseconds(message.timestamp), message.namespace, message.topic, event)


def _message(envelope: Envelope) -> types.Envelope:
    return types.Envelope(
        timestamp=timestamp(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=any_message(envelope.event),
    )


class Events(service.EventsServicer):
    """Serves the exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Publish(self, request: messages.PublishRequest, context: _Context) -> Empty:
        event = AnyValue(request.event.type_url, request.event.value)
        self._exchange.publish(request.topic, event, namespace_required())
        return Empty()

    async def Forward(self, request: messages.ForwardRequest, context: _Context) -> Empty:
        self._exchange.forward(_envelope(request.envelope))
        return Empty()

    async def Subscribe(self, request: messages.SubscribeRequest, context: _Context) -> AsyncIterator[types.Envelope]:
        subscription = self._exchange.subscribe(list(request.filters))
        try:
            # Tells the client at once that the subscription stands: it may start what it wants to hear of.
            await context.send_initial_metadata(())
            async for envelope in subscription:
                yield _message(envelope)
        finally:
            subscription.close()


class ForwardedEvents:
    """containerd.services.events.ttrpc.v1.Events: an answer means that the shim may forget the event."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Forward(self, request: ttrpc_messages.ForwardRequest, call: Call) -> Empty:
        """Publish what a shim saw."""
        try:
            self._exchange.forward(_envelope(request.envelope))
        except ContainerdError as error:
            raise TTRPCError(Code[error.code], str(error)) from error
        return Empty()
