"""Import: an archive, as an OCI layout or as ``docker save`` writes it, into the content store."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from containerd.archive import members
from containerd.archive.compression import compressor, decompress, detect
from containerd.archive.members import InvalidArchive, Member
from containerd.archive.reader import TarReader
from containerd.content import ContentStore, Writer
from containerd.descriptors import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
)
from containerd.errors import AlreadyExists, ContainerdError, InvalidArgument
from containerd.labels import UNCOMPRESSED
from containerd.scope import Scope
from containerd.transfer.naming import IMAGE_NAME, REF_NAME, ref_name
from containerd.transfer.unpack import read_config
from gantry.oci import reference as references
from gantry.oci.digest import is_digest
from gantry.oci.reference import InvalidReference

__all__ = ["ArchiveImporter"]

MAX_ENTRIES = 100_000
MAX_JSON = 20 << 20
"""Bytes of ``manifest.json`` and the like (the real daemon's bound)."""


class ArchiveImporter:
    """Reads one archive. Files go to the content store as they come, whatever they turn out to be."""

    def __init__(self, content: ContentStore, scope: Scope, *, compress: bool = False) -> None:
        self._content = content
        self._scope = scope
        self._compress = compress
        self._unique = os.urandom(6).hex()
        self._blobs: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}
        self._written: list[str] = []
        self._sink = _Sink()

    def run(self, chunks: Iterable[bytes], media_type: str = "") -> Descriptor:
        """Read the archive and return its index, which is in the store afterwards.

        Raises :class:`InvalidArgument` when it is no image archive, with the name of the entry or field that is wrong.
        """
        pieces = decompress(chunks, "unknown") if not media_type else iter(chunks)
        try:
            self._read(pieces)
        except InvalidArchive as error:
            self._drop_ingests()
            raise InvalidArgument(f"image archive: {error}: invalid argument") from error
        except BaseException:
            self._drop_ingests()
            raise
        if "oci-layout" in self._documents:
            return self._oci_index()
        if "manifest.json" in self._documents:
            return self._docker_index()
        raise InvalidArgument("unrecognized image format: invalid argument")

    def _read(self, chunks: Iterator[bytes]) -> None:
        reader = TarReader()
        entries = 0
        try:
            for chunk in chunks:
                for event in reader.feed(chunk):
                    if not isinstance(event, Member):
                        self._sink.data(event)
                        continue
                    self._sink.end()
                    entries += 1
                    if entries > MAX_ENTRIES:
                        raise InvalidArchive(f"more than {MAX_ENTRIES} entries")
                    self._sink = _Sink()
                    self._sink = self._begin(event)
            reader.close()
            self._sink.end()
        finally:
            self._sink.close()

    def _begin(self, member: Member) -> _Sink:
        name = posixpath.normpath(os.fsdecode(member.name)).lstrip("/")
        if member.type == members.SYMBOLIC_LINK:  # docker save, before 25: a layer that another image has as well
            target = posixpath.join(posixpath.dirname(name), os.fsdecode(member.link))
            self._links[name] = posixpath.normpath(target)
            return _Sink()
        if member.type == members.HARD_LINK:
            self._links[name] = posixpath.normpath(os.fsdecode(member.link))
            return _Sink()
        if member.type != members.REGULAR:
            return _Sink()
        if member.extents is not None:
            raise InvalidArchive(f"sparse file {name[:200]!r} in an image archive")
        if name in ("oci-layout", "manifest.json"):
            if member.size > MAX_JSON:
                raise InvalidArchive(f"{name} has more than {MAX_JSON} bytes")
            return _Document(name, self._documents)
        return _Blob(self, name, member.size)

    def open(self, name: str, size: int) -> tuple[Writer | None, str]:
        """Return a writer for the file ``name``, or None and the digest when its content is here already."""
        expected = _digest_in(name)
        reference = f"import-{self._unique}-{name}"
        try:
            writer = self._content.writer(self._scope, reference, total=size, expected=expected)
        except AlreadyExists:
            return None, expected
        self._written.append(reference)
        return writer, expected

    def keep(self, name: str, digest: str, size: int) -> None:
        """Note what a file's content is."""
        self._blobs[name] = Descriptor("", digest, size)

    def _drop_ingests(self) -> None:
        for reference in self._written:
            try:
                self._content.abort(self._scope, reference)
            except ContainerdError:
                continue  # complete, or gone

    def _oci_index(self) -> Descriptor:
        version = _object(self._documents["oci-layout"], "oci-layout").get("imageLayoutVersion")
        if version != "1.0.0":
            raise InvalidArgument(f"unsupported OCI version {version!r}: invalid argument")
        index = self._blobs.get("index.json")
        if index is None:
            raise InvalidArgument("missing index.json in OCI layout 1.0.0: invalid argument")
        return Descriptor(OCI_INDEX, index.digest, index.size)

    def _docker_index(self) -> Descriptor:
        entries = _list(self._documents["manifest.json"], "manifest.json")
        manifests: list[dict[str, Any]] = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise InvalidArgument("manifest.json: an entry is not an object: invalid argument")
            manifests += self._docker_image(entry)
        return self._put(json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(), OCI_INDEX)

    def _docker_image(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        config = self._file(entry.get("Config"), "image config")
        config = Descriptor(DOCKER_CONFIG, config.digest, config.size)
        names = entry.get("Layers") or []
        if not isinstance(names, list):
            raise InvalidArgument("manifest.json: Layers is not a list: invalid argument")
        layers = [self._layer(self._file(name, "layer")) for name in names]
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        target = self._put(json.dumps(manifest).encode(), DOCKER_MANIFEST)
        platform = read_config(self._content, self._scope, config).platform
        target = Descriptor(target.media_type, target.digest, target.size, platform=platform)
        tags = entry.get("RepoTags") or []
        if not isinstance(tags, list):
            raise InvalidArgument("manifest.json: RepoTags is not a list: invalid argument")
        return [_named(target, tag).to_json() for tag in tags] or [target.to_json()]

    def _file(self, name: Any, what: str) -> Descriptor:
        if not isinstance(name, str):
            raise InvalidArgument(f"manifest.json: {what} is not named: invalid argument")
        path = posixpath.normpath(name)
        for _ in range(8):
            if path in self._blobs:
                return self._blobs[path]
            if path not in self._links:
                break
            path = self._links[path]
        raise InvalidArgument(f"{what} {name[:200]!r} not found in the archive: invalid argument")

    def _layer(self, layer: Descriptor) -> Descriptor:
        """Return a layer with its media type; uncompressed ones may be compressed, or are here in compressed form."""
        known = self._content.list(self._scope, [f'labels."{UNCOMPRESSED}"=={layer.digest}'])
        if known and self._compress:
            return self._typed(Descriptor("", known[0].digest, known[0].size))
        typed = self._typed(layer)
        return self._compressed(layer) if self._compress and typed.media_type == DOCKER_LAYER else typed

    def _typed(self, layer: Descriptor) -> Descriptor:
        with os.fdopen(self._content.open(self._scope, layer.digest), "rb") as file:
            compression = detect(file.read(16))
        media_type = f"{DOCKER_LAYER}.{compression}" if compression else DOCKER_LAYER
        return Descriptor(media_type, layer.digest, layer.size)

    def _compressed(self, layer: Descriptor) -> Descriptor:
        gzip = compressor("gzip")
        with self._content.writer(self._scope, f"compress-blob-{layer.digest}-{self._unique}") as writer:
            for chunk in self._content.chunks(self._scope, layer.digest):
                writer.write(gzip.compress(chunk))
            writer.write(gzip.flush())
            size = writer.offset
            digest = writer.digest
            try:
                writer.commit(labels={UNCOMPRESSED: layer.digest})
            except AlreadyExists:
                self._content.update(self._scope, digest, {UNCOMPRESSED: layer.digest}, [f"labels.{UNCOMPRESSED}"])
        return Descriptor(f"{DOCKER_LAYER}.gzip", digest, size)

    def _put(self, data: bytes, media_type: str) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        try:
            with self._content.writer(
                self._scope, f"manifest-{digest}-{self._unique}", total=len(data), expected=digest
            ) as writer:
                if writer.offset != len(data):
                    writer.write(data)
                writer.commit(size=len(data), expected=digest)
        except AlreadyExists:
            return Descriptor(media_type, digest, len(data))
        return Descriptor(media_type, digest, len(data))


class _Sink:
    """Where the content of one entry goes: this one drops it."""

    def data(self, piece: memoryview) -> None:
        """Take the next part."""

    def end(self) -> None:
        """The entry is complete."""

    def close(self) -> None:
        """The archive is over, or broken: nothing may stay open."""


class _Document(_Sink):
    def __init__(self, name: str, documents: dict[str, bytes]) -> None:
        self._name = name
        self._documents = documents
        self._content = bytearray()

    def data(self, piece: memoryview) -> None:
        self._content += piece

    def end(self) -> None:
        self._documents[self._name] = bytes(self._content)


class _Blob(_Sink):
    def __init__(self, importer: ArchiveImporter, name: str, size: int) -> None:
        self._importer = importer
        self._name = name
        self._size = size
        self._writer, self._expected = importer.open(name, size)
        self._hash = hashlib.sha256() if self._writer is None or self._writer.offset else None
        self._complete = self._writer is not None and self._writer.offset == size and size > 0

    def data(self, piece: memoryview) -> None:
        if self._hash is not None:  # here already: the archive has to tell the truth about it all the same
            self._hash.update(piece)
        if self._writer is not None and not self._complete:
            self._writer.write(piece)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def end(self) -> None:
        digest = self._expected
        if self._hash is not None and f"sha256:{self._hash.hexdigest()}" != self._expected:
            raise InvalidArgument(f"image archive: {self._name} has another content than its name says")
        if self._writer is not None:
            digest = self._writer.digest
            try:
                self._writer.commit(size=self._size, expected=self._expected)
            except AlreadyExists:
                digest = self._expected or digest
        self._importer.keep(self._name, digest, self._size)


def _digest_in(name: str) -> str:
    """Return the digest that a path of an OCI layout (``blobs/sha256/...``) promises, or an empty string."""
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "blobs" and parts[1] == "sha256" and is_digest(f"sha256:{parts[2]}"):
        return f"sha256:{parts[2]}"
    return ""


def _object(data: bytes, name: str) -> dict[str, Any]:
    value = _parse(data, name)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name} is not a JSON object: invalid argument")
    return value


def _list(data: bytes, name: str) -> list[Any]:
    value = _parse(data, name)
    if not isinstance(value, list):
        raise InvalidArgument(f"{name} is not a JSON list: invalid argument")
    return value


def _parse(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name} is not JSON: {error}: invalid argument") from error


def _named(target: Descriptor, tag: Any) -> Descriptor:
    try:
        name = str(references.parse(tag).with_default_tag())
    except (InvalidReference, AttributeError, TypeError) as error:
        raise InvalidArgument(f"manifest.json: normalize image ref {tag!r}: {error}: invalid argument") from error
    return target.annotated(**{IMAGE_NAME: name, REF_NAME: ref_name(name)})
