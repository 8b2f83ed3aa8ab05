"""From blobs to snapshots: each layer on top of those below it, named by its chain id (image-spec config.md)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from google.protobuf import field_mask_pb2

from dockerd import errors
from dockerd.containerd_client import Client
from dockerd.images.catalogue import to_wire
from dockerd.images.model import Content
from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.contracts.containerd.services.diff.v1 import diff_pb2
from gantry.contracts.containerd.services.leases.v1 import leases_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.oci.digest import Digest
from gantry.oci.image import Descriptor

__all__ = ["Metadata", "Unpacker", "lease", "set_content_labels"]

Metadata = tuple[tuple[str, str], ...]

_LEASE_LIFETIME = timedelta(hours=24)


@contextmanager
def lease(containerd: Client) -> Iterator[Metadata]:
    """Give the call metadata under which nothing that is made is collected as garbage before the end of the block.

    A lease that a killed engine leaves behind expires.
    """
    identity = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(8)}"
    expires = (datetime.now(UTC) + _LEASE_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
    request = leases_pb2.CreateRequest(id=identity, labels={"containerd.io/gc.expire": expires})
    containerd.leases.Create(request)
    try:
        yield (("containerd-lease", identity),)
    finally:
        with suppress(errors.NotFound):
            containerd.leases.Delete(leases_pb2.DeleteRequest(id=identity))


def set_content_labels(containerd: Client, digest: Digest, labels: dict[str, str], metadata: Metadata = ()) -> None:
    """Add labels to a blob."""
    mask = field_mask_pb2.FieldMask(paths=[f"labels.{label}" for label in labels])
    info = content_pb2.Info(digest=str(digest), labels=labels)
    containerd.content.Update(content_pb2.UpdateRequest(info=info, update_mask=mask), metadata=metadata)


class Unpacker:
    """Makes snapshots of images. Threads may use it at the same time; each image is unpacked once."""

    def __init__(self, containerd: Client, snapshotter: str) -> None:
        self._containerd = containerd
        self._snapshotter = snapshotter
        self._lock = threading.Lock()

    def is_unpacked(self, content: Content) -> bool:
        """Whether the image's root file system is there."""
        chain_ids = content.chain_ids
        return not chain_ids or self._exists(str(chain_ids[-1]))

    def unpack(self, content: Content) -> None:
        """Make the snapshots that are missing.

        Raises SystemFailure when a layer is not what the image's configuration says, or cannot be applied.
        """
        if self.is_unpacked(content):
            return
        if len(content.layers) != len(content.diff_ids):
            raise errors.SystemFailure(
                f"image {content.image_id} has {len(content.layers)} layers, its configuration {len(content.diff_ids)}"
            )
        with self._lock, lease(self._containerd) as metadata:
            parent = ""
            for layer, diff_id, chain_id in zip(content.layers, content.diff_ids, content.chain_ids, strict=True):
                if not self._exists(str(chain_id)):
                    self._apply(layer, diff_id, str(chain_id), parent, metadata)
                parent = str(chain_id)
            # The configuration keeps the snapshots, as each layer's keeps those below it.
            labels = {f"containerd.io/gc.ref.snapshot.{self._snapshotter}": parent}
            set_content_labels(self._containerd, content.config_descriptor.digest, labels, metadata)

    def _exists(self, chain_id: str) -> bool:
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self._snapshotter, key=chain_id)
        try:
            self._containerd.snapshots.Stat(request)
        except errors.NotFound:
            return False
        return True

    def _apply(self, layer: Descriptor, diff_id: Digest, chain_id: str, parent: str, metadata: Metadata) -> None:
        snapshots, snapshotter = self._containerd.snapshots, self._snapshotter
        key = f"extract-{secrets.token_hex(8)} {chain_id}"
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
        mounts = snapshots.Prepare(prepare, metadata=metadata).mounts
        try:
            request = diff_pb2.ApplyRequest(diff=to_wire(layer), mounts=mounts)
            applied = self._containerd.diff.Apply(request, metadata=metadata).applied
            if applied.digest != diff_id:
                raise errors.SystemFailure(
                    f"layer {layer.digest} unpacks to {applied.digest}, the image's configuration says {diff_id}"
                )
            commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=chain_id, key=key)
            snapshots.Commit(commit, metadata=metadata)
        except BaseException as error:
            snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key), metadata=metadata)
            if not isinstance(error, errors.Conflict):  # another has made the same snapshot meanwhile
                raise
        if layer.digest != diff_id:
            labels = {"containerd.io/uncompressed": str(diff_id)}
            set_content_labels(self._containerd, layer.digest, labels, metadata)
