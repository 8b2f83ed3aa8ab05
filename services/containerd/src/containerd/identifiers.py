"""What names and labels may look like. A valid identifier is safe as one component of a path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from containerd.errors import InvalidArgument

__all__ = ["validate_identifier", "validate_labels"]

MAX_IDENTIFIER = 76
MAX_LABEL = 4096
_SHOWN_KEY = 64

_PATTERN = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_IDENTIFIER = re.compile(_PATTERN.removesuffix("$") + r"\Z")


def validate_identifier(text: str, what: str = "") -> None:
    """Raise :class:`InvalidArgument` unless ``text`` may name a namespace, a container or a part of a topic.

    ``what`` is put in front of the message: the field that carries the identifier.
    """
    prefix = f"{what}: " if what else ""
    if not text:
        raise InvalidArgument(f"{prefix}identifier must not be empty: invalid argument")
    if len(text) > MAX_IDENTIFIER:
        raise InvalidArgument(
            f'{prefix}identifier "{text}" greater than maximum length ({MAX_IDENTIFIER} characters): invalid argument'
        )
    if not _IDENTIFIER.match(text):
        raise InvalidArgument(f'{prefix}identifier "{text}" must match {_PATTERN}: invalid argument')


def validate_labels(labels: Mapping[str, str], what: str) -> None:
    """Raise :class:`InvalidArgument` when a label's key and value together pass 4096 bytes."""
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL:
            raise InvalidArgument(
                f"{what}: label key and value length ({size} bytes) greater than maximum size "
                f"({MAX_LABEL} bytes), key: {key[:_SHOWN_KEY]}: invalid argument"
            )
