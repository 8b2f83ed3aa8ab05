"""containerd's error vocabulary; :mod:`containerd.server` translates it to gRPC codes in one place."""

from __future__ import annotations

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "ContainerdError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]


class ContainerdError(Exception):
    """Base of all that a service answers with. ``code`` is the gRPC status code's name."""

    code = "UNKNOWN"


class Cancelled(ContainerdError):
    """The caller went away."""

    code = "CANCELLED"


class Unknown(ContainerdError):
    """A failure below with no better name (the OCI runtime's own text, for one)."""

    code = "UNKNOWN"


class InvalidArgument(ContainerdError):
    """The request is wrong in itself; the message names the field."""

    code = "INVALID_ARGUMENT"


class DeadlineExceeded(ContainerdError):
    """A peer did not answer in time."""

    code = "DEADLINE_EXCEEDED"


class NotFound(ContainerdError):
    """The thing named does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(ContainerdError):
    """The name or key is taken."""

    code = "ALREADY_EXISTS"


class PermissionDenied(ContainerdError):
    """Refused by a registry or by the kernel."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(ContainerdError):
    """No space, or a bound was passed."""

    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(ContainerdError):
    """The thing is in a state that does not allow this."""

    code = "FAILED_PRECONDITION"


class Aborted(ContainerdError):
    """Lost a race; may be tried again."""

    code = "ABORTED"


class OutOfRange(ContainerdError):
    """An offset or size does not fit."""

    code = "OUT_OF_RANGE"


class Unimplemented(ContainerdError):
    """Known to the contract, not offered here; the message names it."""

    code = "UNIMPLEMENTED"


class Internal(ContainerdError):
    """An invariant broke."""

    code = "INTERNAL"


class Unavailable(ContainerdError):
    """A peer (shim, registry) cannot be reached."""

    code = "UNAVAILABLE"


class Unauthenticated(ContainerdError):
    """A registry wants credentials, or refused them."""

    code = "UNAUTHENTICATED"
