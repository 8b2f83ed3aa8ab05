"""Snapshots as full copies: works on every file system, and takes the room of every copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from containerd.mounts import Mount
from containerd.snapshots.base import Kind, Snapshotter
from containerd.snapshots.copytree import copy_tree

__all__ = ["NativeSnapshotter"]


class NativeSnapshotter(Snapshotter):
    """Each snapshot is a directory that holds everything, its parent's content copied first."""

    name = "native"
    rebases = False

    def content(self, snapshot: int) -> Path:
        """Return the directory with the whole file system: ``snapshots/ID/fs``."""
        return self.directory / str(snapshot) / "fs"

    def _make(self, directory: Path, kind: Kind, parents: Sequence[int]) -> None:
        target = directory / "fs"
        target.mkdir()
        target.chmod(0o755)
        if parents and kind is Kind.ACTIVE:  # a view shows its parent itself, read-only
            copy_tree(self.content(parents[0]), target)

    def _mounts(self, snapshot: int, kind: Kind, parents: Sequence[int]) -> list[Mount]:
        if kind is Kind.VIEW:
            shown = parents[0] if parents else snapshot
            return [Mount("bind", str(self.content(shown)), ("rbind", "ro"))]
        return [Mount("bind", str(self.content(snapshot)), ("rbind", "rw"))]
