"""Leases: what a client is still working on, and the garbage collector therefore keeps.

A resource is a type and an id: ``content`` and a digest, ``ingests`` and a reference, ``images`` and a name,
``snapshots/NAME`` (of the snapshotter) and a key. It need not exist (yet).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from containerd import filters as filter_language
from containerd.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from containerd.metadata.namespaces import ensure_namespace
from gantry.database import Database

__all__ = ["OCCUPANTS", "SCHEMA", "Lease", "LeaseResource", "LeaseStore", "add_to_lease", "remove_from_lease"]

SCHEMA: dict[int, str] = {
    1: """
    CREATE TABLE lease (
        namespace TEXT NOT NULL REFERENCES namespace (name) ON DELETE CASCADE,
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;
    CREATE TABLE lease_resource (
        namespace TEXT NOT NULL,
        lease TEXT NOT NULL,
        type TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (namespace, lease, type, id),
        FOREIGN KEY (namespace, lease) REFERENCES lease (namespace, id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    """
}
OCCUPANTS: tuple[str, ...] = ()

_PLAIN_TYPES = ("content", "images", "ingests")


@dataclass(frozen=True)
class Lease:
    """``created_at`` is in nanoseconds since 1970. The label ``containerd.io/gc.expire`` holds an RFC 3339 time."""

    id: str
    labels: Mapping[str, str]
    created_at: int


@dataclass(frozen=True, order=True)
class LeaseResource:
    """One thing that a lease keeps; see the module for types and ids."""

    type: str
    id: str


def add_to_lease(connection: sqlite3.Connection, namespace: str, lease: str | None, resource: LeaseResource) -> None:
    """Put ``resource`` under ``lease`` in the caller's transaction; without a lease nothing is done.

    For stores: called in the transaction that makes the thing, with ``current_lease()``, so that no collection can
    come between. Raises :class:`NotFound` when the lease is gone.
    """
    if lease is None:
        return
    _require(connection, namespace, lease, message="lease does not exist: not found")
    connection.execute(
        "INSERT OR IGNORE INTO lease_resource (namespace, lease, type, id) VALUES (?, ?, ?, ?)",
        (namespace, lease, resource.type, resource.id),
    )


def remove_from_lease(
    connection: sqlite3.Connection, namespace: str, lease: str | None, resource: LeaseResource
) -> None:
    """Take ``resource`` from ``lease`` in the caller's transaction: the thing is deleted, or known by another name."""
    if lease is not None:
        connection.execute(
            "DELETE FROM lease_resource WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
            (namespace, lease, resource.type, resource.id),
        )


class LeaseStore:
    """The leases of one database. Safe for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, namespace: str, lease_id: str, labels: Mapping[str, str]) -> Lease:
        """Make a lease. Raises :class:`InvalidArgument`, :class:`AlreadyExists`."""
        if not lease_id:
            raise InvalidArgument("lease id must be provided: invalid argument")
        lease = Lease(lease_id, dict(labels), time.time_ns())
        with self._database.write() as connection:
            ensure_namespace(connection, namespace)
            inserted = connection.execute(
                "INSERT OR IGNORE INTO lease (namespace, id, labels, created_at) VALUES (?, ?, ?, ?)",
                (namespace, lease_id, json.dumps(lease.labels), lease.created_at),
            )
            if inserted.rowcount == 0:
                raise AlreadyExists(f'lease "{lease_id}": already exists')
        return lease

    def delete(self, namespace: str, lease_id: str) -> None:
        """End a lease: what nothing else refers to is now garbage. Raises :class:`NotFound`."""
        with self._database.write() as connection:
            _require(connection, namespace, lease_id)
            connection.execute("DELETE FROM lease WHERE namespace = ? AND id = ?", (namespace, lease_id))

    def list(self, namespace: str, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that match any of ``filters`` (fields ``id``, ``labels.KEY``), by id."""
        matcher = filter_language.parse(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, labels, created_at FROM lease WHERE namespace = ? ORDER BY id", (namespace,)
            ).fetchall()
        leases = [Lease(row["id"], json.loads(row["labels"]), row["created_at"]) for row in rows]
        return filter_language.select(matcher, leases, _field)

    def add_resource(self, namespace: str, lease_id: str, resource: LeaseResource) -> None:
        """Put a resource under a lease; doing so twice is no error. Raises :class:`NotFound`, `InvalidArgument`."""
        with self._database.write() as connection:
            _require(connection, namespace, lease_id)
            _validate(resource)
            add_to_lease(connection, namespace, lease_id, resource)

    def delete_resource(self, namespace: str, lease_id: str, resource: LeaseResource) -> None:
        """Take a resource from a lease; one that is not there is no error. Raises :class:`NotFound`."""
        with self._database.write() as connection:
            _require(connection, namespace, lease_id)
            _validate(resource)
            remove_from_lease(connection, namespace, lease_id, resource)

    def resources(self, namespace: str, lease_id: str) -> Sequence[LeaseResource]:
        """Return what a lease keeps, by type and id. Raises :class:`NotFound`."""
        with self._database.read() as connection:
            _require(connection, namespace, lease_id)
            rows = connection.execute(
                "SELECT type, id FROM lease_resource WHERE namespace = ? AND lease = ? ORDER BY type, id",
                (namespace, lease_id),
            ).fetchall()
        return [LeaseResource(row["type"], row["id"]) for row in rows]


def _field(lease: Lease, path: Sequence[str]) -> str | None:
    match path[0]:
        case "id":
            return lease.id
        case "labels":
            return filter_language.label_field(lease.labels, path[1:])
        case _:
            return None


def _require(connection: sqlite3.Connection, namespace: str, lease_id: str, message: str = "") -> None:
    found = connection.execute("SELECT 1 FROM lease WHERE namespace = ? AND id = ?", (namespace, lease_id)).fetchone()
    if found is None:
        raise NotFound(message or f'lease "{lease_id}": not found')


def _validate(resource: LeaseResource) -> None:
    kind, slash, rest = resource.type.partition("/")
    if kind in _PLAIN_TYPES:
        if slash:
            raise InvalidArgument(f"invalid resource type {resource.type}: invalid argument")
    elif kind == "snapshots":
        if not rest or "/" in rest:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}: invalid argument")
    else:
        raise Unimplemented(f"resource type {resource.type} not supported yet: not implemented")
    algorithm, colon, encoded = resource.id.partition(":")
    if kind == "content" and not (algorithm and colon and encoded):
        raise InvalidArgument(
            f"invalid content resource id {resource.id}: invalid checksum digest format: invalid argument"
        )
