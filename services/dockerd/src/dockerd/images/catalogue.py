"""Images as they are in containerd: names, and the documents behind them.

Documents are immutable, so what a target means is kept in memory once it was read. A listing is then one call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from google.protobuf import field_mask_pb2

from dockerd import errors
from dockerd.containerd_client import Client
from dockerd.images.model import DANGLING, Content, Record, is_dangling_name
from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.contracts.containerd.services.images.v1 import images_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.types import descriptor_pb2
from gantry.oci import image as oci
from gantry.oci import platform as platforms
from gantry.oci.digest import Digest, DigestMismatch, InvalidDigest
from gantry.oci.platform import Platform

__all__ = ["Catalogue", "to_wire"]

_log = logging.getLogger(__name__)

_REMEMBERED = 4096  # targets and layers


class Catalogue:
    """Reads and changes containerd's image records. Threads may use it at the same time."""

    def __init__(self, containerd: Client, snapshotter: str) -> None:
        self._containerd = containerd
        self._snapshotter = snapshotter
        self._lock = threading.Lock()
        self._contents: OrderedDict[tuple[str, str], Content] = OrderedDict()
        self._layer_sizes: OrderedDict[str, int] = OrderedDict()

    def records(self, filters: Iterable[str] = ()) -> list[Record]:
        """All names, or those that pass one of containerd's ``filters``."""
        reply = self._containerd.images.List(images_pb2.ListImagesRequest(filters=list(filters)))
        return [record for record in map(_record, reply.images) if record is not None]

    def record(self, name: str) -> Record | None:
        """The record with that full name."""
        try:
            reply = self._containerd.images.Get(images_pb2.GetImageRequest(name=name))
        except errors.NotFound:
            return None
        return _record(reply.image)

    def put(self, name: str, target: oci.Descriptor, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        """Let ``name`` point at ``target``. What it pointed at before stays, without a tag if that was its last."""
        previous = self.record(name)
        image = images_pb2.Image(name=name, target=to_wire(target))
        if previous is not None and previous.target.digest != target.digest:
            self.keep(previous)
        if previous is None:
            try:
                self._containerd.images.Create(images_pb2.CreateImageRequest(image=image), metadata=metadata)
            except errors.Conflict:  # another was quicker
                previous = Record(name, target)
        if previous is not None:
            mask = field_mask_pb2.FieldMask(paths=["target"])
            request = images_pb2.UpdateImageRequest(image=image, update_mask=mask)
            self._containerd.images.Update(request, metadata=metadata)
        if not is_dangling_name(name):
            self.drop_dangling(target.digest)

    def keep(self, record: Record) -> bool:
        """Make sure that what ``record`` points at outlives it: give it a name without a tag if it has no other.

        Returns whether it did.
        """
        others = self.records([f"target.digest=={record.target.digest}"])
        if any(other.name != record.name for other in others):
            return False
        self.put(f"{DANGLING}@{record.target.digest}", record.target)
        return True

    def drop_dangling(self, digest: str) -> None:
        """Forget the name without a tag of what has (or needs) no such name any more."""
        self.delete(f"{DANGLING}@{digest}")

    def delete(self, name: str, *, collect: bool = False) -> None:
        """Remove a name; without it there is nothing to do. ``collect``: return when what became garbage is gone."""
        with contextlib.suppress(errors.NotFound):
            self._containerd.images.Delete(images_pb2.DeleteImageRequest(name=name, sync=collect))

    def forget(self, digest: str) -> None:
        """Read again what a target means: more of its content may have arrived."""
        with self._lock:
            for key in [key for key in self._contents if key[0] == digest]:
                del self._contents[key]

    def content(self, target: oci.Descriptor, platform: Platform | None = None) -> Content:
        """What ``target`` means on ``platform`` (this machine's by default).

        Raises NotFound when its content, or that for the platform, is not there; SystemFailure when it is no image.
        """
        key = (str(target.digest), str(platform or ""))
        with self._lock:
            found = self._contents.get(key)
            if found is not None:
                self._contents.move_to_end(key)
                return found
        try:
            content = self._read_target(target, platform or platforms.default(), exact=platform is not None)
        except (oci.InvalidImage, DigestMismatch) as error:
            raise errors.SystemFailure(f"image {target.digest} cannot be read: {error}") from error
        with self._lock:
            self._contents[key] = content
            while len(self._contents) > _REMEMBERED:
                self._contents.popitem(last=False)
        return content

    def targets(self, image_id: str) -> set[str]:
        """The targets (digests) that are known to mean the image: a manifest, and indexes that have it."""
        with self._lock:
            return {target for (target, _), content in self._contents.items() if content.image_id == image_id}

    def read(self, digest: Digest, limit: int) -> bytes:
        """A document of at most ``limit`` bytes, checked. Raises NotFound, DigestMismatch, InvalidImage."""
        pieces: list[bytes] = []
        size = 0
        for reply in self._containerd.content.Read(content_pb2.ReadContentRequest(digest=str(digest)), timeout=60):
            pieces.append(reply.data)
            size += len(reply.data)
            if size > limit:
                raise oci.InvalidImage(f"{digest} is longer than the {limit} bytes that such a document may have")
        data = b"".join(pieces)
        digest.verify(data)
        return data

    def layer_size(self, content: Content, index: int) -> int:
        """Bytes that one layer's files take; as long as it is not unpacked, the size of its blob."""
        chain_id = str(content.chain_ids[index])
        with self._lock:
            known = self._layer_sizes.get(chain_id)
        if known is not None:
            return known
        try:
            usage = self._containerd.snapshots.Usage(
                snapshots_pb2.UsageRequest(snapshotter=self._snapshotter, key=chain_id)
            )
        except errors.NotFound:
            return content.layers[index].size if index < len(content.layers) else 0
        with self._lock:
            self._layer_sizes[chain_id] = usage.size
            while len(self._layer_sizes) > _REMEMBERED:
                self._layer_sizes.popitem(last=False)
        return int(usage.size)

    def size(self, content: Content) -> int:
        """Bytes that all layers together take."""
        return sum(self.layer_size(content, index) for index in range(len(content.diff_ids)))

    def _read_target(self, target: oci.Descriptor, platform: Platform, *, exact: bool) -> Content:
        if target.media_type not in oci.INDEX_TYPES:
            content = self._read_manifest(target.digest)
            if exact and not _runs_on(content.platform, platform):
                raise errors.NotFound(f"image was found, but its platform {content.platform} is not {platform}")
            return content
        index = oci.Index.parse(self.read(target.digest, oci.MAX_MANIFEST_SIZE))
        for manifest in _by_preference(index.manifests, platform, exact=exact):
            try:
                if manifest.media_type in oci.INDEX_TYPES:
                    return self._read_target(manifest, platform, exact=exact)
                return self._read_manifest(manifest.digest)
            except errors.NotFound:  # an image of many platforms is rarely here with all of them
                continue
        raise errors.NotFound(f"no content of image {target.digest} for platform {platform}")

    def _read_manifest(self, digest: Digest) -> Content:
        manifest = oci.Manifest.parse(self.read(digest, oci.MAX_MANIFEST_SIZE))
        raw = self.read(manifest.config.digest, oci.MAX_CONFIG_SIZE)
        config = oci.ImageConfig.parse(raw)
        return Content(
            manifest=digest,
            config_descriptor=manifest.config,
            config=json.loads(raw),
            layers=manifest.layers,
            diff_ids=config.diff_ids,
            platform=config.platform,
        )


def _by_preference(manifests: Sequence[oci.Descriptor], platform: Platform, *, exact: bool) -> list[oci.Descriptor]:
    """The manifests that can be meant, the best first: those that run here, then (unless ``exact``) the others."""
    known = [one for one in manifests if one.platform is None or one.platform.os != "unknown"]
    offers = [one.platform or platform for one in known]
    ordered: list[oci.Descriptor] = []
    for candidate in platform.compatible():
        ordered += [one for one, offer in zip(known, offers, strict=True) if offer.matches(candidate)]
    if not exact:
        ordered += [one for one in known if one not in ordered]
    return ordered


def _runs_on(offer: Platform, wanted: Platform) -> bool:
    return platforms.best_match([offer], wanted) is not None


def to_wire(descriptor: oci.Descriptor) -> descriptor_pb2.Descriptor:
    """A descriptor as containerd takes it."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def _record(image: images_pb2.Image) -> Record | None:
    target = image.target
    try:
        descriptor = oci.Descriptor(
            target.media_type, Digest(target.digest), target.size, annotations=dict(target.annotations)
        )
    except InvalidDigest:
        _log.warning("image %s has no valid target: %r", image.name, target.digest)
        return None
    return Record(image.name, descriptor, image.updated_at.seconds + image.updated_at.nanos / 1e9)
