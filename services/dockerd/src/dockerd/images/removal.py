"""What ``docker rmi`` does: decided first, from values, then done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dockerd import errors
from dockerd.images.model import Image, ImageUse
from dockerd.images.progress import short_id
from gantry.oci import reference as references
from gantry.oci.reference import InvalidReference

__all__ = ["Removal", "is_id_prefix", "plan_removal"]


@dataclass(frozen=True)
class Removal:
    """``untagged`` are the names (as users write them) that go; ``delete`` tells whether the image goes with them."""

    untagged: tuple[str, ...] = field(default_factory=tuple)
    delete: bool = False


def is_id_prefix(image_id: str, text: str) -> bool:
    """Whether the user named the image by its id or the beginning of it."""
    return bool(text) and (image_id.startswith(text) or image_id.partition(":")[2].startswith(text))


def plan_removal(image: Image, asked: str, uses: Iterable[ImageUse], *, force: bool) -> Removal:
    """Decide what a removal of ``asked``, which means ``image``, does.

    By name: that name goes, and with the last one the image, unless a container stands in the way, which is then no
    error. By id: all names and the image go. Hard conflicts (a running container) always refuse, soft ones (a stopped
    container, names in several repositories) unless ``force``. Raises Conflict in the real engine's words.
    """
    mine = [use for use in uses if use.image_id == image.id]
    names = [*image.repo_tags, *image.repo_digests]
    if is_id_prefix(image.id, asked):
        return _by_id(image, names, mine, force=force)
    return _by_name(image, asked, names, mine, force=force)


def _by_id(image: Image, names: Sequence[str], uses: Sequence[ImageUse], *, force: bool) -> Removal:
    running = next((use for use in uses if use.running), None)
    if running is not None:
        raise _conflict(image, "cannot", f"image is being used by running container {short_id(running.container_id)}")
    if not force:
        if names and not _one_repository(names):
            raise _conflict(image, "must", "image is referenced in multiple repositories")
        if uses:
            stopped = short_id(uses[0].container_id)
            raise _conflict(image, "must", f"image is being used by stopped container {stopped}")
    return Removal(tuple(names), delete=True)


def _by_name(image: Image, asked: str, names: Sequence[str], uses: Sequence[ImageUse], *, force: bool) -> Removal:
    if not force and uses and _one_repository(names):
        raise errors.Conflict(
            f'conflict: unable to remove repository reference "{asked}" (must force) - container '
            f"{short_id(uses[0].container_id)} is using its referenced image {short_id(image.id)}"
        )
    name = _familiar(asked)
    gone = [name]
    remaining = [other for other in names if other != name]
    if "@" not in name:
        repository = _repository(name)
        siblings = [other for other in remaining if _repository(other) == repository]
        if not any("@" not in other for other in siblings):
            # Digests of a repository that has no tag any more say nothing.
            gone += siblings
            remaining = [other for other in remaining if other not in siblings]
    if remaining:
        return Removal(tuple(gone))
    kept = any(use.running or not force for use in uses)
    return Removal(tuple(gone), delete=not kept)


def _one_repository(names: Sequence[str]) -> bool:
    """Whether there is at most one tag, and nothing from another repository."""
    tags = [name for name in names if "@" not in name]
    return len(tags) <= 1 and len({_repository(name) for name in names}) == 1


def _repository(name: str) -> str:
    try:
        return references.parse(name).name
    except InvalidReference:
        return name


def _familiar(asked: str) -> str:
    try:
        return references.parse(asked).canonical().familiar
    except InvalidReference:
        return asked


def _conflict(image: Image, force: str, reason: str) -> errors.Conflict:
    return errors.Conflict(f"conflict: unable to delete {short_id(image.id)} ({force} be forced) - {reason}")
