"""Volumes: directories that outlive the containers which use them.

The ``local`` driver is the only one: a volume is ``<data-root>/volumes/NAME/_data``.
"""

from __future__ import annotations

from dockerd.volumes.names import validate_name
from dockerd.volumes.service import SCHEMA, Volume, VolumeService

__all__ = ["SCHEMA", "Volume", "VolumeService", "validate_name"]
