"""Snapshotters: file systems in layers.

A *snapshot* is a file system's content at one moment, on top of its *parent*. There are three kinds. An **active**
one can be changed: :meth:`Snapshotter.prepare` makes it and returns the mounts that show it. **Commit** turns it into
a **committed** one, which never changes again and may be the parent of others. A **view** is made like an active one
but is read-only and cannot be committed.

Each namespace has its own *keys*: an active snapshot or a view has the key that it was made with, a committed one has
the name that it was committed under, and both are one name space. Only committed snapshots can be parents. A snapshot
that is a parent cannot be removed.

How an image of two layers is unpacked, and a container started from it::

    mounts = snapshotter.prepare(scope, "extract-1", parent="")
    ...apply the first layer to mounts...
    snapshotter.commit(scope, "sha256:<chain id 1>", "extract-1")
    mounts = snapshotter.prepare(scope, "extract-2", parent="sha256:<chain id 1>")
    ...apply the second layer...
    snapshotter.commit(scope, "sha256:<chain id 2>", "extract-2")
    mounts = snapshotter.prepare(scope, "container-1", parent="sha256:<chain id 2>")

An implementation says how directories of snapshots become mounts, and what has to be done to make one
(:class:`containerd.snapshots.base.Snapshotter` does the rest). Every implementation has to pass the suite in
``tests/test_storage_snapshot_contract.py``.
"""

from __future__ import annotations

from containerd.snapshots.base import Kind, SnapshotInfo, Snapshotter, Usage
from containerd.snapshots.native import NativeSnapshotter
from containerd.snapshots.overlayfs import OverlaySnapshotter

__all__ = ["Kind", "NativeSnapshotter", "OverlaySnapshotter", "SnapshotInfo", "Snapshotter", "Usage"]
