"""``docker commit``: what a container has written becomes one more layer above its image's."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dockerd import errors
from dockerd.containerd_client import Client
from dockerd.images.importer import write_document
from dockerd.images.model import Image, Json
from dockerd.images.unpack import Metadata
from gantry.contracts.containerd.services.diff.v1 import diff_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.oci import image as oci
from gantry.oci.digest import Digest

__all__ = ["CommitRequest", "commit_image"]

# Of a container's configuration, what an image has too (image-spec, config.md, and what Docker adds to it).
_IMAGE_KEYS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "OnBuild",
    "Shell",
    "Healthcheck",
    "ArgsEscaped",
)


@dataclass(frozen=True)
class CommitRequest:
    """What to make an image of: the container's snapshot, and what the image's configuration says.

    ``config`` is a container's configuration in the API's form, ``command`` what the container ran.
    """

    snapshotter: str
    key: str
    config: Mapping[str, Any]
    command: str
    comment: str = ""
    author: str = ""


def commit_image(containerd: Client, parent: Image, request: CommitRequest, metadata: Metadata) -> oci.Descriptor:
    """Write layer, configuration and manifest, and return the manifest's descriptor.

    Nothing refers to it yet: ``metadata`` names the lease that keeps it.
    """
    layer = _write_layer(containerd, parent, request, metadata)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    base = parent.content.config
    author = request.author or str(base.get("author") or "")
    step: Json = {"created": created, "created_by": request.command}
    step |= {key: text for key, text in (("author", author), ("comment", request.comment)) if text}
    # A layer that came without an entry of its own must not be taken for another's.
    recorded = [entry for entry in base.get("history") or () if isinstance(entry, dict)]
    missing = len(parent.content.diff_ids) - sum(1 for entry in recorded if not entry.get("empty_layer"))
    document: Json = {
        "architecture": parent.architecture,
        "os": parent.os,
        "config": {key: request.config[key] for key in _IMAGE_KEYS if request.config.get(key)},
        "created": created,
        "history": [*({"created": parent.created} for _ in range(missing)), *recorded, step],
        "rootfs": {"type": "layers", "diff_ids": [*map(str, parent.content.diff_ids), str(layer.digest)]},
    }
    if author:
        document["author"] = author
    for key in ("variant", "os.version", "os.features"):
        if base.get(key):
            document[key] = base[key]
    config_descriptor = write_document(containerd, oci.OCI_CONFIG, oci.dump(document), {}, metadata)
    layers = (*parent.content.layers, layer)
    labels = {"containerd.io/gc.ref.content.config": str(config_descriptor.digest)}
    labels |= {f"containerd.io/gc.ref.content.l.{number}": str(one.digest) for number, one in enumerate(layers)}
    manifest = oci.Manifest(config=config_descriptor, layers=layers)
    return write_document(containerd, oci.OCI_MANIFEST, manifest.to_bytes(), labels, metadata)


def _write_layer(containerd: Client, parent: Image, request: CommitRequest, metadata: Metadata) -> oci.Descriptor:
    """The difference to the image, uncompressed: then the blob's digest is the layer's diff id too."""
    snapshots, snapshotter = containerd.snapshots, request.snapshotter
    upper = snapshots.Mounts(snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=request.key)).mounts
    view = f"{request.key}-commit-{secrets.token_hex(8)}"
    asked = snapshots_pb2.ViewSnapshotRequest(snapshotter=snapshotter, key=view, parent=parent.chain_id)
    lower = snapshots.View(asked, metadata=metadata).mounts
    try:
        reply = containerd.diff.Diff(
            diff_pb2.DiffRequest(
                left=lower, right=upper, media_type=oci.OCI_LAYER, ref=f"commit-{secrets.token_hex(16)}"
            ),
            metadata=metadata,
        )
    finally:
        with suppress(errors.NotFound):
            snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=view))
    return oci.Descriptor(oci.OCI_LAYER, Digest(reply.diff.digest), reply.diff.size)
