"""What a transfer goes from and to, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gantry.oci.platform import Platform

__all__ = [
    "ExportStream",
    "ImageReference",
    "ImageStoreEndpoint",
    "ImportStream",
    "OCIRegistry",
    "UnpackConfiguration",
]


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Another name to store or look up; the fields are those of ``containerd.types.transfer.ImageReference``."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True)
class UnpackConfiguration:
    """Unpack what runs on ``platform`` with the snapshotter of this name; empty for the default one."""

    platform: Platform | None
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class ImageStoreEndpoint:
    """The local image store. Without platforms all of an image's platforms are meant."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    extra_references: tuple[ImageReference, ...] = ()
    unpacks: tuple[UnpackConfiguration, ...] = ()

    def __str__(self) -> str:
        return f"Local Image Store ({self.name})"


@dataclass(frozen=True, slots=True)
class OCIRegistry:
    """A repository at a registry. ``auth_stream`` is the id of the stream on which to ask for credentials."""

    reference: str
    auth_stream: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    host_dir: str = ""
    default_scheme: str = ""

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


@dataclass(frozen=True, slots=True)
class ImportStream:
    """An archive that the client sends. An empty media type: find out whether it is compressed."""

    stream: str
    media_type: str = ""
    force_compress: bool = False

    def __str__(self) -> str:
        return "Image Import Stream"


@dataclass(frozen=True, slots=True)
class ExportStream:
    """An archive that the client receives. Without platforms this machine's is taken."""

    stream: str
    media_type: str = ""
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    skip_compatibility_manifest: bool = False
    skip_non_distributable: bool = False

    def __str__(self) -> str:
        return "Image Export Stream"
