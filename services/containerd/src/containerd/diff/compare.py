"""Making a layer of the difference between two sets of mounts."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from containerd.archive.compression import compressor
from containerd.archive.writer import END, header, padding
from containerd.content import ContentStore, Writer
from containerd.descriptors import OCI_LAYER, Descriptor, compression_of
from containerd.diff.changes import Change, RedirectedLayer, between, in_overlay_layer, whole_tree
from containerd.diff.temporary import mounted
from containerd.errors import AlreadyExists, Unimplemented, Unknown
from containerd.labels import UNCOMPRESSED
from containerd.mounts import Mount
from containerd.scope import Scope

__all__ = ["Differ"]

_READ_SIZE = 1 << 20


class Differ:
    """Writes layers to one content store."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    def diff(
        self,
        scope: Scope,
        left: Sequence[Mount],
        right: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date: int | None = None,
    ) -> Descriptor:
        """Write the layer that turns ``left`` into ``right`` and return its descriptor.

        The same trees give the same layer. ``source_date`` (nanoseconds since 1970) is the latest time that an entry
        may have. Raises :class:`Unimplemented` for a media type that is no layer's, :class:`ResourceExhausted`.
        """
        media_type = media_type or f"{OCI_LAYER}+gzip"
        try:
            compression = compression_of(media_type)
        except Unimplemented as error:
            raise Unimplemented(f"unsupported diff media type: {media_type}: not implemented") from error
        compression = "" if compression == "unknown" else compression
        reference = ref or f"diff-{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
        with self._content.writer(scope, reference) as writer:
            writer.truncate()
            try:
                diff_id = self._write(writer, compression, left, right, source_date)
                return self._commit(scope, writer, media_type, diff_id if compression else "", labels or {})
            except OSError as error:
                raise Unknown(f"failed to write diff: {error}") from error

    def _commit(
        self, scope: Scope, writer: Writer, media_type: str, diff_id: str, labels: Mapping[str, str]
    ) -> Descriptor:
        given = {**labels, **({UNCOMPRESSED: diff_id} if diff_id else {})}
        digest, size = writer.digest, writer.offset
        try:
            writer.commit(size=size, expected=digest, labels=given)
        except AlreadyExists:
            if given:
                self._content.update(scope, digest, given, [f"labels.{key}" for key in given])
        return Descriptor(media_type, digest, size)

    def _write(
        self, writer: Writer, compression: str, left: Sequence[Mount], right: Sequence[Mount], source_date: int | None
    ) -> str:
        digest = hashlib.sha256()
        packer = compressor(compression)

        def put(data: bytes) -> None:
            digest.update(data)
            packed = packer.compress(data)
            if packed:
                writer.write(packed)

        with ExitStack() as stack:
            try:
                _write_layer(_changes(stack, left, right), put, source_date)
            except RedirectedLayer:
                writer.truncate()
                digest, packer = hashlib.sha256(), compressor(compression)
                below = stack.enter_context(mounted(left, read_only=True))
                above = stack.enter_context(mounted(right, read_only=True))
                _write_layer(between(below, above), put, source_date)
        rest = packer.flush()
        if rest:
            writer.write(rest)
        return f"sha256:{digest.hexdigest()}"


def _changes(stack: ExitStack, left: Sequence[Mount], right: Sequence[Mount]) -> Iterator[Change]:
    """Choose the cheapest way to the difference: one layer's own entries, or a walk over two whole trees."""
    above, below = _layers(right), _layers(left) if left else []
    if above is not None and below is not None:
        if above[1:] == below and right[0].type == "overlay":
            return in_overlay_layer(above[0])
        if not below and len(above) == 1:
            return whole_tree(above[0])
        if len(above) == len(below) == 1:
            return between(below[0], above[0])
    lower = stack.enter_context(mounted(left, read_only=True)) if left else ""
    upper = stack.enter_context(mounted(right, read_only=True))
    return between(lower, upper) if lower else whole_tree(upper)


def _layers(mounts: Sequence[Mount]) -> list[str] | None:
    """Return the directories that a snapshot's mount is made of, uppermost first; None when it is something else."""
    if len(mounts) != 1:
        return None
    mount = mounts[0]
    if mount.type == "bind":
        return [mount.source]
    if mount.type == "overlay" and mount.option("lowerdir"):
        upper = mount.option("upperdir")
        return [*([upper] if upper else []), *mount.option("lowerdir").split(":")]
    return None


def _write_layer(changes: Iterator[Change], put: Callable[[bytes], None], source_date: int | None) -> None:
    for change in changes:
        try:
            if source_date is not None:
                change.member.mtime = min(change.member.mtime, source_date)
            put(header(change.member))
            if change.file >= 0:
                _write_content(change, put)
        finally:
            if change.file >= 0:
                os.close(change.file)
    put(END)


def _write_content(change: Change, put: Callable[[bytes], None]) -> None:
    """Write exactly as many bytes as the header says, whatever happens to the file meanwhile."""
    left = change.member.size
    while left:
        data = os.read(change.file, min(left, _READ_SIZE))
        if not data:
            put(bytes(min(left, _READ_SIZE)))
            left -= min(left, _READ_SIZE)
            continue
        put(data)
        left -= len(data)
    put(padding(change.member.size))
