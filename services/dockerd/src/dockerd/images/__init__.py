"""Images: found by name and id, moved in and out, made ready for containers. containerd holds them.

An image's id is the digest of its configuration. Names in containerd are full
(``docker.io/library/busybox:latest``), users see them short; an image without a tag is kept under a name of the
engine's own (:data:`dockerd.images.model.DANGLING`).
"""

from __future__ import annotations

from dockerd.images.importer import ImportRequest
from dockerd.images.model import Image, ImageUse
from dockerd.images.service import ImageService, parse_reference
from dockerd.images.store import SCHEMA

__all__ = ["SCHEMA", "Image", "ImageService", "ImageUse", "ImportRequest", "parse_reference"]
