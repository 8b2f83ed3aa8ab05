"""Layers: applying them to the mounts of a snapshot, and making them of the difference of two."""

from __future__ import annotations

from containerd.diff.apply import Applier
from containerd.diff.compare import Differ

__all__ = ["Applier", "Differ"]
