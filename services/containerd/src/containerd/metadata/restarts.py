"""Restarts that are under way: written down before the old task goes, so that a daemon that dies in between goes on."""

from __future__ import annotations

from gantry.database import Database

__all__ = ["OCCUPANTS", "SCHEMA", "RestartStore"]

SCHEMA: dict[int, str] = {
    2: """
    CREATE TABLE restart (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;
    """
}
OCCUPANTS: tuple[str, ...] = ()


class RestartStore:
    """The containers of one database whose restart was begun and has not been finished. Safe for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, namespace: str, container_id: str) -> None:
        """Note that a container is being restarted; twice is once."""
        with self._database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO restart (namespace, id) VALUES (?, ?)", (namespace, container_id))

    def end(self, namespace: str, container_id: str) -> None:
        """Note that it runs."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM restart WHERE namespace = ? AND id = ?", (namespace, container_id))

    def under_way(self) -> set[tuple[str, str]]:
        """Return (namespace, container id) of each."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT namespace, id FROM restart").fetchall()
        return {(row["namespace"], row["id"]) for row in rows}
