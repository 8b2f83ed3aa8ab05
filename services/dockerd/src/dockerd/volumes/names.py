"""Names of volumes: the local driver's rule, in the real engine's words."""

from __future__ import annotations

import re
import secrets

from dockerd import errors

__all__ = ["ANONYMOUS_LABEL", "anonymous_name", "validate_name"]

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""Marks a volume that got its name from the engine; ``docker volume prune`` removes only such ones by default."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


def validate_name(name: str) -> None:
    """Raise InvalidParameter unless ``name`` can be the name of a local volume."""
    if len(name) < 2:
        raise errors.InvalidParameter("volume name is too short, names should be at least two alphanumeric characters")
    if len(name) > 255 or _NAME.fullmatch(name) is None:
        # The rule is one for path components, so a name can never leave the volumes directory.
        raise errors.InvalidParameter(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are '
            "allowed. If you intended to pass a host directory, use absolute path"
        )


def anonymous_name() -> str:
    """A new name of 64 hexadecimal digits."""
    return secrets.token_hex(32)
