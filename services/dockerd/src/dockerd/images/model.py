"""What an image is to the engine, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gantry.oci.digest import Digest
from gantry.oci.image import Descriptor, chain_ids
from gantry.oci.platform import Platform

__all__ = ["DANGLING", "Content", "Image", "ImageUse", "Json", "Record", "is_dangling_name"]

Json = dict[str, Any]

DANGLING = "moby-dangling"
"""An image without a tag is kept in containerd under this name and its digest; else it would be collected."""


def is_dangling_name(name: str) -> bool:
    """Whether a containerd name only keeps an image that has no tag."""
    return name.startswith(DANGLING + "@")


@dataclass(frozen=True)
class Record:
    """A name in containerd's image store, and what it points at: a manifest or an index."""

    name: str
    target: Descriptor
    updated_at: float = 0.0


@dataclass(frozen=True)
class Content:
    """What one target means on this platform. Content is immutable, and so is this.

    ``config`` is the whole configuration document.
    """

    manifest: Digest
    config_descriptor: Descriptor
    config: Mapping[str, Any]
    layers: Sequence[Descriptor]
    diff_ids: tuple[Digest, ...]
    platform: Platform

    @property
    def image_id(self) -> str:
        """The digest of the configuration: what users know as the image's id."""
        return str(self.config_descriptor.digest)

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The snapshots that make the root file system, from the lowest up."""
        return chain_ids(self.diff_ids)


@dataclass(frozen=True)
class Image:
    """One image with all its names.

    ``id`` is ``sha256:HEX``; ``repo_tags`` and ``repo_digests`` are written as users write them. ``chain_id`` names the
    snapshot of the root file system, empty for an image without layers. ``config`` is the part of the configuration
    that says how to run it (Cmd, Env ...), ``created`` RFC 3339 or empty, ``size`` in bytes, unpacked.
    """

    id: str
    records: tuple[Record, ...]
    content: Content
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int

    @property
    def config(self) -> Mapping[str, Any]:
        """How to run it: the configuration's ``config``."""
        found = self.content.config.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def chain_id(self) -> str:
        """The snapshot that a container's is made from."""
        ids = self.content.chain_ids
        return str(ids[-1]) if ids else ""

    @property
    def created(self) -> str:
        """When it was made."""
        return str(self.content.config.get("created") or "")

    @property
    def manifest_digest(self) -> str:
        """The digest of the manifest for this platform."""
        return str(self.content.manifest)

    @property
    def target_digest(self) -> str:
        """The digest of what the name points at: the manifest or the index above it."""
        return str(self.records[0].target.digest)

    @property
    def architecture(self) -> str:
        """The processor that it is for."""
        return self.content.platform.architecture

    @property
    def os(self) -> str:
        """The operating system that it is for."""
        return self.content.platform.os

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        found = self.config.get("Labels")
        return found if isinstance(found, dict) else {}

    @property
    def dangling(self) -> bool:
        """Whether it has no tag."""
        return not self.repo_tags


@dataclass(frozen=True)
class ImageUse:
    """A container that was made from an image."""

    container_id: str
    image_id: str
    running: bool
