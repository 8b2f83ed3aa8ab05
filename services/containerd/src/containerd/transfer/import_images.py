"""Import: what an archive brought becomes images, unpacked where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from containerd.content import ContentStore
from containerd.descriptors import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    child_labels,
    children,
    is_index,
    is_manifest,
)
from containerd.errors import InvalidArgument, NotFound
from containerd.images import Image, ImageStore
from containerd.scope import Scope
from containerd.snapshots import Snapshotter
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import ImageStoreEndpoint
from containerd.transfer.naming import images_for_archive_entry, images_for_target
from containerd.transfer.platforms import select_manifests
from containerd.transfer.progress import ProgressTracker
from containerd.transfer.pull import choose_snapshotter
from containerd.transfer.unpack import Unpacker

__all__ = ["ImageImport"]

_MAX_DEPTH = 8


class ImageImport:
    """Stores the images of one archive whose content is in the content store."""

    def __init__(
        self,
        scope: Scope,
        content: ContentStore,
        images: ImageStore,
        unpacker: Unpacker,
        snapshotters: dict[str, Snapshotter],
        progress: ProgressTracker,
        cancellation: Cancellation,
    ) -> None:
        self._scope = scope
        self._content = content
        self._images = images
        self._unpacker = unpacker
        self._snapshotters = snapshotters
        self._progress = progress
        self._cancellation = cancellation

    def run(self, index: Descriptor, destination: ImageStoreEndpoint) -> list[Image]:
        """Check and unpack all that ``index`` refers to, then give the names. Raises what is wrong with the archive."""
        entries = self._children(index)
        chosen = select_manifests(entries, destination.platforms, destination.manifest_limit)
        if entries and not chosen:
            raise NotFound("image might be filtered out: no match for platform in archive: not found")
        for entry in chosen:
            self._tree(entry, destination, 0)
        wanted = images_for_target(destination, index)
        for entry in chosen:
            wanted += images_for_archive_entry(destination, entry)
        stored = [self._images.store(self._scope, image) for image in wanted]
        for image in stored:
            self._progress.say("saved", image.name, image.target)
        return stored

    def _tree(self, target: Descriptor, destination: ImageStoreEndpoint, depth: int) -> None:
        self._cancellation.check()
        if depth > _MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest} is nested more than {_MAX_DEPTH} deep: invalid argument")
        found = self._children(target)
        if is_index(target.media_type):
            for child in self._present(found, destination):
                self._tree(child, destination, depth + 1)
        elif is_manifest(target.media_type):
            self._manifest(found, destination)

    def _present(self, found: Sequence[Descriptor], destination: ImageStoreEndpoint) -> list[Descriptor]:
        """Leave out platforms that the archive does not contain: an export of one platform keeps the whole index."""
        present = []
        for child in select_manifests(found, destination.platforms, destination.manifest_limit):
            try:
                self._content.info(self._scope, child.digest)
            except NotFound:
                continue
            present.append(child)
        return present

    def _manifest(self, found: Sequence[Descriptor], destination: ImageStoreEndpoint) -> None:
        config, *layers = found
        for child in found:
            self._content.info(self._scope, child.digest)
        snapshotter = choose_snapshotter(self._content, self._scope, self._snapshotters, config, destination.unpacks)
        if snapshotter is not None:
            self._unpacker.unpack(
                self._scope,
                snapshotter,
                config,
                layers,
                cancellation=self._cancellation,
                extracting=self._progress.extracting,
                extracted=self._progress.extracted,
            )

    def _children(self, parent: Descriptor) -> list[Descriptor]:
        if not is_manifest(parent.media_type) and not is_index(parent.media_type):
            return []
        found = children(self._content.read(self._scope, parent.digest, MAX_MANIFEST_SIZE), parent)
        labels = child_labels(found)
        if labels:
            self._content.update(self._scope, parent.digest, labels, [f"labels.{key}" for key in labels])
        self._progress.children(parent, found)
        return found
