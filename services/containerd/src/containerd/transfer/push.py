"""Push: from the image store to a registry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from containerd.content import ContentStore
from containerd.descriptors import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    children,
    is_index,
    is_manifest,
    is_non_distributable,
)
from containerd.errors import NotFound, Unavailable
from containerd.images import Image
from containerd.labels import DISTRIBUTION_SOURCE
from containerd.scope import Scope
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import ImageStoreEndpoint, OCIRegistry
from containerd.transfer.group import WorkGroup
from containerd.transfer.platforms import select_manifests
from containerd.transfer.progress import ProgressTracker
from containerd.transfer.registry import RegistryClient

__all__ = ["Pusher"]

UPLOADS = 3
"""Blobs of one image that are sent at once."""
_ATTEMPTS = 4


@dataclass(slots=True)
class _Plan:
    """What has to be at the registry: blobs in any order, then manifests, each behind what it refers to."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    manifests: dict[str, Descriptor] = field(default_factory=dict)


class Pusher:
    """One push. :meth:`run` blocks until the registry has everything."""

    def __init__(
        self,
        scope: Scope,
        content: ContentStore,
        registry: RegistryClient,
        progress: ProgressTracker,
        cancellation: Cancellation,
        executor: Executor,
    ) -> None:
        self._executor = executor
        self._scope = scope
        self._content = content
        self._registry = registry
        self._progress = progress
        self._cancellation = cancellation

    def run(self, image: Image, source: ImageStoreEndpoint, destination: OCIRegistry) -> None:
        """Send what the registry has not got. Raises :class:`NotFound` when some of the image is not here."""
        self._progress.say(f"Pushing to {destination}")
        self._progress.say("pushing content", image.name, image.target)
        plan = _Plan()
        self._collect(plan, image.target, source)
        for descriptor in (*plan.blobs.values(), *plan.manifests.values()):
            self._content.info(self._scope, descriptor.digest)  # before anything is sent
            self._progress.waiting(descriptor)
        with WorkGroup(self._executor, UPLOADS) as group:
            futures = [group.submit(self._blob, blob) for blob in plan.blobs.values()]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._cancellation.cancel()
                raise
        for manifest in plan.manifests.values():
            self._manifest(manifest, image.target)
        self._progress.say("pushed content", image.name, image.target)
        self._progress.say(f"Completed push to {destination}", descriptor=image.target)

    def _collect(self, plan: _Plan, target: Descriptor, source: ImageStoreEndpoint) -> None:
        data = self._content.read(self._scope, target.digest, MAX_MANIFEST_SIZE)
        found = children(data, target)
        self._progress.children(target, found)
        if is_index(target.media_type):
            chosen = select_manifests(found, source.platforms)
            if found and not chosen:
                raise NotFound(f"no match for platform in manifest {target.digest}: not found")
            found = chosen
        for child in found:
            if is_manifest(child.media_type) or is_index(child.media_type):
                self._collect(plan, child, source)
            elif not is_non_distributable(child.media_type):
                plan.blobs[child.digest] = child
        plan.manifests[target.digest] = target

    def _blob(self, blob: Descriptor) -> None:
        if self._registry.exists(blob):
            self._progress.exists(blob)
            return
        for attempt in range(1, _ATTEMPTS + 1):
            self._cancellation.check()
            try:
                sent = self._registry.push_blob(blob, lambda: self._chunks(blob), self._mount_source(blob))
            except Unavailable:
                if attempt == _ATTEMPTS:
                    raise
                self._cancellation.sleep(0.2 * 2**attempt)
                continue
            if sent:
                self._progress.complete(blob)
            else:
                self._progress.exists(blob)
            return

    def _chunks(self, blob: Descriptor) -> Iterator[bytes]:
        done = 0
        for chunk in self._content.chunks(self._scope, blob.digest):
            self._cancellation.check()
            yield chunk
            done += len(chunk)
            self._progress.moving(blob, done)

    def _mount_source(self, blob: Descriptor) -> str:
        """Return the repository at the same registry that has the blob and is named most alike, or nothing."""
        reference = self._registry.reference
        label = f"{DISTRIBUTION_SOURCE}.{reference.domain.partition(':')[0]}"
        known = self._content.info(self._scope, blob.digest).labels.get(label, "")
        others = [name for name in known.split(",") if name and name != reference.path]
        return max(others, key=lambda name: _common_components(name, reference.path), default="")

    def _manifest(self, manifest: Descriptor, target: Descriptor) -> None:
        tag = self._registry.reference.tag if manifest.digest == target.digest else None
        if tag and self._registry.exists(manifest):
            self._progress.exists(manifest)
            return
        data = self._content.read(self._scope, manifest.digest, MAX_MANIFEST_SIZE)
        self._registry.push_manifest(manifest, data, tag or "")
        self._progress.complete(manifest)


def _common_components(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
