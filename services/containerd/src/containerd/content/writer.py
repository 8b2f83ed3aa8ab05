"""One write to the content store, from open to commit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from containerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from containerd.identifiers import validate_labels
from containerd.metadata.leases import LeaseResource, add_to_lease, remove_from_lease
from containerd.metadata.namespaces import ensure_namespace
from containerd.scope import Scope

if TYPE_CHECKING:
    from containerd.content.store import ContentStore

__all__ = ["Writer"]

_COPY_SIZE = 1 << 20


class Writer:
    """An ingest that is open for writing. One thread uses it at a time; bytes are hashed as they come.

    Content that another namespace has already starts complete: nothing needs to be written, only committed.
    """

    def __init__(
        self, store: ContentStore, scope: Scope, ref: str, ingest: int, started_at: int, total: int, expected: str
    ) -> None:
        self.ref = ref
        self.started_at = started_at
        self.updated_at = started_at
        self.total = total
        self._store = store
        self._scope = scope
        self._ingest = ingest
        self._expected = expected
        self._descriptor = -1
        self._hash = hashlib.sha256()
        self.offset = 0
        shared = store.files.blob_size(expected) if expected else None
        self._shared = shared is not None and shared in (total, shared if total == 0 else -1)
        if self._shared:
            assert shared is not None
            self.offset = self.total = shared
        else:
            self._descriptor = store.files.create_ingest(ingest)
            self._rehash()

    @property
    def digest(self) -> str:
        """The sha256 digest of what has been written so far."""
        return self._expected if self._shared else f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises :class:`ResourceExhausted` when the disk is full."""
        if self._shared:
            self.truncate()
        try:
            with _disk_errors(self.ref):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
        except ResourceExhausted:
            self.truncate()  # a full disk is no place to wait for a resume: even an Abort needs some room
            raise
        self._hash.update(data)
        self.offset += len(data)
        self.updated_at = time.time_ns()

    def truncate(self) -> None:
        """Start again at offset 0."""
        if self._shared:
            self._shared = False
            self._descriptor = self._store.files.create_ingest(self._ingest)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.offset = 0

    def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Verify what was written and make it a blob of the namespace; returns its digest. The writer is closed.

        ``size`` 0 and an empty ``expected`` are not checked.
        Raises :class:`FailedPrecondition` when size or digest differ (the ingest stays, to be truncated or aborted),
        :class:`AlreadyExists` when the namespace has the blob already (the ingest is gone).
        """
        labels = {key: value for key, value in (labels or {}).items() if value}
        try:
            validate_labels(labels, "info.Labels")
            digest = self._verify(size, expected)
            if not self._shared:
                with _disk_errors(self.ref):
                    os.fdatasync(self._descriptor)
            with _disk_errors(self.ref):
                exists = self._publish(digest, labels)
        finally:
            self.close()
        if exists:
            raise AlreadyExists(f"content {digest}: already exists")
        self._store.publish(self._scope, "/content/create", {"digest": digest, "size": self.offset})
        return digest

    def close(self) -> None:
        """Let go of the ingest; it can be opened again and goes on where it was."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._ingest >= 0:
            self._ingest = -1
            self._store.unlock(self._scope, self.ref)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _verify(self, size: int, expected: str) -> str:
        if self._ingest < 0:
            raise FailedPrecondition("cannot commit on closed writer: failed precondition")
        if size > 0 and size != self.offset:
            raise FailedPrecondition(f"unexpected commit size {self.offset}, expected {size}: failed precondition")
        digest = self.digest
        if expected and expected != digest:
            algorithm = expected.partition(":")[0]
            if algorithm == "sha256" or self._shared:
                raise self._mismatch(digest, expected)
            digest = self._digest_by(algorithm)
            if digest != expected:
                raise self._mismatch(digest, expected)
        return digest

    def _mismatch(self, digest: str, expected: str) -> FailedPrecondition:
        return FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}: failed precondition")

    def _digest_by(self, algorithm: str) -> str:
        if algorithm not in ("sha384", "sha512"):
            raise InvalidArgument(f"unsupported digest algorithm {algorithm[:20]!r}: invalid argument")
        other = hashlib.new(algorithm)
        for data in self._written():
            other.update(data)
        return f"{algorithm}:{other.hexdigest()}"

    def _publish(self, digest: str, labels: Mapping[str, str]) -> bool:
        """Make the blob visible, in one transaction with the end of the ingest; True when it was visible before."""
        scope, files = self._scope, self._store.files
        now = time.time_ns()
        with self._store.database.write() as connection:
            ensure_namespace(connection, scope.namespace)
            inserted = connection.execute(
                "INSERT OR IGNORE INTO blob (namespace, digest, size, labels, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (scope.namespace, digest, self.offset, json.dumps(labels), now, now),
            )
            connection.execute("DELETE FROM ingest WHERE id = ?", (self._ingest,))
            remove_from_lease(connection, scope.namespace, scope.lease, LeaseResource("ingests", self.ref))
            add_to_lease(connection, scope.namespace, scope.lease, LeaseResource("content", digest))
            # The write lock is held: a collection cannot decide that the file is nobody's between here and the commit.
            size = files.blob_size(digest)
            if size is None and self._shared:
                raise FailedPrecondition(f"content {digest} was removed while it was being shared: failed precondition")
            if size != self.offset:
                files.publish(self._ingest, digest)
            else:
                files.remove_ingest(self._ingest)
        return not inserted.rowcount

    def _rehash(self) -> None:
        for data in self._written():
            self._hash.update(data)
            self.offset += len(data)
        os.lseek(self._descriptor, self.offset, os.SEEK_SET)

    def _written(self) -> Iterator[bytes]:
        position = 0
        while data := os.pread(self._descriptor, _COPY_SIZE, position):
            yield data
            position += len(data)


@contextmanager
def _disk_errors(ref: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"cannot write ingest {ref}: {os.strerror(error.errno)}: resource exhausted"
            ) from error
        raise
