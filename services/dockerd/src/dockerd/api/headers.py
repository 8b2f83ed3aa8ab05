"""The headers that every answer of the Engine API carries."""

from __future__ import annotations

from dockerd.version import API_VERSION, SERVER

__all__ = ["common_headers", "unrouted_headers"]


def common_headers() -> list[tuple[str, str]]:
    """Names and values, in the order in which they are sent."""
    return [
        ("Api-Version", API_VERSION),
        ("Docker-Experimental", "false"),
        ("Ostype", "linux"),
        ("Server", SERVER),
    ]


def unrouted_headers() -> list[tuple[str, str]]:
    """Those of an answer to a path that does not exist."""
    return []
