"""Containers in SQLite: what must outlive the engine and cannot be read back from containerd.

A row is written before anything is made for the container, marked incomplete, so that an engine that dies half-way
finds what it has to undo; its name is taken from that moment on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from dockerd import errors
from dockerd.containers.model import Container, State
from gantry.database import Database

__all__ = ["SCHEMA", "ContainerStore"]

SCHEMA = """
CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    complete INTEGER NOT NULL DEFAULT 0,
    definition BLOB NOT NULL,
    state BLOB NOT NULL
);
"""


class ContainerStore:
    """The table of containers. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(self, container: Container) -> None:
        """Add a container that is not complete yet. Raises Conflict naming the holder when the name is taken."""
        with self._database.write() as connection:
            try:
                connection.execute(
                    "INSERT INTO containers (id, name, definition, state) VALUES (?, ?, ?, ?)",
                    (container.id, container.name, _encode(container), _encode(container.state)),
                )
            except sqlite3.IntegrityError:
                raise _name_conflict(connection, container.name) from None

    def complete(self, container: Container) -> None:
        """Everything that a created container has is there; its definition is final."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE containers SET complete = 1, definition = ? WHERE id = ?",
                (_encode(container), container.id),
            )

    def save_state(self, container: Container) -> None:
        """Record the state; a container that is gone is left alone."""
        with self._database.write() as connection:
            connection.execute("UPDATE containers SET state = ? WHERE id = ?", (_encode(container.state), container.id))

    def save_definition(self, container: Container) -> None:
        """Record changed settings."""
        with self._database.write() as connection:
            connection.execute("UPDATE containers SET definition = ? WHERE id = ?", (_encode(container), container.id))

    def rename(self, container_id: str, name: str) -> None:
        """Give the container another name. Raises Conflict naming the holder when it is taken."""
        with self._database.write() as connection:
            try:
                connection.execute("UPDATE containers SET name = ? WHERE id = ?", (name, container_id))
            except sqlite3.IntegrityError:
                raise _name_conflict(connection, name) from None

    def delete(self, container_id: str) -> None:
        """Forget the container; its name is free."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))

    def ids(self) -> set[str]:
        """Every container's id, of unfinished ones too."""
        with self._database.read() as connection:
            return {row["id"] for row in connection.execute("SELECT id FROM containers")}

    def load(self) -> Iterator[tuple[Container, bool]]:
        """Yield every container, and whether it is complete."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT id, name, complete, definition, state FROM containers").fetchall()
        for row in rows:
            container = msgspec.json.decode(row["definition"], type=Container)
            state = msgspec.json.decode(row["state"], type=State)
            yield msgspec.structs.replace(container, name=row["name"], state=state), bool(row["complete"])


def _encode(value: Container | State) -> bytes:
    return msgspec.json.encode(value)


def _name_conflict(connection: sqlite3.Connection, name: str) -> errors.Conflict:
    row = connection.execute("SELECT id FROM containers WHERE name = ?", (name,)).fetchone()
    holder = row["id"] if row else "unknown"
    return errors.Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
