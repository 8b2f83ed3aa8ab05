"""``containerd publish``: one event from standard input to a running daemon, for shims that do not speak ttrpc."""

from __future__ import annotations

import sys
from typing import BinaryIO

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from containerd.namespaces import NAMESPACE_HEADER
from gantry.contracts.containerd.services.events.v1.events_pb2 import PublishRequest
from gantry.contracts.containerd.services.events.v1.events_pb2_grpc import EventsStub

__all__ = ["publish"]

TIMEOUT = 5.0


def publish(address: str, namespace: str, topic: str, source: BinaryIO) -> int:
    """Send the protobuf Any that ``source`` holds; returns the exit status. Errors go to standard error."""
    event = Any()
    try:
        event.ParseFromString(source.read())
    except DecodeError as error:
        print(f"containerd: publish: standard input is no protobuf Any: {error}", file=sys.stderr)
        return 1
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{address.removeprefix('unix://')}", options) as channel:
        try:
            EventsStub(channel).Publish(
                PublishRequest(topic=topic, event=event),
                metadata=((NAMESPACE_HEADER, namespace),),
                timeout=TIMEOUT,
                wait_for_ready=True,
            )
        except grpc.RpcError as error:
            print(f"containerd: publish: {error.details()}", file=sys.stderr)
            return 1
    return 0
