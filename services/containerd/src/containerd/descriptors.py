"""Descriptors of image content: what refers to what, and under which labels the reference is kept.

The media types are those of the OCI image specification ("Media Types") and of Docker's schema 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from containerd.errors import InvalidArgument, Unimplemented
from gantry.oci.digest import Digest, InvalidDigest
from gantry.oci.platform import Platform

__all__ = [
    "MAX_MANIFEST_SIZE",
    "Descriptor",
    "child_labels",
    "children",
    "compression_of",
    "is_config",
    "is_index",
    "is_layer",
    "is_manifest",
    "is_non_distributable",
    "parse_document",
    "reference_key",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
LEGACY_CONFIG = "application/octet-stream"

MAX_MANIFEST_SIZE = 4 << 20
"""Bytes; a registry is asked for no larger manifest, and none larger is parsed."""

_DOCKER_LAYERS = frozenset(
    {
        DOCKER_LAYER,
        DOCKER_LAYER + ".gzip",
        DOCKER_LAYER + ".zstd",
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER + ".gzip",
    }
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content (image-spec, "Descriptor"). ``digest`` is validated where a document is parsed."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any, where: str) -> Descriptor:
        """Read one descriptor of a manifest or index; ``where`` names it in the error.

        Raises :class:`InvalidArgument` for a field of the wrong type, a bad digest or a negative size.
        """
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where}: descriptor is not an object")
        media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise InvalidArgument(f"{where}: mediaType and digest must be strings")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidArgument(f"{where}: invalid size {size!r} in {digest} ({media_type})")
        try:
            Digest(digest)
        except InvalidDigest as error:
            raise InvalidArgument(f"{where}: {error}") from error
        platform = value.get("platform")
        urls = value.get("urls") or ()
        return cls(
            media_type=media_type,
            digest=digest,
            size=size,
            annotations=_annotations(value.get("annotations"), where),
            platform=platform_from_json(platform) if isinstance(platform, dict) else None,
            urls=tuple(url for url in urls if isinstance(url, str)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor with the field order of the specification; empty fields are left out."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = platform_to_json(self.platform)
        return value

    def annotated(self, **annotations: str) -> Descriptor:
        """Return a copy with more annotations."""
        return replace(self, annotations={**self.annotations, **annotations})


def _annotations(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidArgument(f"{where}: annotations must map strings to strings")
    return dict(value)


def platform_from_json(value: Mapping[str, Any]) -> Platform:
    """Read the platform of a descriptor or an image configuration, in its normal form."""
    features = value.get("os.features") or ()
    return Platform(
        os=str(value.get("os", "")),
        architecture=str(value.get("architecture", "")),
        variant=str(value.get("variant", "")),
        os_version=str(value.get("os.version", "")),
        os_features=tuple(str(feature) for feature in features),
    ).normalized()


def platform_to_json(platform: Platform) -> dict[str, Any]:
    """Write a platform as manifests hold it."""
    value: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        value["os.version"] = platform.os_version
    if platform.os_features:
        value["os.features"] = list(platform.os_features)
    if platform.variant:
        value["variant"] = platform.variant
    return value


def is_manifest(media_type: str) -> bool:
    """Whether the content is an image manifest."""
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_index(media_type: str) -> bool:
    """Whether the content is an image index or a manifest list."""
    return media_type in (OCI_INDEX, DOCKER_MANIFEST_LIST)


def is_config(media_type: str) -> bool:
    """Whether the content is an image configuration."""
    return media_type in (OCI_CONFIG, DOCKER_CONFIG)


def is_layer(media_type: str) -> bool:
    """Whether the content is a file system layer."""
    return media_type.startswith("application/vnd.oci.image.layer.") or media_type.partition("+")[0] in _DOCKER_LAYERS


def is_non_distributable(media_type: str) -> bool:
    """Whether a layer must not be pushed to registries."""
    return media_type.startswith(
        (OCI_FOREIGN_LAYER.removesuffix("v1.tar"), DOCKER_FOREIGN_LAYER.removesuffix("diff.tar"))
    )


def compression_of(media_type: str) -> str:
    """Return ``""``, ``gzip`` or ``zstd`` for a layer's media type, or ``unknown`` where it must be looked at.

    Docker's plain layer type is also used for compressed content, so it says nothing.
    Raises :class:`Unimplemented` for anything that is no layer.
    """
    base, _, suffix = media_type.partition("+")
    if base in (DOCKER_LAYER, DOCKER_FOREIGN_LAYER):
        return "unknown"
    if base in _DOCKER_LAYERS:
        return base.rpartition(".")[2]
    if base in (OCI_LAYER, OCI_FOREIGN_LAYER) and suffix in ("", "gzip", "zstd"):
        return suffix
    raise Unimplemented(f"unrecognised mediatype {media_type}: not implemented")


def parse_document(data: bytes, descriptor: Descriptor) -> dict[str, Any]:
    """Parse a manifest or index and check that it is what its descriptor says.

    A document that could be read as both would let two clients see two images under one digest.
    Raises :class:`InvalidArgument`.
    """
    if len(data) > MAX_MANIFEST_SIZE:
        raise InvalidArgument(f"rejecting {len(data)} byte manifest {descriptor.digest}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{descriptor.digest} ({descriptor.media_type}) is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{descriptor.digest} ({descriptor.media_type}) is not a JSON object")
    if is_manifest(descriptor.media_type) and ("manifests" in document or "fsLayers" in document):
        raise InvalidArgument(f"{descriptor.digest}: media-type: expected manifest but found index")
    if is_index(descriptor.media_type) and ("layers" in document or "config" in document or "fsLayers" in document):
        raise InvalidArgument(f"{descriptor.digest}: media-type: expected index but found manifest")
    return document


def children(data: bytes, descriptor: Descriptor) -> list[Descriptor]:
    """Return what a manifest (config first, then layers) or an index (its manifests) refers to; else nothing.

    Raises :class:`InvalidArgument` for a document that breaks the specification.
    """
    if is_manifest(descriptor.media_type):
        document = parse_document(data, descriptor)
        where = f"manifest {descriptor.digest}"
        found = [Descriptor.from_json(document.get("config"), where)]
        return found + _list(document.get("layers"), f"{where}: layers")
    if is_index(descriptor.media_type):
        document = parse_document(data, descriptor)
        return _list(document.get("manifests"), f"index {descriptor.digest}: manifests")
    return []


def _list(values: Any, where: str) -> list[Descriptor]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise InvalidArgument(f"{where}: not a list")
    return [Descriptor.from_json(value, where) for value in values]


def child_labels(found: Sequence[Descriptor]) -> dict[str, str]:
    """Return the labels that make content keep its children alive (``containerd.io/gc.ref.content.*``)."""
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in found:
        if is_config(child.media_type):
            key = "containerd.io/gc.ref.content.config"
        elif is_manifest(child.media_type):
            key = "containerd.io/gc.ref.content.m."
        elif is_layer(child.media_type):
            key = "containerd.io/gc.ref.content.l."
        else:
            key = "containerd.io/gc.ref.content."
        number = counts.get(key, 0)
        counts[key] = number + 1
        labels[key + str(number) if number or key.endswith(".") else key] = child.digest
    return labels


def reference_key(descriptor: Descriptor) -> str:
    """Return the ingest reference for fetching this content: the same for everybody who fetches it."""
    if is_manifest(descriptor.media_type):
        kind = "manifest"
    elif is_index(descriptor.media_type):
        kind = "index"
    elif is_layer(descriptor.media_type):
        kind = "layer"
    elif is_config(descriptor.media_type):
        kind = "config"
    else:
        kind = "unknown"
    name = descriptor.annotations.get("org.opencontainers.image.ref.name")
    return f"{kind}-{name}@{descriptor.digest}" if name else f"{kind}-{descriptor.digest}"
