"""What all snapshotters share: keys, parents and labels in the database, directories on the disk."""

from __future__ import annotations

import enum
import json
import os
import shutil
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from containerd import filters as filter_language
from containerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from containerd.identifiers import validate_labels
from containerd.labels import SNAPSHOT_REF, merge_labels
from containerd.metadata.leases import LeaseResource, add_to_lease, remove_from_lease
from containerd.metadata.namespaces import ensure_namespace
from containerd.mounts import Mount
from containerd.observers import Dirty, Publish, nobody
from containerd.scope import Scope
from containerd.snapshots.usage import Usage, disk_usage
from gantry.database import Database

__all__ = ["Kind", "SnapshotInfo", "Snapshotter", "Usage"]


class Kind(enum.IntEnum):
    """What can be done with a snapshot; the numbers are those of the wire."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as its namespace sees it. Times are nanoseconds since 1970."""

    id: int
    key: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


class Snapshotter(ABC):
    """One snapshotter below its root directory. Safe for threads; see the package for the vocabulary.

    ``publish(scope, topic, fields)`` is told of each change; ``dirty()`` that there may be garbage.
    """

    name: str
    """The word that clients choose it by."""
    rebases: bool
    """Whether a snapshot without a parent can be put on one when it is committed."""

    def __init__(
        self,
        root: Path,
        database: Database,
        publish: Publish = nobody,
        dirty: Dirty = nobody,
    ) -> None:
        self.root = root
        self.directory = root / "snapshots"
        self.directory.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        self._database = database
        self._publish = publish
        self._dirty = dirty

    @abstractmethod
    def _make(self, directory: Path, kind: Kind, parents: Sequence[int]) -> None:
        """Fill the new snapshot's directory. ``parents`` are the ids below it, nearest first."""

    @abstractmethod
    def _mounts(self, snapshot: int, kind: Kind, parents: Sequence[int]) -> Sequence[Mount]:
        """Return what shows the snapshot. ``parents`` are the ids below it, nearest first."""

    @abstractmethod
    def content(self, snapshot: int) -> Path:
        """Return the directory that holds what the snapshot itself has."""

    def prepare(
        self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]:
        """Make an active snapshot and return its mounts.

        When a label ``containerd.io/snapshot.ref`` names a snapshot that exists there is nothing to do:
        :class:`AlreadyExists`. Raises also :class:`NotFound` for an unknown parent, :class:`InvalidArgument` for one
        that is not committed.
        """
        mounts = self._create(scope, Kind.ACTIVE, key, parent, labels or {})
        self._publish(scope, "/snapshot/prepare", {"key": key, "parent": parent, "snapshotter": self.name})
        return mounts

    def view(
        self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]:
        """Make a read-only snapshot of ``parent`` and return its mounts. Errors as for :meth:`prepare`."""
        return self._create(scope, Kind.VIEW, key, parent, labels or {})

    def mounts(self, scope: Scope, key: str) -> Sequence[Mount]:
        """Return the mounts of an active snapshot or view.

        Raises :class:`NotFound`, :class:`FailedPrecondition` for a committed one.
        """
        with self._database.read() as connection:
            row = self._row(connection, scope, key)
            if row["kind"] == Kind.COMMITTED:
                raise FailedPrecondition(f"requested snapshot {key} not active or view: failed precondition")
            parents = self._parents(connection, row["parent"])
        return self._mounts(row["id"], Kind(row["kind"]), parents)

    def commit(
        self, scope: Scope, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``; its labels are replaced.

        A snapshot that was prepared without a parent may be put on one now: layers of an image can so be unpacked
        in any order. Raises :class:`NotFound`, :class:`AlreadyExists`, :class:`FailedPrecondition` unless active.
        """
        labels = {label: value for label, value in (labels or {}).items() if value}
        validate_labels(labels, "info.Labels")
        with self._database.read() as connection:
            row = self._row(connection, scope, key)
        usage = disk_usage(self.content(row["id"]))  # may take a while: not under the write lock
        now = time.time_ns()
        with self._database.write() as connection:
            self._refuse_existing(connection, scope, name, f'snapshot "{name}"')
            row = self._row(connection, scope, key)
            if row["kind"] != Kind.ACTIVE:
                raise FailedPrecondition(f'snapshot "{key}" is not active: failed precondition')
            parent_id = row["parent"]
            if parent:
                parent_id = self._rebased(connection, scope, row, parent)
            connection.execute(
                "UPDATE snapshot SET key = ?, kind = ?, parent = ?, labels = ?, created_at = ?, updated_at = ?, "
                "size = ?, inodes = ? WHERE id = ?",
                (name, Kind.COMMITTED, parent_id, json.dumps(labels), now, now, usage.size, usage.inodes, row["id"]),
            )
            remove_from_lease(connection, scope.namespace, scope.lease, self._resource(key))
            add_to_lease(connection, scope.namespace, scope.lease, self._resource(name))
        self._publish(scope, "/snapshot/commit", {"key": key, "name": name, "snapshotter": self.name})

    def remove(self, scope: Scope, key: str) -> None:
        """Remove a snapshot; its directory goes with the next :meth:`cleanup`.

        Raises :class:`NotFound`, :class:`FailedPrecondition` when it is a parent.
        """
        with self._database.write() as connection:
            row = self._row(connection, scope, key)
            if connection.execute("SELECT 1 FROM snapshot WHERE parent = ?", (row["id"],)).fetchone():
                raise FailedPrecondition("cannot remove snapshot with child: failed precondition")
            connection.execute("DELETE FROM snapshot WHERE id = ?", (row["id"],))
            remove_from_lease(connection, scope.namespace, scope.lease, self._resource(key))
        self._dirty()
        self._publish(scope, "/snapshot/remove", {"key": key, "snapshotter": self.name})

    def stat(self, scope: Scope, key: str) -> SnapshotInfo:
        """Return one snapshot. Raises :class:`NotFound`."""
        with self._database.read() as connection:
            return _info(self._row(connection, scope, key))

    def update(self, scope: Scope, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> SnapshotInfo:
        """Set labels: those that ``paths`` name (``labels.KEY``), or all.

        Raises :class:`NotFound`, :class:`InvalidArgument`.
        """
        with self._database.write() as connection:
            row = self._row(connection, scope, key)
            merged = merge_labels(json.loads(row["labels"]), labels, paths, f'snapshot "{key}"')
            validate_labels(merged, "info.Labels")
            connection.execute(
                "UPDATE snapshot SET labels = ?, updated_at = ? WHERE id = ?",
                (json.dumps(merged), time.time_ns(), row["id"]),
            )
            return _info(self._row(connection, scope, key))

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[SnapshotInfo]:
        """Return the snapshots that match any filter, by key.

        Fields: ``name``, ``parent``, ``kind`` (view, active, committed), ``labels.KEY``.
        """
        matcher = filter_language.parse(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"{_SELECT} WHERE s.snapshotter = ? AND s.namespace = ? ORDER BY s.key", (self.name, scope.namespace)
            ).fetchall()
        infos = [_info(row) for row in rows]
        return [info for info in infos if matcher.match(lambda path, info=info: _field(info, path))]  # type: ignore[misc]

    def usage(self, scope: Scope, key: str) -> Usage:
        """Return what a snapshot takes without its parents: measured now for an active one, kept for a committed one.

        Raises :class:`NotFound`.
        """
        with self._database.read() as connection:
            row = self._row(connection, scope, key)
        if row["kind"] == Kind.ACTIVE:
            return disk_usage(self.content(row["id"]))
        return Usage(row["size"], row["inodes"])

    def cleanup(self) -> None:
        """Delete the directories that belong to no snapshot: removed ones, and those of a creation that was killed."""
        doomed = []
        # Under the write lock no snapshot is between its directory and its row.
        with self._database.write() as connection:
            known = {str(row["id"]) for row in connection.execute("SELECT id FROM snapshot")}
            for name in os.listdir(self.directory):
                if name not in known and not name.startswith("new-"):
                    doomed.append(self._discard(name))
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)

    def recover(self) -> None:
        """Delete what a killed daemon has left; to be called before anything is served."""
        for name in os.listdir(self.directory):
            if name.startswith("new-"):
                shutil.rmtree(self.directory / name, ignore_errors=True)
        self.cleanup()

    def _create(self, scope: Scope, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        if not key:
            raise InvalidArgument("snapshot key must not be empty: invalid argument")
        labels = {label: value for label, value in labels.items() if value}
        validate_labels(labels, "info.Labels")
        target = labels.get(SNAPSHOT_REF, "")
        with self._database.read() as connection:
            base = self._parent(connection, scope, parent) if parent else None
            parents = self._parents(connection, base["id"]) if base else []
        prepared = Path(tempfile.mkdtemp(prefix="new-", dir=self.directory))
        try:
            prepared.chmod(0o700)
            self._make(prepared, kind, parents)
            snapshot = self._insert(scope, kind, key, parent, labels, target, prepared)
        except BaseException:
            shutil.rmtree(prepared, ignore_errors=True)
            raise
        return self._mounts(snapshot, kind, parents)

    def _insert(
        self, scope: Scope, kind: Kind, key: str, parent: str, labels: Mapping[str, str], target: str, prepared: Path
    ) -> int:
        now = time.time_ns()
        with self._database.write() as connection:
            existing = next((name for name in (target, key) if name and self._find(connection, scope, name)), None)
            if existing is not None:  # the lease keeps what exists as well: so the transaction has to end well
                add_to_lease(connection, scope.namespace, scope.lease, self._resource(existing))
            else:
                ensure_namespace(connection, scope.namespace)
                base = self._parent(connection, scope, parent)["id"] if parent else None
                inserted = connection.execute(
                    "INSERT INTO snapshot (snapshotter, namespace, key, kind, parent, labels, created_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (self.name, scope.namespace, key, kind, base, json.dumps(labels), now, now),
                )
                add_to_lease(connection, scope.namespace, scope.lease, self._resource(key))
                snapshot = inserted.lastrowid
                directory = self.directory / str(snapshot)
                if directory.exists():  # of a transaction that was killed before its commit: the number comes again
                    self._discard(directory.name)
                prepared.rename(directory)
        if existing is not None:
            what = "target snapshot" if existing == target else "snapshot"
            raise AlreadyExists(f'{what} "{existing}": already exists')
        assert snapshot is not None
        return snapshot

    def _discard(self, name: str) -> Path:
        """Move a directory out of the way of ids; it is deleted by the next cleanup at the latest."""
        doomed = self.directory / f"rm-{name.removeprefix('rm-')}-{time.time_ns()}"
        os.rename(self.directory / name, doomed)
        return doomed

    def _find(self, connection: sqlite3.Connection, scope: Scope, key: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute(
            f"{_SELECT} WHERE s.snapshotter = ? AND s.namespace = ? AND s.key = ?", (self.name, scope.namespace, key)
        ).fetchone()
        return row

    def _row(self, connection: sqlite3.Connection, scope: Scope, key: str) -> sqlite3.Row:
        row = self._find(connection, scope, key)
        if row is None:
            raise NotFound(f"snapshot {key} does not exist: not found")
        return row

    def _parent(self, connection: sqlite3.Connection, scope: Scope, parent: str) -> sqlite3.Row:
        row = self._find(connection, scope, parent)
        if row is None:
            raise NotFound(f"parent snapshot {parent} does not exist: not found")
        if row["kind"] != Kind.COMMITTED:
            raise InvalidArgument(f'parent "{parent}" is not committed snapshot: invalid argument')
        return row

    def _parents(self, connection: sqlite3.Connection, parent: int | None) -> Sequence[int]:
        chain = connection.execute(
            "WITH RECURSIVE chain (id, parent, depth) AS (SELECT id, parent, 0 FROM snapshot WHERE id = ? UNION ALL "
            "SELECT s.id, s.parent, depth + 1 FROM snapshot s JOIN chain c ON s.id = c.parent) "
            "SELECT id FROM chain ORDER BY depth",
            (parent,),
        )
        return [row["id"] for row in chain]

    def _rebased(self, connection: sqlite3.Connection, scope: Scope, row: sqlite3.Row, parent: str) -> int:
        found: int = self._parent(connection, scope, parent)["id"]
        if row["parent"] not in (None, found) or not self.rebases:
            raise InvalidArgument(f'cannot change parent of active snapshot "{row["key"]}" on commit: invalid argument')
        return found

    def _refuse_existing(self, connection: sqlite3.Connection, scope: Scope, key: str, what: str) -> None:
        if self._find(connection, scope, key):
            raise AlreadyExists(f"{what}: already exists")

    def _resource(self, key: str) -> LeaseResource:
        return LeaseResource(f"snapshots/{self.name}", key)


_SELECT = "SELECT s.*, p.key AS parent_key FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent"


def _info(row: sqlite3.Row) -> SnapshotInfo:
    return SnapshotInfo(
        id=row["id"],
        key=row["key"],
        parent=row["parent_key"] or "",
        kind=Kind(row["kind"]),
        labels=json.loads(row["labels"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _field(info: SnapshotInfo, path: Sequence[str]) -> str | None:
    match path[0]:
        case "name":
            return info.key
        case "parent":
            return info.parent
        case "kind":
            return info.kind.name.lower()
        case "labels":
            return filter_language.label_field(info.labels, path[1:])
        case _:
            return None
