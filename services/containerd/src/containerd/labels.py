"""How an update with a field mask changes labels, and the labels that the storage services give meaning to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from containerd.errors import InvalidArgument

__all__ = [
    "DISTRIBUTION_SOURCE",
    "SNAPSHOT_REF",
    "UNCOMPRESSED",
    "merge_labels",
]

UNCOMPRESSED = "containerd.io/uncompressed"
"""On a compressed layer: the digest of what is in it."""

DISTRIBUTION_SOURCE = "containerd.io/distribution.source"
"""With ``.HOST`` appended, on a blob: the repositories there that have it, separated by commas."""

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""On an active snapshot: the name that it will be committed under."""


def merge_labels(
    before: Mapping[str, str], given: Mapping[str, str], paths: Sequence[str], what: str
) -> dict[str, str]:
    """Return the labels after an update: the keys that ``paths`` name are set from ``given``, without paths all are.

    A key that is set to the empty string is removed. ``what`` names the object in the error.
    Raises :class:`InvalidArgument` for a path that is not ``labels`` or ``labels.KEY``.
    """
    merged = dict(before) if paths else dict(given)
    for path in paths:
        if path == "labels":
            merged = dict(given)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            merged[key] = given.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{path}" field on {what}: invalid argument')
    return {key: value for key, value in merged.items() if value}
