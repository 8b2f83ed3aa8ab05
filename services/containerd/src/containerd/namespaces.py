"""The namespace and the lease that a request is made in, taken from its metadata headers.

Both are context variables: :mod:`containerd.server` sets them for each call, and ``asyncio.to_thread`` carries
them into the thread that does the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from containerd.errors import FailedPrecondition
from containerd.identifiers import validate_identifier

__all__ = ["LEASE_HEADER", "NAMESPACE_HEADER", "current_lease", "enter", "namespace_required"]

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

_namespace: ContextVar[str] = ContextVar("containerd_namespace", default="")
_lease: ContextVar[str] = ContextVar("containerd_lease", default="")


def namespace_required() -> str:
    """Return the request's namespace.

    Raises :class:`FailedPrecondition` when the caller sent none and :class:`InvalidArgument` for an impossible name.
    """
    namespace = _namespace.get()
    if not namespace:
        raise FailedPrecondition("namespace is required: failed precondition")
    validate_identifier(namespace, "namespace validation")
    return namespace


def current_lease() -> str | None:
    """Return the id of the lease that protects what this request makes, or None."""
    return _lease.get() or None


def set_request(namespace: str, lease: str) -> None:
    """Set both for the rest of the current context (a gRPC call is a task, with a context of its own)."""
    _namespace.set(namespace)
    _lease.set(lease)


@contextmanager
def enter(namespace: str, lease: str = "") -> Iterator[None]:
    """Run a block in ``namespace``: what the daemon does on its own account has no headers."""
    namespace_token, lease_token = _namespace.set(namespace), _lease.set(lease)
    try:
        yield
    finally:
        _namespace.reset(namespace_token)
        _lease.reset(lease_token)
