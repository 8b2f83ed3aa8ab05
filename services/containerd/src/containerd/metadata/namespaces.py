"""Namespaces: every object lives in one, and making an object makes its namespace.

Namespaces, unlike what is in them, are seen by every client.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from containerd.errors import AlreadyExists, FailedPrecondition, NotFound
from containerd.identifiers import validate_identifier, validate_labels
from gantry.database import Database

__all__ = ["OCCUPANTS", "SCHEMA", "Namespace", "NamespaceStore", "ensure_namespace"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE namespace (
        name TEXT PRIMARY KEY,
        labels TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;
    """
}
OCCUPANTS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Namespace:
    """A namespace and the labels that give defaults to its clients."""

    name: str
    labels: Mapping[str, str]


def ensure_namespace(connection: sqlite3.Connection, name: str) -> None:
    """Make the namespace if it is not there: to be called by whoever inserts an object into it."""
    connection.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", (name,))


class NamespaceStore:
    """The namespaces of one database. Safe for threads.

    ``occupants`` are :data:`containerd.metadata.schema.OCCUPANTS`.
    """

    def __init__(self, database: Database, occupants: Sequence[str]) -> None:
        self._database = database
        self._occupants = occupants

    def get(self, name: str) -> Namespace:
        """Return one namespace; one that does not exist has no labels, and is no error.

        A client learns the defaults of a namespace from its labels before anything is in it.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT labels FROM namespace WHERE name = ?", (name,)).fetchone()
        return Namespace(name, json.loads(row["labels"]) if row else {})

    def list(self) -> list[Namespace]:
        """Return all namespaces by name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, labels FROM namespace ORDER BY name").fetchall()
        return [Namespace(row["name"], json.loads(row["labels"])) for row in rows]

    def create(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Make a namespace. Raises :class:`InvalidArgument`, :class:`AlreadyExists`."""
        validate_identifier(name)
        validate_labels(labels, "namespace.Labels")
        with self._database.write() as connection:
            inserted = connection.execute(
                "INSERT OR IGNORE INTO namespace (name, labels) VALUES (?, ?)", (name, json.dumps(dict(labels)))
            )
            if inserted.rowcount == 0:
                raise AlreadyExists(f'namespace "{name}": already exists')
        return Namespace(name, dict(labels))

    def set_labels(self, name: str, labels: Mapping[str, str], *, replace: bool) -> Namespace:
        """Set labels, dropping the others when ``replace``; an empty value drops the label.

        Raises :class:`NotFound`, :class:`InvalidArgument`.
        """
        validate_labels(labels, "namespace.Labels")
        with self._database.write() as connection:
            row = connection.execute("SELECT labels FROM namespace WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f'namespace "{name}": not found')
            merged = {} if replace else json.loads(row["labels"])
            merged.update(labels)
            merged = {key: value for key, value in merged.items() if value}
            connection.execute("UPDATE namespace SET labels = ? WHERE name = ?", (json.dumps(merged), name))
        return Namespace(name, merged)

    def delete(self, name: str) -> None:
        """Remove an empty namespace, with its leases. Raises :class:`NotFound`, :class:`FailedPrecondition`."""
        with self._database.write() as connection:
            kinds = [row[0] for query in self._occupants for row in connection.execute(query, (name,))]
            if kinds:
                raise FailedPrecondition(
                    f'namespace "{name}" must be empty, but it still has {", ".join(kinds)}: failed precondition'
                )
            if connection.execute("DELETE FROM namespace WHERE name = ?", (name,)).rowcount == 0:
                raise NotFound(f'namespace "{name}": not found')
