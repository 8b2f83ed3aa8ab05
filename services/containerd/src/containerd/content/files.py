"""Where blobs and ingests lie on the disk.

::

    blobs/sha256/<hex>   complete, verified, read-only
    ingests/<id>/data    being written
    trash/               on its way out

A blob appears by ``rename`` of a complete file, so a reader never sees half of one, and a crash leaves an ingest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from containerd.errors import InvalidArgument
from gantry.oci.digest import Digest, InvalidDigest, is_digest

__all__ = ["ContentFiles"]


class ContentFiles:
    """The directories of one content store."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._ingests = root / "ingests"
        self._trash = root / "trash"
        for directory in (self._blobs / "sha256", self._ingests, self._trash):
            directory.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> str:
        """Return the path of a blob. Raises :class:`InvalidArgument` for a malformed digest."""
        try:
            valid = Digest(digest)
        except InvalidDigest as error:
            raise InvalidArgument(f"cannot calculate blob path from {error}: invalid argument") from error
        return os.path.join(self._blobs, valid.algorithm, valid.encoded)

    def blob_size(self, digest: str) -> int | None:
        """Return the size in bytes, or None when there is no such file."""
        try:
            return os.stat(self.blob(digest)).st_size
        except FileNotFoundError:
            return None

    def data(self, ingest: int) -> str:
        """Return the path of an ingest's bytes."""
        return os.path.join(self._ingests, str(ingest), "data")

    def create_ingest(self, ingest: int) -> int:
        """Make an ingest's directory, or find it, and return a descriptor for reading and writing its bytes."""
        os.makedirs(os.path.join(self._ingests, str(ingest)), mode=0o700, exist_ok=True)
        return os.open(self.data(ingest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def publish(self, ingest: int, digest: str) -> None:
        """Turn an ingest's bytes into a blob. The caller holds the database's write lock."""
        target = self.blob(digest)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        data = self.data(ingest)
        os.chmod(data, 0o444)
        os.rename(data, target)
        self.remove_ingest(ingest)

    def remove_ingest(self, ingest: int) -> None:
        """Drop an ingest's bytes; none is no error."""
        shutil.rmtree(os.path.join(self._ingests, str(ingest)), ignore_errors=True)

    def discard(self, digest: str) -> None:
        """Take a blob away; its bytes are deleted by :meth:`empty_trash`, which may take long for a large one."""
        os.rename(self.blob(digest), os.path.join(self._trash, digest.replace(":", "-")))

    def empty_trash(self) -> int:
        """Delete what was discarded and return how many bytes that were."""
        size = 0
        for name in os.listdir(self._trash):
            path = os.path.join(self._trash, name)
            try:
                size += os.stat(path).st_size
                os.unlink(path)
            except FileNotFoundError:
                continue
        return size

    def digests(self) -> Iterator[str]:
        """Yield the digest of every blob on the disk."""
        for algorithm in os.listdir(self._blobs):
            for encoded in os.listdir(self._blobs / algorithm):
                if is_digest(f"{algorithm}:{encoded}"):
                    yield f"{algorithm}:{encoded}"

    def ingest_ids(self) -> Iterator[int]:
        """Yield the id of every ingest on the disk."""
        for name in os.listdir(self._ingests):
            if name.isdecimal():
                yield int(name)
