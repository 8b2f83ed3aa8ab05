"""Between wire messages and the values that the daemon works with."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from containerd.anyvalue import AnyValue

__all__ = ["any_message", "any_value", "nanoseconds", "timestamp"]


def timestamp(value: int) -> Timestamp | None:
    """Return the message for nanoseconds since 1970; None, that is unset, for 0."""
    if not value:
        return None
    return Timestamp(seconds=value // 1_000_000_000, nanos=value % 1_000_000_000)


def nanoseconds(message: Timestamp) -> int:
    """Return nanoseconds since 1970; 0 for a message that is not set."""
    value = message.seconds * 1_000_000_000 + message.nanos
    return value if value > 0 else 0


def any_message(value: AnyValue | None) -> Any | None:
    """Return the message, or None, that is unset."""
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def any_value(message: Any) -> AnyValue | None:
    """Return the value, or None for a message that is not set."""
    return AnyValue(message.type_url, message.value) if message.type_url or message.value else None
