"""Garbage collection: what nothing refers to any more is removed.

Roots are images, leases, containers, and content and snapshots that say so by label. From there references lead on:

* an image to its target, a container to its snapshot, a snapshot to its parent;
* labels ``containerd.io/gc.ref.content...`` to content, ``containerd.io/gc.ref.snapshot.NAME...`` to a snapshot of
  that snapshotter, ``containerd.io/gc.ref.image...`` to an image; ``gc.bref...`` the other way round;
* ``containerd.io/gc.root`` makes content or a snapshot a root, ``containerd.io/gc.expire`` (RFC 3339) does until
  then; an image or a lease with the latter is no root any more afterwards;
* ``containerd.io/gc.flat`` on a lease: it keeps what it names, but not what that refers to.

What to remove is decided, and removed from the database, in one transaction. Bytes go afterwards: a daemon that is
killed in between finds files that nothing knows at its next collection.
"""

from __future__ import annotations

import datetime
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from containerd.content import ContentStore
from containerd.observers import Publish, nobody
from containerd.scope import Scope
from containerd.snapshots import Snapshotter
from gantry.database import Database

__all__ = ["Collector", "Removed"]

_log = logging.getLogger(__name__)

ROOT = "containerd.io/gc.root"
EXPIRE = "containerd.io/gc.expire"
FLAT = "containerd.io/gc.flat"
_REF = "containerd.io/gc.ref."
_BACK_REF = "containerd.io/gc.bref."

Node = tuple[str, str, str]
"""Namespace, type and key; types are those of lease resources, and ``containers`` and ``leases``."""


@dataclass(slots=True)
class Removed:
    """What one collection has removed: nodes, and bytes of content on the disk."""

    nodes: list[Node] = field(default_factory=list)
    size: int = 0


class Collector:
    """Collects the garbage of one database. Not for two threads at once."""

    def __init__(
        self,
        database: Database,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        publish: Publish = nobody,
    ) -> None:
        self._database = database
        self._content = content
        self._snapshotters = snapshotters
        self._publish = publish

    def collect(self) -> Removed:
        """Remove what is garbage now, and return what that was."""
        removed = Removed()
        with self._database.write() as connection:
            graph = _Graph(connection, self._content.locked())
            removed.nodes = graph.garbage()
            _delete(connection, removed.nodes)
            _delete_leases(connection, graph.expired_leases)
        for namespace, kind, key in removed.nodes:
            scope = Scope(namespace)
            if kind == "images":
                self._publish(scope, "/images/delete", {"name": key})
            elif kind.startswith("snapshots/"):
                self._publish(scope, "/snapshot/remove", {"key": key, "snapshotter": kind.partition("/")[2]})
        removed.size = self._sweep_content()
        for snapshotter in self._snapshotters.values():
            snapshotter.cleanup()
        if removed.nodes:
            _log.debug("garbage collected: %d objects, %d bytes of content", len(removed.nodes), removed.size)
        return removed

    def _sweep_content(self) -> int:
        """Delete the files of blobs and ingests that no namespace knows."""
        files = self._content.files
        ingests = list(files.ingest_ids())  # first: an ingest has its row before its directory
        with self._database.write() as connection:
            # The write lock keeps a writer from publishing one of these between the look and the deletion.
            known = {row[0] for row in connection.execute("SELECT DISTINCT digest FROM blob")}
            for digest in list(files.digests()):
                if digest not in known:
                    files.discard(digest)
            open_ingests = {row[0] for row in connection.execute("SELECT id FROM ingest")}
        for ingest in ingests:
            if ingest not in open_ingests:
                files.remove_ingest(ingest)
        return files.empty_trash()


class _Graph:
    """All nodes and the references between them, read in one transaction."""

    def __init__(self, connection: sqlite3.Connection, being_written: set[tuple[str, str]]) -> None:
        self._now = datetime.datetime.now(datetime.UTC)
        self._edges: dict[Node, list[Node]] = {}
        self._roots: list[Node] = []
        self._flat: set[Node] = set()
        self._collectable: set[Node] = set()
        self.expired_leases: list[tuple[str, str]] = []
        self._images(connection)
        self._blobs(connection)
        self._snapshots(connection)
        self._containers(connection)
        self._ingests(connection, being_written)
        self._leases(connection)

    def garbage(self) -> list[Node]:
        """Return what cannot be reached from any root."""
        reached: set[Node] = set()
        pending = list(self._roots)
        while pending:
            node = pending.pop()
            if node not in reached:
                reached.add(node)
                pending += self._edges.get(node, ())
        return sorted(self._collectable - reached - self._flat)

    def _images(self, connection: sqlite3.Connection) -> None:
        for row in connection.execute("SELECT namespace, name, digest, labels FROM image"):
            node = (row["namespace"], "images", row["name"])
            labels = json.loads(row["labels"])
            self._collectable.add(node)
            if EXPIRE not in labels or self._in_future(labels[EXPIRE]):
                self._roots.append(node)
            self._link(node, (row["namespace"], "content", row["digest"]))
            self._labels(node, labels)

    def _blobs(self, connection: sqlite3.Connection) -> None:
        for row in connection.execute("SELECT namespace, digest, labels FROM blob"):
            self._labelled((row["namespace"], "content", row["digest"]), json.loads(row["labels"]))

    def _snapshots(self, connection: sqlite3.Connection) -> None:
        query = (
            "SELECT s.namespace, s.snapshotter, s.key, s.labels, p.key AS parent_key "
            "FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent"
        )
        for row in connection.execute(query):
            kind = f"snapshots/{row['snapshotter']}"
            node = (row["namespace"], kind, row["key"])
            if row["parent_key"] is not None:
                self._link(node, (row["namespace"], kind, row["parent_key"]))
            self._labelled(node, json.loads(row["labels"]))

    def _containers(self, connection: sqlite3.Connection) -> None:
        for row in connection.execute("SELECT namespace, id, snapshotter, snapshot_key, labels FROM container"):
            node = (row["namespace"], "containers", row["id"])
            self._roots.append(node)
            if row["snapshot_key"]:
                self._link(node, (row["namespace"], f"snapshots/{row['snapshotter']}", row["snapshot_key"]))
            self._labels(node, json.loads(row["labels"]))

    def _ingests(self, connection: sqlite3.Connection, being_written: set[tuple[str, str]]) -> None:
        now = int(self._now.timestamp() * 10**9)
        for row in connection.execute("SELECT namespace, ref, expires_at FROM ingest"):
            node = (row["namespace"], "ingests", row["ref"])
            self._collectable.add(node)
            if row["expires_at"] > now or (row["namespace"], row["ref"]) in being_written:
                self._roots.append(node)

    def _leases(self, connection: sqlite3.Connection) -> None:
        flat: set[tuple[str, str]] = set()
        expired: set[tuple[str, str]] = set()
        for row in connection.execute("SELECT namespace, id, labels FROM lease"):
            labels = json.loads(row["labels"])
            if EXPIRE in labels and not self._in_future(labels[EXPIRE]):
                expired.add((row["namespace"], row["id"]))
                continue
            if FLAT in labels:
                flat.add((row["namespace"], row["id"]))
            node = (row["namespace"], "leases", row["id"])
            self._roots.append(node)
            self._labels(node, labels)
        for row in connection.execute("SELECT namespace, lease, type, id FROM lease_resource"):
            lease = (row["namespace"], row["lease"])
            node = (row["namespace"], row["type"], row["id"])
            if lease in flat:
                self._flat.add(node)
            elif lease not in expired:
                self._roots.append(node)
        self.expired_leases = sorted(expired)

    def _labelled(self, node: Node, labels: Mapping[str, str]) -> None:
        self._collectable.add(node)
        if any(key == ROOT or key.startswith(ROOT + ".") for key in labels) or (
            EXPIRE in labels and self._in_future(labels[EXPIRE])
        ):
            self._roots.append(node)
        self._labels(node, labels)

    def _labels(self, node: Node, labels: Mapping[str, str]) -> None:
        for key, value in labels.items():
            if key.startswith(_REF):
                for target in _referred(node[0], key.removeprefix(_REF), value):
                    self._link(node, target)
            elif key.startswith(_BACK_REF):
                for parent in _referred(node[0], key.removeprefix(_BACK_REF), value):
                    self._link(parent, node)

    def _link(self, source: Node, target: Node) -> None:
        self._edges.setdefault(source, []).append(target)

    def _in_future(self, text: str) -> bool:
        try:
            when = datetime.datetime.fromisoformat(text)
        except ValueError:
            return True  # what cannot be read does not expire
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return when > self._now


def _referred(namespace: str, what: str, value: str) -> Iterator[Node]:
    """Yield what a label refers to; ``what`` is its key behind ``gc.ref.`` or ``gc.bref.``.

    Everything behind the kind, from ``.`` or ``/`` on, only makes keys distinct.
    """
    kind, separator, rest = what.partition(".")
    if kind == "snapshot" and separator:
        snapshotter = rest.partition("/")[0].partition(".")[0]
        yield (namespace, f"snapshots/{snapshotter}", value)
        return
    kind = kind.partition("/")[0]
    types = {"content": "content", "image": "images", "container": "containers"}
    if kind in types:
        yield (namespace, types[kind], value)


def _delete(connection: sqlite3.Connection, nodes: Iterable[Node]) -> None:
    # A snapshot and its parent may both go: only the end of the transaction has to be right.
    connection.execute("PRAGMA defer_foreign_keys = ON")
    for namespace, kind, key in nodes:
        if kind == "content":
            connection.execute("DELETE FROM blob WHERE namespace = ? AND digest = ?", (namespace, key))
        elif kind == "images":
            connection.execute("DELETE FROM image WHERE namespace = ? AND name = ?", (namespace, key))
        elif kind == "ingests":
            connection.execute("DELETE FROM ingest WHERE namespace = ? AND ref = ?", (namespace, key))
        else:
            connection.execute(
                "DELETE FROM snapshot WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, kind.partition("/")[2], key),
            )


def _delete_leases(connection: sqlite3.Connection, leases: Iterable[tuple[str, str]]) -> None:
    for namespace, lease in leases:
        connection.execute("DELETE FROM lease WHERE namespace = ? AND id = ?", (namespace, lease))
