"""How the shim's domain says no; `service` turns it into ttrpc statuses, `attach` and `template` into their codes."""

from __future__ import annotations

from gantry.ttrpc.errors import Code


class ShimError(Exception):
    """What could not be done, with the google.rpc code that it has on the wire."""

    code = Code.UNKNOWN


class NotFound(ShimError):
    """No such container or process."""

    code = Code.NOT_FOUND


class AlreadyExists(ShimError):
    """The id is taken."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(ShimError):
    """Not in this state."""

    code = Code.FAILED_PRECONDITION


class InvalidArgument(ShimError):
    """The request itself is wrong."""

    code = Code.INVALID_ARGUMENT


class NotImplementedByShim(ShimError):
    """Known, and refused by name."""

    code = Code.UNIMPLEMENTED


class RuntimeFailure(ShimError):
    """The OCI runtime said no; the text is the runtime's."""
