"""Mounts and descriptors between the wire and the storage half."""

from __future__ import annotations

from collections.abc import Iterable

from containerd.descriptors import Descriptor
from containerd.mounts import Mount
from gantry.contracts.containerd.types import descriptor_pb2, mount_pb2

__all__ = ["descriptor_message", "descriptor_value", "mount_messages", "mount_values"]


def mount_messages(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    """Return the messages for mounts."""
    return [
        mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        for mount in mounts
    ]


def mount_values(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    """Return the mounts that messages describe."""
    return [Mount(item.type, item.source, tuple(item.options), item.target) for item in messages]


def descriptor_message(value: Descriptor) -> descriptor_pb2.Descriptor:
    """Return the message for a descriptor."""
    return descriptor_pb2.Descriptor(
        media_type=value.media_type, digest=value.digest, size=value.size, annotations=value.annotations
    )


def descriptor_value(message: descriptor_pb2.Descriptor) -> Descriptor:
    """Return the descriptor that a message describes."""
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))
