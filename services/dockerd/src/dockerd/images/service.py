"""The images of one engine: found by name and id, tagged, removed, and made ready for containers.

containerd holds them; what moves them in and out is in :mod:`dockerd.images.exchange`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

from dockerd import errors
from dockerd.config import Config
from dockerd.containerd_client import Client
from dockerd.events import EventLog
from dockerd.images import listing
from dockerd.images.catalogue import Catalogue
from dockerd.images.commit import CommitRequest, commit_image
from dockerd.images.exchange import Exchange
from dockerd.images.history import Step, history
from dockerd.images.importer import ImportRequest, import_image
from dockerd.images.model import DANGLING, Content, Image, ImageUse, Record, is_dangling_name
from dockerd.images.removal import plan_removal
from dockerd.images.store import RepositoryDigests
from dockerd.images.unpack import Unpacker, lease
from gantry.database import Database
from gantry.oci import reference as references
from gantry.oci.digest import Digest
from gantry.oci.platform import Platform
from gantry.oci.reference import InvalidReference, Reference

__all__ = ["Deleted", "ImageService", "Pruned", "parse_reference"]

_log = logging.getLogger(__name__)

_ID_PREFIX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Deleted:
    """What a removal did, in order: ``("Untagged", name)`` and ``("Deleted", digest)``."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pruned:
    """What a prune did, and the bytes that became free."""

    rows: tuple[tuple[str, str], ...]
    space_reclaimed: int


class ImageService:
    """Images. Threads may call it at the same time."""

    def __init__(self, config: Config, database: Database, containerd: Client, events: EventLog) -> None:
        self._containerd = containerd
        self._events = events
        self._digests = RepositoryDigests(database)
        self._catalogue = Catalogue(containerd, config.storage_driver)
        self._unpacker = Unpacker(containerd, config.storage_driver)
        self._uses: Callable[[], Iterable[ImageUse]] = tuple
        self._changing = threading.RLock()  # of names: what is decided from them must still be so when it is done
        self.exchange = Exchange(self, self._catalogue, self._digests, config, containerd, events)

    def start(self) -> None:
        """Read what all images are, beside the start: so that the names of each are known."""
        threading.Thread(target=self._read_all, name="images", daemon=True).start()

    def close(self) -> None:
        """Images hold nothing open."""

    def on_usage(self, uses: Callable[[], Iterable[ImageUse]]) -> None:
        """Ask ``uses``, from now on, which containers there are before an image is removed."""
        self._uses = uses

    def resolve(self, reference: str, platform: Platform | None = None) -> Image:
        """The image that ``name``, ``name:tag``, ``name@digest``, an id or the beginning of one means.

        Raises NotFound (``No such image: x``), InvalidParameter for what cannot be a reference.
        """
        image = self._by_name(reference, platform)
        if image is None and _ID_PREFIX.fullmatch(reference.removeprefix("sha256:")):
            image = self._by_id(reference)
        if image is None:
            raise errors.NotFound(f"No such image: {_shown(reference)}")
        return image

    def ensure_unpacked(self, image: Image) -> None:
        """Make sure that the snapshot ``chain_id`` is there, for a container's to go on top. Raises SystemFailure."""
        self._unpacker.unpack(image.content)

    def list(self, filters: listing.Filters | None = None) -> Sequence[Image]:
        """All images that pass ``filters`` (dangling, label, before, since, reference, until), the newest first.

        Raises InvalidParameter for an unknown filter, NotFound for an unknown image in one.
        """
        filters = filters or {}
        for key in filters:
            if key not in listing.LIST_FILTERS | listing.PRUNE_FILTERS:
                raise errors.InvalidParameter(f"invalid filter '{key}'")
        images = [image for image in self._all() if listing.matches(image, filters, self.resolve)]
        return sorted(images, key=listing.created_seconds, reverse=True)

    def history(self, reference: str) -> Sequence[Step]:
        """The steps that made an image, from the newest down."""
        image = self.resolve(reference)
        return history(image, lambda index: self._catalogue.layer_size(image.content, index))

    def tag(self, reference: str, target: str) -> None:
        """Give an image one more name. Raises NotFound, InvalidParameter."""
        image = self.resolve(reference)
        name = parse_reference(target).with_default_tag()
        if name.digest is not None:
            raise errors.InvalidParameter("refusing to create a tag with a digest reference")
        with self._changing:
            self._catalogue.put(str(name), image.records[0].target)
        self.publish("tag", image.id, name.familiar, image.labels)

    def remove(self, reference: str, *, force: bool = False) -> Deleted:
        """Remove a name, and with the last one the image; or by id the image with all its names.

        Raises NotFound, and Conflict where a container or another repository stands in the way.
        """
        with self._changing:
            image = self.resolve(reference)
            plan = plan_removal(image, reference, self._uses(), force=force)
            rows = [("Untagged", name) for name in plan.untagged]
            layers = self._exclusive_layers(image) if plan.delete else []
            if plan.delete:
                names = [record.name for record in image.records]
            else:
                gone = {str(references.parse(name)) for name in plan.untagged}
                names = [record.name for record in image.records if record.name in gone]
                if len(names) == len(image.records):
                    self._catalogue.put(f"{DANGLING}@{image.target_digest}", image.records[0].target)
            for position, name in enumerate(names, start=1):
                self._catalogue.delete(name, collect=plan.delete and position == len(names))
            for name in plan.untagged:
                parsed = references.parse(name)
                if parsed.digest is not None:
                    self._digests.remove(parsed.name, str(parsed.digest))
        for _ in [name for name in plan.untagged if "@" not in name]:
            self.publish("untag", image.id, image.id, image.labels)
        if plan.delete:
            rows += [("Deleted", image.id), *(("Deleted", chain_id) for chain_id in layers)]
            self.publish("delete", image.id, image.id, image.labels)
        return Deleted(tuple(rows))

    def prune(self, filters: listing.Filters | None = None) -> Pruned:
        """Remove images that no container uses: those without a tag, or all with the filter ``dangling=false``."""
        filters = dict(filters or {})
        for key in filters:
            if key not in listing.PRUNE_FILTERS:
                raise errors.InvalidParameter(f"invalid filter '{key}'")
        only_dangling = listing.is_true(filters, "dangling", True)
        filters["dangling"] = ["true"] if only_dangling else []
        used = {use.image_id for use in self._uses()}
        rows: list[tuple[str, str]] = []
        reclaimed = 0
        for image in self.list(filters):
            if image.id in used:
                continue
            sizes = self._layer_sizes(image)
            try:
                # All its names at once; a container that came meanwhile still stands in the way.
                deleted = self.remove(image.id, force=len(image.repo_tags) > 1).rows
            except (errors.Conflict, errors.NotFound):
                continue
            rows += deleted
            reclaimed += sum(sizes.get(value, 0) for kind, value in deleted if kind == "Deleted")
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(tuple(rows), reclaimed)

    def import_archive(self, archive: IO[bytes], name: str, request: ImportRequest) -> Image:
        """Make an image of a tar archive; ``name`` may be empty. Raises InvalidParameter."""
        reference = parse_reference(name).with_default_tag() if name else None
        if reference is not None and reference.digest is not None:
            raise errors.InvalidParameter("cannot import digest reference")
        with lease(self._containerd) as metadata:
            target = import_image(self._containerd, archive, request, metadata)
            record = str(reference) if reference is not None else f"{DANGLING}@{target.digest}"
            with self._changing:
                self._catalogue.put(record, target, metadata)
            content = self._catalogue.content(target)
            self._unpacker.unpack(content)
        self.publish("import", content.image_id, content.image_id, {})
        return self.resolve(content.image_id)

    def commit(self, parent: str, request: CommitRequest, reference: str) -> str:
        """Make an image of a container whose image is ``parent``; ``reference`` may be empty. Returns its id."""
        image = self.resolve(parent)
        with lease(self._containerd) as metadata:
            target = commit_image(self._containerd, image, request, metadata)
            with self._changing:
                self._catalogue.put(f"{DANGLING}@{target.digest}", target, metadata)
            content = self._catalogue.content(target)
            self._unpacker.unpack(content)
        if reference:
            self.tag(content.image_id, reference)
        return content.image_id

    def publish(self, action: str, actor: str, name: str, labels: Mapping[str, str]) -> None:
        """Tell of something that happened to an image."""
        self._events.publish("image", action, actor, {**labels, "name": name})

    def from_content(self, record: Record, content: Content) -> Image:
        """The image behind a record, with all its names."""
        targets = self._catalogue.targets(content.image_id) | {record.target.digest}
        records = self._catalogue.records(f"target.digest=={target}" for target in sorted(targets))
        others = [other for other in records if other.name != record.name]
        digests = {target: self._digests.of(target) for target in targets}
        image = self._assemble([record, *others], content, digests)
        # The asked-for record first: its target is the one that was meant.
        return replace(image, records=(record, *(other for other in image.records if other.name != record.name)))

    def _read_all(self) -> None:
        try:
            self._all()
        except (errors.EngineError, ValueError) as error:  # grpc's word for a channel that was closed meanwhile
            _log.warning("images are not read in advance: %s", error)

    def _by_name(self, text: str, platform: Platform | None) -> Image | None:
        try:
            parsed = references.parse_any(text)
        except InvalidReference as error:
            raise errors.InvalidParameter(str(error)) from error
        if isinstance(parsed, Digest):
            return None
        record = self._catalogue.record(str(parsed.canonical()))
        if record is None and parsed.digest is not None:
            record = self._by_digest(parsed)
        if record is None:
            return None
        return self.from_content(record, self._catalogue.content(record.target, platform))

    def _by_digest(self, reference: Reference) -> Record | None:
        """A record of the same repository, or one that a registry is known to have there, with that target."""
        found = self._catalogue.records([f"target.digest=={reference.digest}"])
        known = reference.name in self._digests.of(str(reference.digest))
        for record in found:
            if known or record.name.startswith((f"{reference.name}:", f"{reference.name}@")):
                return record
        return None

    def _by_id(self, text: str) -> Image | None:
        wanted = text.removeprefix("sha256:")
        found = [image for image in self._all() if image.id.partition(":")[2].startswith(wanted)]
        return found[0] if len(found) == 1 else None

    def _all(self) -> Sequence[Image]:
        groups: dict[str, tuple[Content, list[Record]]] = {}
        for record in self._catalogue.records():
            try:
                content = self._catalogue.content(record.target)
            except errors.EngineError as error:
                # Half an image (another platform's, or one that is being made) is none for us.
                _log.debug("image %s is left out: %s", record.name, error)
                continue
            groups.setdefault(content.image_id, (content, []))[1].append(record)
        digests = self._digests.all()
        return [self._assemble(records, content, digests) for content, records in groups.values()]

    def _assemble(self, records: Sequence[Record], content: Content, digests: Mapping[str, Sequence[str]]) -> Image:
        tags: list[str] = []
        pinned: set[str] = set()
        for record in records:
            pinned |= {f"{repository}@{record.target.digest}" for repository in digests.get(record.target.digest, ())}
            if is_dangling_name(record.name):
                continue
            (pinned.add if "@" in record.name else tags.append)(record.name)
        ordered = sorted(records, key=lambda record: (is_dangling_name(record.name), record.name))
        return Image(
            id=content.image_id,
            records=tuple(ordered),
            content=content,
            repo_tags=tuple(sorted(map(_familiar, tags))),
            repo_digests=tuple(sorted(map(_familiar, pinned))),
            size=self._catalogue.size(content),
        )

    def _exclusive_layers(self, image: Image) -> Sequence[str]:
        """Chain ids, from the top down, that go with the image: no other image and no container has them."""
        if any(use.image_id == image.id for use in self._uses()):
            return []
        others = {
            str(chain_id) for other in self._all() if other.id != image.id for chain_id in other.content.chain_ids
        }
        gone: list[str] = []
        for chain_id in reversed(image.content.chain_ids):
            if str(chain_id) in others:
                break
            gone.append(str(chain_id))
        return gone

    def _layer_sizes(self, image: Image) -> dict[str, int]:
        content = image.content
        return {str(one): self._catalogue.layer_size(content, index) for index, one in enumerate(content.chain_ids)}


def parse_reference(text: str) -> Reference:
    """A reference as users write it. Raises InvalidParameter."""
    try:
        return references.parse(text)
    except InvalidReference as error:
        raise errors.InvalidParameter(str(error)) from error


def _familiar(name: str) -> str:
    try:
        return references.parse_canonical(name).familiar
    except InvalidReference:
        return name  # made by another client of containerd, with rules of its own


def _shown(reference: str) -> str:
    """How the real engine writes a reference that it does not find."""
    try:
        parsed = references.parse_any(reference)
    except InvalidReference:
        return reference
    return str(parsed) if isinstance(parsed, Digest) else parsed.with_default_tag().familiar
