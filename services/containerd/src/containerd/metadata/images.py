"""Table of the image store: names that refer to content."""

from __future__ import annotations

__all__ = ["OCCUPANTS", "SCHEMA"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE image (
        namespace TEXT NOT NULL REFERENCES namespace (name),
        name TEXT NOT NULL,
        media_type TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        annotations TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    """
}
OCCUPANTS: tuple[str, ...] = ("SELECT 'images' FROM image WHERE namespace = ? LIMIT 1",)
