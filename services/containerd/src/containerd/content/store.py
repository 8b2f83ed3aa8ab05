"""Blobs by digest, with labels for each namespace, and ingests that can be resumed."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from containerd import filters as filter_language
from containerd.content.files import ContentFiles
from containerd.content.writer import Writer
from containerd.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from containerd.identifiers import validate_labels
from containerd.labels import merge_labels
from containerd.metadata.leases import LeaseResource, add_to_lease, remove_from_lease
from containerd.metadata.namespaces import ensure_namespace
from containerd.observers import Dirty, Publish, nobody
from containerd.scope import Scope
from gantry.database import Database

__all__ = ["ContentStore", "Info", "IngestStatus"]

_INGEST_LIFETIME = 24 * 3600 * 10**9
"""Nanoseconds after which an ingest that no lease keeps is garbage."""

_READ_SIZE = 256 << 10


@dataclass(frozen=True, slots=True)
class Info:
    """A blob as one namespace sees it. ``size`` is in bytes, times are nanoseconds since 1970."""

    digest: str
    size: int
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """How far a write has come: ``offset`` of ``total`` bytes (0: unknown) are there."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: int
    updated_at: int


class ContentStore:
    """The content store below one root directory. Safe for threads.

    What is visible in a namespace is in the database; the bytes are in files. A namespace that starts to write
    content which another one has already gets it without writing it again.

    ``publish(scope, topic, fields)`` is told of what is made and deleted; ``dirty()`` that there may be garbage.
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        publish: Publish = nobody,
        dirty: Dirty = nobody,
    ) -> None:
        self.files = ContentFiles(root)
        self.database = database
        self.publish = publish
        self._dirty = dirty
        self._locks: dict[tuple[str, str], float] = {}
        self._mutex = threading.Lock()

    def info(self, scope: Scope, digest: str) -> Info:
        """Return one blob. Raises :class:`NotFound`."""
        with self.database.read() as connection:
            return _info(connection, scope, digest)

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Info]:
        """Return the blobs that match any filter (fields ``digest``, ``size``, ``labels.KEY``), by digest."""
        matcher = filter_language.parse(filters)
        with self.database.read() as connection:
            rows = connection.execute("SELECT * FROM blob WHERE namespace = ? ORDER BY digest", (scope.namespace,))
            infos = [_from_row(row) for row in rows]
        return [info for info in infos if matcher.match(lambda path, info=info: _field(info, path))]  # type: ignore[misc]

    def update(self, scope: Scope, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Set labels: those that ``paths`` name (``labels.KEY``), or all of them. An empty value removes a label.

        Raises :class:`NotFound`, :class:`InvalidArgument`.
        """
        with self.database.write() as connection:
            before = _info(connection, scope, digest)
            merged = merge_labels(before.labels, labels, paths, f'content info "{digest}"')
            validate_labels(merged, "info.Labels")
            connection.execute(
                "UPDATE blob SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (json.dumps(merged), time.time_ns(), scope.namespace, digest),
            )
            return _info(connection, scope, digest)

    def delete(self, scope: Scope, digest: str) -> None:
        """Make a blob invisible here; its bytes go when no namespace knows it. Raises :class:`NotFound`."""
        with self.database.write() as connection:
            deleted = connection.execute(
                "DELETE FROM blob WHERE namespace = ? AND digest = ?", (scope.namespace, digest)
            )
            if not deleted.rowcount:
                raise NotFound(f"content digest {digest}: not found")
            remove_from_lease(connection, scope.namespace, scope.lease, LeaseResource("content", digest))
        self._dirty()
        self.publish(scope, "/content/delete", {"digest": digest})

    def open(self, scope: Scope, digest: str) -> int:
        """Return a descriptor for reading a blob; the caller closes it. Raises :class:`NotFound`."""
        self.info(scope, digest)
        try:
            return os.open(self.files.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} expected at {self.files.blob(digest)}: not found") from error

    def read(self, scope: Scope, digest: str, limit: int) -> bytes:
        """Return a small blob whole. Raises :class:`NotFound`, or :class:`InvalidArgument` above ``limit`` bytes."""
        info = self.info(scope, digest)
        if info.size > limit:
            raise InvalidArgument(f"content {digest} has {info.size} bytes, more than the {limit} allowed here")
        with os.fdopen(self.open(scope, digest), "rb") as file:
            return file.read(limit)

    def chunks(self, scope: Scope, digest: str, size: int = _READ_SIZE) -> Iterator[bytes]:
        """Yield a blob's bytes in pieces of up to ``size``."""
        descriptor = self.open(scope, digest)
        try:
            while data := os.read(descriptor, size):
                yield data
        finally:
            os.close(descriptor)

    def writer(self, scope: Scope, ref: str, *, total: int = 0, expected: str = "") -> Writer:
        """Open the ingest ``ref`` for writing, where it was left; the caller closes it.

        Raises :class:`AlreadyExists` when ``expected`` is here already, :class:`Unavailable` while another writer
        has the same ingest, :class:`InvalidArgument` for an empty reference.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty: invalid argument")
        if expected:
            self.files.blob(expected)  # a malformed digest is refused before anything is made
            if self._exists(scope, expected):
                raise AlreadyExists(f"content {expected}: already exists")
        self._lock(scope, ref)
        try:
            ingest, started_at, total = self._open_ingest(scope, ref, total, expected)
            return Writer(self, scope, ref, ingest, started_at, total, expected)
        except BaseException:
            self.unlock(scope, ref)
            raise

    def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[IngestStatus]:
        """Return what is being written, by reference; filters know the field ``ref``."""
        matcher = filter_language.parse(filters)
        with self.database.read() as connection:
            rows = connection.execute("SELECT * FROM ingest WHERE namespace = ? ORDER BY ref", (scope.namespace,))
            found = [self._status(row) for row in rows]
        return [
            status
            for status in found
            if matcher.match(lambda path, status=status: status.ref if path[0] == "ref" else None)  # type: ignore[misc]
        ]

    def status(self, scope: Scope, ref: str) -> IngestStatus:
        """Return how far one ingest has come. Raises :class:`NotFound`."""
        with self.database.read() as connection:
            return self._status(_ingest(connection, scope, ref))

    def abort(self, scope: Scope, ref: str) -> None:
        """Drop an ingest and its bytes. Raises :class:`NotFound`."""
        with self.database.write() as connection:
            ingest = _ingest(connection, scope, ref)["id"]
            connection.execute("DELETE FROM ingest WHERE id = ?", (ingest,))
            remove_from_lease(connection, scope.namespace, scope.lease, LeaseResource("ingests", ref))
        self.files.remove_ingest(ingest)

    def unlock(self, scope: Scope, ref: str) -> None:
        """Let others write to ``ref``: for the writer, when it closes."""
        with self._mutex:
            self._locks.pop((scope.namespace, ref), None)

    def locked(self) -> set[tuple[str, str]]:
        """Return namespace and reference of the ingests that are being written at this moment."""
        with self._mutex:
            return set(self._locks)

    def _lock(self, scope: Scope, ref: str) -> None:
        with self._mutex:
            since = self._locks.get((scope.namespace, ref))
            if since is not None:
                seconds = time.monotonic() - since
                raise Unavailable(f"ref {scope.namespace}/{ref} locked for {seconds:.3f}s: unavailable")
            self._locks[scope.namespace, ref] = time.monotonic()

    def _exists(self, scope: Scope, digest: str) -> bool:
        with self.database.write() as connection:
            try:
                _info(connection, scope, digest)
            except NotFound:
                return False
            add_to_lease(connection, scope.namespace, scope.lease, LeaseResource("content", digest))
            return True

    def _open_ingest(self, scope: Scope, ref: str, total: int, expected: str) -> tuple[int, int, int]:
        now = time.time_ns()
        with self.database.write() as connection:
            ensure_namespace(connection, scope.namespace)
            expires_at = 0 if scope.lease else now + _INGEST_LIFETIME
            connection.execute(
                "INSERT INTO ingest (namespace, ref, expected, total, started_at, expires_at) "
                "VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (namespace, ref) DO UPDATE SET expires_at = excluded.expires_at, "
                "total = CASE WHEN excluded.total > 0 THEN excluded.total ELSE total END",
                (scope.namespace, ref, expected, total, now, expires_at),
            )
            add_to_lease(connection, scope.namespace, scope.lease, LeaseResource("ingests", ref))
            row = _ingest(connection, scope, ref)
            return row["id"], row["started_at"], row["total"]

    def _status(self, row: sqlite3.Row) -> IngestStatus:
        try:
            data = os.stat(self.files.data(row["id"]))
            offset, updated_at = data.st_size, data.st_mtime_ns
        except FileNotFoundError:
            offset, updated_at = 0, row["started_at"]
        return IngestStatus(row["ref"], offset, row["total"], row["expected"], row["started_at"], updated_at)


def _ingest(connection: sqlite3.Connection, scope: Scope, ref: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM ingest WHERE namespace = ? AND ref = ?", (scope.namespace, ref)
    ).fetchone()
    if row is None:
        raise NotFound(f"reference {ref}: not found")
    return row


def _info(connection: sqlite3.Connection, scope: Scope, digest: str) -> Info:
    row = connection.execute(
        "SELECT * FROM blob WHERE namespace = ? AND digest = ?", (scope.namespace, digest)
    ).fetchone()
    if row is None:
        raise NotFound(f"content digest {digest}: not found")
    return _from_row(row)


def _from_row(row: sqlite3.Row) -> Info:
    return Info(row["digest"], row["size"], json.loads(row["labels"]), row["created_at"], row["updated_at"])


def _field(info: Info, path: Sequence[str]) -> str | None:
    match path[0]:
        case "digest":
            return info.digest
        case "size":
            return str(info.size)
        case "labels":
            return filter_language.label_field(info.labels, path[1:])
        case _:
            return None
