"""Snapshots as layers of the kernel's overlay file system.

Each snapshot is ``snapshots/ID/fs``, what it changes on top of its parents, and for an active one
``snapshots/ID/work``, which the kernel needs on the same file system. The options of the mount are those that
containerd's own snapshotter gives, in its order, because clients read ``upperdir`` and ``lowerdir`` out of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from containerd.mounts import Mount
from containerd.snapshots.base import Kind, Snapshotter

__all__ = ["OverlaySnapshotter"]


class OverlaySnapshotter(Snapshotter):
    """The default on Linux: a layer is stored once, however many containers use it."""

    name = "overlayfs"
    rebases = True

    def content(self, snapshot: int) -> Path:
        """Return the layer: ``snapshots/ID/fs``."""
        return self.directory / str(snapshot) / "fs"

    def _make(self, directory: Path, kind: Kind, parents: Sequence[int]) -> None:
        layer = directory / "fs"
        layer.mkdir()
        layer.chmod(0o755)
        if kind is Kind.ACTIVE:
            (directory / "work").mkdir(mode=0o711)
        if parents:  # the root of an overlay has the owner of its uppermost layer
            below = os.stat(self.content(parents[0]))
            os.chown(layer, below.st_uid, below.st_gid)

    def _mounts(self, snapshot: int, kind: Kind, parents: Sequence[int]) -> list[Mount]:
        if not parents:  # an overlay needs two layers
            return [Mount("bind", str(self.content(snapshot)), ("rw" if kind is Kind.ACTIVE else "ro", "rbind"))]
        if kind is Kind.VIEW and len(parents) == 1:
            return [Mount("bind", str(self.content(parents[0])), ("ro", "rbind"))]
        options = []
        if kind is Kind.ACTIVE:
            options.append(f"workdir={self.directory / str(snapshot) / 'work'}")
            options.append(f"upperdir={self.content(snapshot)}")
        options.append("lowerdir=" + ":".join(str(self.content(parent)) for parent in parents))
        return [Mount("overlay", "overlay", tuple(options))]
