"""Which names an image is stored under, from what the client asks and what the archive says."""

from __future__ import annotations

import time

from containerd.descriptors import Descriptor
from containerd.errors import NotFound
from containerd.images import Image
from containerd.transfer.endpoints import ImageReference, ImageStoreEndpoint
from gantry.oci import reference as references
from gantry.oci.reference import InvalidReference

__all__ = ["IMAGE_NAME", "REF_NAME", "images_for_archive_entry", "images_for_target", "ref_name"]

IMAGE_NAME = "io.containerd.image.name"
"""Annotation: the whole name of an image."""
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation (image-spec): a name within the archive, usually the tag alone."""


def ref_name(name: str) -> str:
    """Return what the annotation ``ref.name`` says for a whole name: its tag or digest, or the name as it is."""
    try:
        parsed = references.parse_canonical(name)
    except InvalidReference:
        return name
    return parsed.tag or (str(parsed.digest) if parsed.digest else name)


def images_for_target(endpoint: ImageStoreEndpoint, target: Descriptor) -> list[Image]:
    """Return the images that the target of a pull, or the index of an import, is stored as. It may be none."""
    found = [Image(endpoint.name, target, endpoint.labels)] if endpoint.name else []
    for extra in endpoint.extra_references:
        if extra.is_prefix and not extra.add_digest:
            continue
        name = f"{extra.name}@{target.digest}" if extra.add_digest else extra.name
        found.append(Image(name, target, _extra_labels(endpoint)))
    return found


def images_for_archive_entry(endpoint: ImageStoreEndpoint, entry: Descriptor) -> list[Image]:
    """Return the images that one manifest of an imported archive is stored as. It may be none."""
    labels = _extra_labels(endpoint)
    found = []
    for extra in endpoint.extra_references:
        if not extra.is_prefix:
            continue
        name = _archive_name(entry, extra)
        if name:
            found.append(Image(name, entry, labels))
        if extra.add_digest and not (name and extra.skip_named_digest):
            found.append(Image(f"{extra.name}@{entry.digest}", entry, labels))
    return found


def _archive_name(entry: Descriptor, extra: ImageReference) -> str:
    whole = entry.annotations.get(IMAGE_NAME, "")
    if whole:  # a whole name is taken as it is or not at all
        return whole if _prefixed(whole, extra) == whole else ""
    name = entry.annotations.get(REF_NAME, "")
    return _prefixed(name, extra) if name else ""


def _prefixed(name: str, extra: ImageReference) -> str:
    """Return a tag with the prefix in front, and a whole name as it is: if it has the prefix or needs none, else "".

    An empty prefix with ``allow_overwrite`` takes whole names only.
    """
    if any(character in name for character in "/:@"):
        return name if extra.allow_overwrite or _has_prefix(name, extra.name) else ""
    return f"{extra.name}:{name}" if extra.name else ""


def _has_prefix(name: str, prefix: str) -> bool:
    if not name.startswith(prefix):
        return False
    rest = name[len(prefix) :]
    return bool(prefix) and (not rest or rest[0] in "/:@")


def _extra_labels(endpoint: ImageStoreEndpoint) -> dict[str, str]:
    labels = dict(endpoint.labels)
    if endpoint.name:  # collected together with the image that it is another name of
        labels["containerd.io/gc.bref.image"] = endpoint.name
        labels["containerd.io/gc.expire"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return labels


def require_images(found: list[Image]) -> list[Image]:
    """Return ``found``. Raises :class:`NotFound` when it is empty."""
    if not found:
        raise NotFound("no image name found: not found")
    return found
