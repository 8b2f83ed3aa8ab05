"""A container's standard streams as the engine sees them; see :class:`StreamService`."""

from __future__ import annotations

from dockerd.stdio.service import StreamService
from dockerd.stdio.target import AttachOptions, StandardStreams, StreamTarget

__all__ = ["AttachOptions", "StandardStreams", "StreamService", "StreamTarget"]
