"""On whose behalf storage is used: a namespace, and the lease that keeps what is made."""

from __future__ import annotations

from dataclasses import dataclass

from containerd.namespaces import current_lease, namespace_required

__all__ = ["Scope"]


@dataclass(frozen=True, slots=True)
class Scope:
    """``namespace`` separates names and labels; ``lease`` protects new objects from collection.

    The stores below the services take it as an argument, so that work which spans threads and outlives a request
    (a pull) carries it along.
    """

    namespace: str
    lease: str | None = None

    @classmethod
    def current(cls) -> Scope:
        """Return the scope of the request being served. Raises :class:`FailedPrecondition` without a namespace."""
        return cls(namespace_required(), current_lease())
