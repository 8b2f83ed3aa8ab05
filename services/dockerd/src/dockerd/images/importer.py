"""``docker import``: a tar archive becomes an image of one layer."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from dockerd import errors
from dockerd.containerd_client import Client
from dockerd.images.changes import apply_changes
from dockerd.images.decompress import read_uncompressed
from dockerd.images.unpack import Metadata, set_content_labels
from gantry.contracts.containerd.services.content.v1 import content_pb2
from gantry.oci import image as oci
from gantry.oci import platform as platforms
from gantry.oci.digest import Digest, Hasher
from gantry.oci.platform import Platform

__all__ = ["ImportRequest", "import_image", "write_document"]


@dataclass(frozen=True)
class ImportRequest:
    """What to make of the archive: instructions to apply, a comment, and the platform (this machine's by default)."""

    changes: tuple[str, ...] = ()
    message: str = ""
    platform: Platform | None = None


def import_image(containerd: Client, archive: IO[bytes], request: ImportRequest, metadata: Metadata) -> oci.Descriptor:
    """Write layer, configuration and manifest, and return the manifest's descriptor.

    Nothing refers to it yet: ``metadata`` names the lease that keeps it. Raises InvalidParameter for damaged input.
    """
    config = apply_changes({}, request.changes)
    layer = _write_layer(containerd, archive, metadata)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    step: dict[str, Any] = {"created": created}
    if request.message:
        step["comment"] = request.message
    platform = request.platform or platforms.default()
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "created": created,
        "history": [step],
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest)]},
    }
    if platform.variant:
        document["variant"] = platform.variant
    config_descriptor = write_document(containerd, oci.OCI_CONFIG, oci.dump(document), {}, metadata)
    manifest = oci.Manifest(config=config_descriptor, layers=(layer,))
    labels = {
        "containerd.io/gc.ref.content.config": str(config_descriptor.digest),
        "containerd.io/gc.ref.content.l.0": str(layer.digest),
    }
    return write_document(containerd, oci.OCI_MANIFEST, manifest.to_bytes(), labels, metadata)


def write_document(
    containerd: Client, media_type: str, content: bytes, labels: dict[str, str], metadata: Metadata
) -> oci.Descriptor:
    """Write a small blob, and return its descriptor."""
    descriptor = oci.Descriptor.of(media_type, content)
    reference = f"{media_type.rpartition('.')[0]}-{descriptor.digest}"
    requests = [
        content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=reference,
            total=descriptor.size,
            expected=str(descriptor.digest),
            offset=0,
            data=content,
            labels=labels,
        )
    ]
    try:
        _drain(containerd.content.Write(iter(requests), metadata=metadata))
    except errors.Conflict:  # there already; but perhaps not with these labels
        if labels:
            set_content_labels(containerd, descriptor.digest, labels, metadata)
    return descriptor


def _write_layer(containerd: Client, archive: IO[bytes], metadata: Metadata) -> oci.Descriptor:
    """Write the archive, uncompressed: then the blob's digest is the layer's diff id too."""
    reference = f"import-{secrets.token_hex(16)}"
    hasher = Hasher()
    failure: list[BaseException] = []

    def requests() -> Iterator[content_pb2.WriteContentRequest]:
        # Runs in a thread of grpc's, which would only log what is raised here.
        try:
            for piece in read_uncompressed(archive):
                offset = hasher.size
                hasher.update(piece)
                yield content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, ref=reference, offset=offset, data=piece
                )
            if not hasher.size:
                raise errors.InvalidParameter("the archive is empty")
        except BaseException as error:
            failure.append(error)
            return
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=reference,
            total=hasher.size,
            expected=str(hasher.digest),
            offset=hasher.size,
        )

    try:
        _drain(containerd.content.Write(requests(), metadata=metadata))
    except errors.Conflict:  # the same layer was imported before
        _abort(containerd, reference)
    except BaseException:
        _abort(containerd, reference)
        raise
    if failure:
        _abort(containerd, reference)
        raise failure[0]
    return oci.Descriptor(oci.OCI_LAYER, Digest(hasher.digest), hasher.size)


def _drain(replies: Iterable[content_pb2.WriteContentResponse]) -> None:
    for _ in replies:
        pass


def _abort(containerd: Client, reference: str) -> None:
    with contextlib.suppress(errors.NotFound):
        containerd.content.Abort(content_pb2.AbortRequest(ref=reference))
