"""Pull: from a registry into the image store, unpacked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace

from containerd.content import ContentStore
from containerd.descriptors import (
    LEGACY_CONFIG,
    MAX_MANIFEST_SIZE,
    Descriptor,
    child_labels,
    children,
    is_config,
    is_index,
    is_layer,
    is_manifest,
)
from containerd.errors import ContainerdError, NotFound
from containerd.images import Image, ImageStore
from containerd.scope import Scope
from containerd.snapshots import Snapshotter
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import ImageStoreEndpoint, OCIRegistry, UnpackConfiguration
from containerd.transfer.fetch import Fetcher
from containerd.transfer.group import WorkGroup
from containerd.transfer.naming import images_for_target, require_images
from containerd.transfer.platforms import runs_on, select_manifests
from containerd.transfer.progress import ProgressTracker
from containerd.transfer.unpack import Unpacker, read_config

__all__ = ["Puller"]

DOWNLOADS = 3
"""Layers of one image that are fetched at once."""


class Puller:
    """One pull. :meth:`run` blocks until the image is stored."""

    def __init__(
        self,
        scope: Scope,
        content: ContentStore,
        images: ImageStore,
        fetcher: Fetcher,
        unpacker: Unpacker,
        snapshotters: dict[str, Snapshotter],
        progress: ProgressTracker,
        cancellation: Cancellation,
        executor: Executor,
    ) -> None:
        self._executor = executor
        self._scope = scope
        self._content = content
        self._images = images
        self._fetcher = fetcher
        self._unpacker = unpacker
        self._snapshotters = snapshotters
        self._progress = progress
        self._cancellation = cancellation

    def run(self, source: OCIRegistry, target: Descriptor, destination: ImageStoreEndpoint) -> list[Image]:
        """Fetch and unpack ``target``, then give it its names. Raises what went wrong, with nothing half-made kept."""
        self._progress.say(f"Pulling from {source}")
        self._progress.say("fetching image content", source.reference, target)
        with WorkGroup(self._executor, DOWNLOADS) as group:
            try:
                self._tree(group, target, destination)
            except BaseException:
                self._cancellation.cancel()  # the downloads that are left over stop
                raise
        stored = [
            self._images.store(self._scope, image)
            for image in require_images(images_for_target(destination, replace(target, platform=None)))
        ]
        for image in stored:
            self._progress.say("saved", image.name, image.target)
        self._progress.say(f"Completed pull from {source}")
        return stored

    def _tree(self, group: WorkGroup, target: Descriptor, destination: ImageStoreEndpoint) -> None:
        self._progress.waiting(target)
        self._fetcher.fetch(target)
        if is_manifest(target.media_type):
            self._manifest(group, target, destination)
            return
        found = self._children(target)
        if not is_index(target.media_type):
            return
        chosen = select_manifests(found, destination.platforms, destination.manifest_limit)
        if not chosen and found:
            wanted = ", ".join(str(platform) for platform in destination.platforms)
            raise NotFound(f"no match for platform {wanted} in manifest {target.digest}: not found")
        if destination.all_metadata:
            for other in found:
                if other not in chosen and is_manifest(other.media_type):
                    self._fetcher.fetch(other)
                    for child in self._children(other):
                        if not is_layer(child.media_type):
                            self._fetcher.fetch(child)
        for child in chosen:
            self._tree(group, child, destination)

    def _children(self, parent: Descriptor) -> list[Descriptor]:
        """Read what a manifest refers to, and make it keep that before any of it is there."""
        if not is_manifest(parent.media_type) and not is_index(parent.media_type):
            return []
        found = children(self._content.read(self._scope, parent.digest, MAX_MANIFEST_SIZE), parent)
        labels = child_labels(found)
        if labels:
            self._content.update(self._scope, parent.digest, labels, [f"labels.{key}" for key in labels])
        self._progress.children(parent, found)
        return found

    def _manifest(self, group: WorkGroup, manifest: Descriptor, destination: ImageStoreEndpoint) -> None:
        config, *layers = self._children(manifest)
        for layer in layers:
            self._progress.waiting(layer)
        self._progress.waiting(config)
        self._fetcher.fetch(config)
        futures = {layer.digest: group.submit(self._fetcher.fetch, layer) for layer in layers}
        snapshotter = choose_snapshotter(self._content, self._scope, self._snapshotters, config, destination.unpacks)
        if snapshotter is not None:
            self._unpack(snapshotter, config, layers, futures)
        for future in futures.values():
            future.result()

    def _unpack(
        self,
        snapshotter: Snapshotter,
        config: Descriptor,
        layers: Sequence[Descriptor],
        futures: dict[str, Future[None]],
    ) -> None:
        try:
            self._unpacker.unpack(
                self._scope,
                snapshotter,
                config,
                layers,
                cancellation=self._cancellation,
                fetched=lambda layer: futures[layer.digest],
                extracting=self._progress.extracting,
                extracted=self._progress.extracted,
            )
        except ContainerdError:
            for future in futures.values():
                future.cancel()
            raise


def choose_snapshotter(
    content: ContentStore,
    scope: Scope,
    snapshotters: dict[str, Snapshotter],
    config: Descriptor,
    unpacks: Sequence[UnpackConfiguration],
) -> Snapshotter | None:
    """Return the snapshotter that an image is to be unpacked with, or None when no configuration is for it.

    Raises :class:`NotFound` for a snapshotter that does not exist.
    """
    if not unpacks or not (is_config(config.media_type) or config.media_type == LEGACY_CONFIG):
        return None
    platform = read_config(content, scope, config).platform
    for unpack in unpacks:
        if unpack.platform is not None and runs_on(unpack.platform, platform) is None:
            continue
        name = unpack.snapshotter or "overlayfs"
        if name not in snapshotters:
            raise NotFound(f"snapshotter {name}: not found")
        return snapshotters[name]
    return None
