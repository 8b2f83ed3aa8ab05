"""The version that clients see: the containerd release whose contracts are spoken, Gantry's own behind the plus."""

from __future__ import annotations

from containerd import __version__

__all__ = ["REVISION", "VERSION"]

SPOKEN = "2.1.0"
VERSION = f"v{SPOKEN}+gantry.{__version__}"
REVISION = f"gantry-{__version__}"
