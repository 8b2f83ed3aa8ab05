"""An OCI low-level runtime with runc's command line."""

from __future__ import annotations

__version__ = "0.1.0"

SPEC_VERSION = "1.2.0"
"""The runtime-spec that config.json is read by."""


def preload() -> None:
    """Import everything that a call can need, so that a process forked from this one pays for none of it."""
    from runc import preloading

    preloading.load()
