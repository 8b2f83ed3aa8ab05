"""A value of a type that this daemon need not know: protobuf's Any, without protobuf."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AnyValue"]


@dataclass(frozen=True)
class AnyValue:
    """``value`` is the encoded message (or JSON) of the type named by ``type_url``."""

    type_url: str
    value: bytes
