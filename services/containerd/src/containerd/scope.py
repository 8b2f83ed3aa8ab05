"""On whose behalf storage is used: a namespace, and the lease that keeps what is made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Scope"]


@dataclass(frozen=True, slots=True)
class Scope:
    """``namespace`` separates names and labels; ``lease`` ("" for none) protects new objects from collection.

    On the wire these are the request headers ``containerd-namespace`` and ``containerd-lease``.
    """

    namespace: str
    lease: str = ""
