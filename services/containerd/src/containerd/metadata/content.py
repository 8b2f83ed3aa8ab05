"""Tables of the content store: who knows which blob under which labels, and what is being written.

A blob's bytes are shared by all namespaces; a row makes them visible in one. The bytes of an ingest are in the
directory ``ingests/ID``: how many there are, the file knows. Times are nanoseconds since 1970.
"""

from __future__ import annotations

__all__ = ["OCCUPANTS", "SCHEMA"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE blob (
        namespace TEXT NOT NULL REFERENCES namespace (name),
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID;
    CREATE INDEX blob_digest ON blob (digest);
    CREATE TABLE ingest (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL REFERENCES namespace (name) ON DELETE CASCADE,
        ref TEXT NOT NULL,
        expected TEXT NOT NULL,
        total INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        UNIQUE (namespace, ref)
    );
    """
}
OCCUPANTS: tuple[str, ...] = ("SELECT 'blobs' FROM blob WHERE namespace = ? LIMIT 1",)
