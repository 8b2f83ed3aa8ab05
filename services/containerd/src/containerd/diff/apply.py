"""Applying a layer out of the content store to mounts, with the digest of what is in it computed on the way."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

from containerd.archive.apply import apply_layer
from containerd.archive.compression import decompress, read_ahead
from containerd.archive.members import InvalidArchive
from containerd.content import ContentStore
from containerd.descriptors import OCI_LAYER, Descriptor, compression_of
from containerd.diff.temporary import mounted
from containerd.errors import InvalidArgument, ResourceExhausted, Unknown
from containerd.mounts import Mount
from containerd.observers import nobody
from containerd.scope import Scope

__all__ = ["Applier"]

_READ_SIZE = 256 << 10


class Applier:
    """Applies layers of one content store."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        progress: Callable[[int], None] = nobody,
    ) -> Descriptor:
        """Unpack ``layer`` into ``mounts`` and return a descriptor of what is in it: its digest is the diff id.

        ``progress`` is told how many bytes of the layer have been read. ``sync`` writes the file system out.
        Raises :class:`NotFound` for missing content, :class:`Unimplemented` for another media type,
        :class:`InvalidArgument` for a damaged layer, :class:`ResourceExhausted` when the disk is full.
        """
        compression = compression_of(layer.media_type)
        digest = hashlib.sha256()
        size = 0

        def content() -> Iterator[bytes]:
            nonlocal size
            for piece in decompress(_read(descriptor, progress), compression):
                digest.update(piece)
                size += len(piece)
                yield piece

        descriptor = self._content.open(scope, layer.digest)
        pieces = read_ahead(content())
        try:
            with _target(mounts) as (target, overlay, lower):
                apply_layer(pieces, target, overlay=overlay, lower=lower)
                for _ in pieces:  # what comes behind the archive's end belongs to the digest as well
                    pass
                if sync:
                    _sync(target)
        except InvalidArchive as error:
            raise InvalidArgument(f"layer {layer.digest}: {error}: invalid argument") from error
        except OSError as error:
            raise _translated(error, layer) from error
        finally:
            pieces.close()  # type: ignore[attr-defined]
            os.close(descriptor)
        return Descriptor(OCI_LAYER, f"sha256:{digest.hexdigest()}", size)


def _read(descriptor: int, progress: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    while chunk := os.read(descriptor, _READ_SIZE):
        yield chunk
        done += len(chunk)
        progress(done)


class _target:  # noqa: N801 (read as a verb: with _target(mounts))
    """The directory that a layer for ``mounts`` is written to: (directory, is it an overlay's upper, layers below).

    An overlay's upper directory is written to directly: mounting it would only copy whiteouts up and down. Other
    mounts than overlay and bind are mounted.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._mounts = mounts
        self._mounted: mounted | None = None

    def __enter__(self) -> tuple[str, bool, list[str]]:
        if len(self._mounts) == 1 and not self._mounts[0].read_only:
            mount = self._mounts[0]
            if mount.type == "bind":
                return mount.source, False, []
            upper = mount.option("upperdir")
            if mount.type == "overlay" and upper:
                return upper, True, mount.option("lowerdir").split(":")
        self._mounted = mounted(self._mounts)
        return self._mounted.__enter__(), False, []

    def __exit__(self, *exception: object) -> None:
        if self._mounted is not None:
            self._mounted.__exit__(*exception)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.sync()
    finally:
        os.close(descriptor)


def _translated(error: OSError, layer: Descriptor) -> Exception:
    text = f"failed to apply layer {layer.digest}: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"{text}: resource exhausted")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EEXIST, errno.ENOENT):
        return InvalidArgument(f"{text}: invalid argument")
    return Unknown(text)
