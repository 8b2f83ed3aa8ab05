"""The ``/v1.NN`` in front of a path: which API the client speaks."""

from __future__ import annotations

import re

__all__ = ["parse_version", "split_path"]

_PREFIX = re.compile(r"/v([0-9.]+)(?=/)")


def parse_version(text: str) -> tuple[int, ...]:
    """``1.42`` as numbers that compare. Parts that are empty count as 0."""
    return tuple(int(part or 0) for part in text.split("."))


def split_path(path: str) -> tuple[str | None, str]:
    """Split ``/v1.42/containers/json`` into version and path; the version is None when the path has none."""
    match = _PREFIX.match(path)
    if match is None:
        return None, path
    return match[1], path[match.end() :]
