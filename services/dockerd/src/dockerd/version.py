"""Which engine this is, and which Engine API it speaks."""

from __future__ import annotations

from dockerd import __version__

__all__ = ["API_VERSION", "COMMIT", "MIN_API_VERSION", "SERVER", "VERSION"]

API_VERSION = "1.50"
"""The newest API version that is served."""

MIN_API_VERSION = "1.24"
"""The oldest API version that is served."""

VERSION = __version__

SERVER = f"Docker/{VERSION} (linux)"
"""What the engine calls itself in the Server header."""

COMMIT = "gantry"
"""Where the real engine names its commit."""
