"""Export: images become an archive that is an OCI layout and what ``docker load`` takes, in one.

Source: image-spec, "Image Layout"; Docker's ``manifest.json`` ("Docker Image Specification v1.2", Combined Image JSON).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from containerd.archive.members import DIRECTORY, REGULAR, Member
from containerd.archive.writer import END, header, padding
from containerd.content import ContentStore
from containerd.descriptors import (
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    children,
    is_index,
    is_manifest,
    is_non_distributable,
)
from containerd.errors import FailedPrecondition, InvalidArgument, NotFound
from containerd.images import Image
from containerd.labels import DISTRIBUTION_SOURCE
from containerd.scope import Scope
from containerd.transfer.endpoints import ExportStream
from containerd.transfer.naming import IMAGE_NAME, REF_NAME, ref_name
from containerd.transfer.platforms import select_manifests
from gantry.oci import platform as platforms
from gantry.oci import reference as references
from gantry.oci.reference import InvalidReference

__all__ = ["ArchiveExporter"]


@dataclass(slots=True)
class _DockerImage:
    manifest: Descriptor
    names: list[str] = field(default_factory=list)


class ArchiveExporter:
    """Writes one archive to ``write``, a function that takes bytes."""

    def __init__(
        self,
        content: ContentStore,
        scope: Scope,
        destination: ExportStream,
        write: Callable[[bytes], None],
    ) -> None:
        self._content = content
        self._scope = scope
        self._destination = destination
        self._write = write
        self._blobs: dict[str, Descriptor] = {}
        self._docker: dict[str, _DockerImage] = {}

    def run(self, images: Sequence[Image]) -> None:
        """Write the images. Entries are sorted by name, so the same images always give the same archive.

        Raises :class:`NotFound` when content is missing (before anything is written),
        :class:`FailedPrecondition` when what is on the disk is not what it was.
        """
        manifests = []
        for image in images:
            names = {IMAGE_NAME: image.name, REF_NAME: ref_name(image.name)}
            target = image.target.annotated(**self._sources(image.target), **names)
            manifests.append(target)
            self._collect(target, image.name)
        for blob in self._blobs.values():
            self._content.info(self._scope, blob.digest)
        self._archive(manifests)

    def _sources(self, target: Descriptor) -> dict[str, str]:
        labels = self._content.info(self._scope, target.digest).labels
        return {key: value for key, value in labels.items() if key.startswith(DISTRIBUTION_SOURCE)}

    def _collect(self, target: Descriptor, name: str) -> None:
        if is_manifest(target.media_type):
            self._manifest(target)
            self._docker.setdefault(target.digest, _DockerImage(target)).names.append(name)
            return
        if not is_index(target.media_type):
            raise InvalidArgument(f"only manifests may be exported, {name} is {target.media_type}: invalid argument")
        found = self._children(target)
        wanted = self._destination.platforms or (platforms.default(),)
        chosen = [item for item in select_manifests(found, wanted) if is_manifest(item.media_type)]
        exported = found if self._destination.all_platforms else chosen
        if not exported:
            raise NotFound(f"no manifest of {name} found for platform {', '.join(map(str, wanted))}: not found")
        for item in exported:
            self._add(item)
        if chosen:
            self._docker.setdefault(chosen[0].digest, _DockerImage(chosen[0])).names.append(name)

    def _add(self, item: Descriptor) -> None:
        if is_manifest(item.media_type):
            self._manifest(item)
        elif is_index(item.media_type):
            for child in self._children(item):
                self._add(child)

    def _manifest(self, manifest: Descriptor) -> None:
        for child in self._children(manifest):
            if self._destination.skip_non_distributable and is_non_distributable(child.media_type):
                continue
            self._blobs[child.digest] = child

    def _children(self, parent: Descriptor) -> list[Descriptor]:
        self._blobs[parent.digest] = parent
        return children(self._content.read(self._scope, parent.digest, MAX_MANIFEST_SIZE), parent)

    def _archive(self, manifests: Sequence[Descriptor]) -> None:
        index: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [manifest.to_json() for manifest in manifests],
        }
        files: dict[str, Descriptor | bytes | None] = {
            "blobs/": None,
            "index.json": json.dumps(index, separators=(",", ":")).encode(),
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        }
        if self._docker and not self._destination.skip_compatibility_manifest:
            files["manifest.json"] = json.dumps(list(self._docker_manifests()), separators=(",", ":")).encode()
        for digest, blob in self._blobs.items():
            algorithm = digest.partition(":")[0]
            files[f"blobs/{algorithm}/"] = None
            files[_path(digest)] = blob
        for name in sorted(files):
            self._entry(name, files[name])
        self._write(END)

    def _entry(self, name: str, content: Descriptor | bytes | None) -> None:
        if content is None:
            self._write(header(Member(name.encode(), DIRECTORY, mode=0o755)))
            return
        if isinstance(content, bytes):
            mode, size, chunks = 0o644, len(content), iter((content,))
        else:
            mode, size, chunks = 0o444, content.size, self._verified(content)
        self._write(header(Member(name.encode(), REGULAR, mode=mode, size=size)))
        for chunk in chunks:
            self._write(chunk)
        self._write(padding(size))

    def _verified(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes; what the disk has lost is found out here and not by who loads the archive."""
        algorithm = blob.digest.partition(":")[0]
        digest, size = hashlib.new(algorithm), 0
        for chunk in self._content.chunks(self._scope, blob.digest):
            digest.update(chunk)
            size += len(chunk)
            if size > blob.size:
                break
            yield chunk
        if size != blob.size or f"{algorithm}:{digest.hexdigest()}" != blob.digest:
            raise FailedPrecondition(f"content {blob.digest} is damaged on the disk: failed precondition")

    def _docker_manifests(self) -> Iterator[dict[str, Any]]:
        for image in self._docker.values():
            data = self._content.read(self._scope, image.manifest.digest, MAX_MANIFEST_SIZE)
            config, *layers = children(data, image.manifest)
            entry: dict[str, Any] = {
                "Config": _path(config.digest),
                "RepoTags": list(_familiar(image.names)),
                "Layers": [_path(layer.digest) for layer in layers],
            }
            if not entry["RepoTags"]:
                entry["RepoTags"] = None
            yield entry


def _path(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _familiar(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            parsed = references.parse(name).with_default_tag()
        except InvalidReference:
            continue  # an image with a name of its own making has no tag for docker
        if parsed.tag:
            yield replace(parsed, digest=None).familiar
