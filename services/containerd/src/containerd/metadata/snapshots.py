"""Table of the snapshotters.

``id`` names the snapshot's directory for good: a commit changes kind and key only. ``kind`` is 1 for a view, 2 for
an active and 3 for a committed snapshot, as on the wire. ``size`` (bytes) and ``inodes`` are those of a committed one.
"""

from __future__ import annotations

__all__ = ["OCCUPANTS", "SCHEMA"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE snapshot (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        snapshotter TEXT NOT NULL,
        namespace TEXT NOT NULL REFERENCES namespace (name),
        key TEXT NOT NULL,
        kind INTEGER NOT NULL,
        parent INTEGER REFERENCES snapshot (id),
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0,
        UNIQUE (snapshotter, namespace, key)
    );
    CREATE INDEX snapshot_parent ON snapshot (parent);
    """
}
OCCUPANTS: tuple[str, ...] = ("SELECT DISTINCT 'snapshots-' || snapshotter FROM snapshot WHERE namespace = ?",)
