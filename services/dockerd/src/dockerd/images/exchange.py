"""Images in and out: pull, push, load and save, each a transfer of containerd's, told line by line.

Each operation is a generator of the lines of its response. What it raises before its first line is an answer with a
status; after that the caller writes it as a last line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dockerd import errors
from dockerd.config import Config
from dockerd.containerd_client import Client
from dockerd.events import EventLog
from dockerd.images import progress as lines
from dockerd.images import registries, transfer
from dockerd.images.catalogue import Catalogue
from dockerd.images.model import DANGLING, Json, Record, is_dangling_name
from dockerd.images.store import RepositoryDigests
from dockerd.images.transfer import Credentials
from dockerd.images.unpack import lease
from gantry.contracts.containerd.types import platform_pb2
from gantry.contracts.containerd.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from gantry.oci import platform as platforms
from gantry.oci import reference as references
from gantry.oci.image import INDEX_TYPES
from gantry.oci.platform import Platform
from gantry.oci.reference import InvalidReference, Reference

if TYPE_CHECKING:
    from dockerd.images.service import ImageService

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)


class Exchange:
    """Moves images between registries, archives and containerd."""

    def __init__(
        self,
        images: ImageService,
        catalogue: Catalogue,
        digests: RepositoryDigests,
        config: Config,
        containerd: Client,
        events: EventLog,
    ) -> None:
        self._images = images
        self._catalogue = catalogue
        self._digests = digests
        self._config = config
        self._containerd = containerd
        self._events = events

    def pull(self, reference: Reference, credentials: Credentials | None, platform: Platform | None) -> Iterator[Json]:
        """Fetch an image from its registry and unpack it. What it raises is in the real engine's words."""
        asked = reference.canonical()
        before = self._catalogue.record(str(asked))
        # A moved tag leaves its old image behind: keep it while the name moves.
        kept = before is not None and self._catalogue.keep(before)
        try:
            yield from self._fetch(asked, before, credentials, platform)
        finally:
            after = self._catalogue.record(str(asked)) if kept else None
            if before is not None and after is not None and after.target.digest == before.target.digest:
                self._catalogue.drop_dangling(before.target.digest)

    def _fetch(
        self, asked: Reference, before: Record | None, credentials: Credentials | None, platform: Platform | None
    ) -> Iterator[Json]:
        name = str(asked)
        told = lines.PullProgress()
        begun = False
        with transfer.answer_credentials(self._containerd, credentials) as auth_stream:
            source = registry_pb2.OCIRegistry(reference=name, resolver=self._resolver(asked, auth_stream))
            wanted = _platform(platform or platforms.default())
            destination = imagestore_pb2.ImageStore(name=name, platforms=[wanted], unpacks=[self._unpack(wanted)])
            try:
                for step in transfer.run(self._containerd, source, destination):
                    if not begun and step.desc.digest:
                        begun = True
                        yield {"status": f"Pulling from {asked.path}", "id": asked.tag or str(asked.digest)}
                    yield from told.feed(step)
            except errors.EngineError as error:
                scheme = source.resolver.default_scheme
                raise registries.translate_pull_error(error, asked, scheme) from error
        if not begun:
            yield {"status": f"Pulling from {asked.path}", "id": asked.tag or str(asked.digest)}
        yield from self._pulled(asked, before, told, platform)

    def _pulled(
        self, asked: Reference, before: Record | None, told: lines.PullProgress, platform: Platform | None
    ) -> Iterator[Json]:
        after = self._catalogue.record(str(asked))
        if after is None:
            raise errors.SystemFailure(f"{asked.familiar} was pulled, but containerd does not have it")
        digest = str(after.target.digest)
        up_to_date = before is not None and before.target.digest == digest
        if not up_to_date:
            self._catalogue.drop_dangling(digest)
        self._catalogue.forget(digest)
        self._digests.add(asked.name, digest)
        content = self._catalogue.content(after.target, platform)
        image = self._images.from_content(after, content)
        self._images.ensure_unpacked(image)
        yield from told.finish(up_to_date=up_to_date)
        yield {"status": f"Digest: {digest}"}
        status = "Image is up to date" if up_to_date else "Downloaded newer image"
        yield {"status": f"Status: {status} for {asked.familiar}"}
        self._images.publish("pull", asked.familiar, asked.familiar_name, image.labels)

    def push(self, name: Reference, tag: str, credentials: Credentials | None) -> Iterator[Json]:
        """Send an image to its registry; without ``tag`` all tags of the repository."""
        yield {"status": f"The push refers to repository [{name.familiar_name}]"}
        records = self._to_push(name, tag)
        if not records:
            raise errors.NotFound(f"An image does not exist locally with the tag: {name.familiar_name}")
        for record in records:
            yield from self._push_one(record, credentials)

    def _to_push(self, name: Reference, tag: str) -> Sequence[Record]:
        if tag:
            try:
                record = self._catalogue.record(str(name.with_tag(tag)))
            except InvalidReference as error:
                raise errors.InvalidParameter(str(error)) from error
            return [record] if record is not None else []
        prefix = f"{name.name}:"
        return [record for record in self._catalogue.records() if record.name.startswith(prefix)]

    def _push_one(self, record: Record, credentials: Credentials | None) -> Iterator[Json]:
        reference = references.parse_canonical(record.name)
        content = self._catalogue.content(record.target)
        diff_ids = {
            str(layer.digest): str(diff_id) for layer, diff_id in zip(content.layers, content.diff_ids, strict=False)
        }
        told = lines.PushProgress(diff_ids)
        yield from told.begin()
        with transfer.answer_credentials(self._containerd, credentials) as auth_stream:
            source = imagestore_pb2.ImageStore(name=record.name)
            destination = registry_pb2.OCIRegistry(
                reference=record.name, resolver=self._resolver(reference, auth_stream)
            )
            try:
                for step in transfer.run(self._containerd, source, destination):
                    yield from told.feed(step)
            except errors.EngineError as error:
                raise registries.translate_push_error(error) from error
        yield from told.finish()
        digest, size = str(record.target.digest), record.target.size
        self._digests.add(reference.name, digest)
        yield {"status": f"{reference.tag}: digest: {digest} size: {size}"}
        yield {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": size}}
        self._images.publish("push", reference.familiar, reference.familiar_name, {})

    def load(self, archive: Iterable[bytes], platform: Platform | None, *, quiet: bool) -> Iterator[Json]:
        """Take in an archive of ``docker save`` or an OCI layout, and unpack what runs here."""
        before = {record.name: record for record in self._catalogue.records()}
        stored: list[str] = []
        wanted = _platform(platform or platforms.default())
        destination = imagestore_pb2.ImageStore(
            platforms=[wanted] if platform is not None else [],
            unpacks=[self._unpack(wanted)],
            extra_references=[
                # Names from the archive; what has none is kept without a tag.
                imagestore_pb2.ImageReference(
                    name=DANGLING, is_prefix=True, allow_overwrite=True, add_digest=True, skip_named_digest=True
                )
            ],
        )
        # Under a lease of ours nothing is collected between the end of the transfer and what is settled after it.
        with lease(self._containerd) as metadata, transfer.send_bytes(self._containerd, archive) as upload:
            source = importexport_pb2.ImageImportStream(stream=upload.id)
            try:
                for step in transfer.run(self._containerd, source, destination, metadata):
                    if step.event == "saved" and step.name not in stored:
                        stored.append(step.name)
                    if not quiet:
                        yield from _loading(step)
            except errors.EngineError as error:
                if upload.error is not None:
                    raise errors.InvalidParameter(f"the archive could not be read: {upload.error}") from upload.error
                raise registries.translate_archive_error("load", error) from error
            yield from self._loaded(stored, before)

    def _loaded(self, names: Sequence[str], before: Mapping[str, Record]) -> Iterator[Json]:
        """Settle what an import made. The archive's index gets a name of its own, which says nothing to users."""
        tagged: set[str] = set()
        untagged: dict[str, list[Record]] = {}
        for name in names:
            record = self._catalogue.record(name)
            if record is None:
                continue
            old = before.get(name)
            if old is not None and old.target.digest != record.target.digest:
                self._catalogue.keep(old)
            if name.startswith(f"{DANGLING}:"):  # a tag without a repository
                self._catalogue.put(f"{DANGLING}@{record.target.digest}", record.target)
                self._catalogue.delete(name)
                record = Record(f"{DANGLING}@{record.target.digest}", record.target)
            self._catalogue.forget(record.target.digest)
            try:
                content = self._catalogue.content(record.target)
            except errors.NotFound as error:
                _log.warning("%s was loaded, but does not run here: %s", name, error)
                continue
            if is_dangling_name(record.name):
                untagged.setdefault(content.image_id, []).append(record)
                continue
            tagged.add(content.image_id)
            image = self._images.from_content(record, content)
            self._images.ensure_unpacked(image)
            yield {"stream": f"Loaded image: {_familiar(name)}\n"}
            self._images.publish("load", image.id, image.id, image.labels)
        for image_id, records in untagged.items():
            yield from self._loaded_untagged(image_id, records, tagged=image_id in tagged, before=before)

    def _loaded_untagged(
        self, image_id: str, records: Sequence[Record], *, tagged: bool, before: Mapping[str, Record]
    ) -> Iterator[Json]:
        # Of several names for one image the manifest's is kept rather than the index's.
        ordered = sorted(records, key=lambda record: record.target.media_type in INDEX_TYPES)
        for record in ordered if tagged else ordered[1:]:
            if record.name not in before:
                self._catalogue.delete(record.name)
        if not tagged:
            image = self._images.from_content(ordered[0], self._catalogue.content(ordered[0].target))
            self._images.ensure_unpacked(image)
            yield {"stream": f"Loaded image ID: {image_id}\n"}
            self._images.publish("load", image.id, image.id, image.labels)

    def save(self, names: Sequence[str], platform: Platform | None) -> Iterator[bytes]:
        """Write images as one archive that ``docker load`` takes. Raises NotFound for what is not there."""
        images = [self._images.resolve(name, platform) for name in names]
        records = list(dict.fromkeys(image.records[0].name for image in images))
        source = imagestore_pb2.ImageStore(
            name=records[0], extra_references=[imagestore_pb2.ImageReference(name=name) for name in records[1:]]
        )
        with transfer.open_stream(self._containerd) as stream:
            destination = importexport_pb2.ImageExportStream(
                stream=stream.id, platforms=[_platform(platform or platforms.default())]
            )
            with transfer.in_background(self._containerd, source, destination) as outcome:
                yield from transfer.receive_bytes(stream)
                try:
                    outcome()
                except errors.EngineError as error:
                    raise registries.translate_archive_error("save", error) from error
        for image in images:
            self._images.publish("save", image.id, image.id, image.labels)

    def _resolver(self, reference: Reference, auth_stream: str) -> registry_pb2.RegistryResolver:
        scheme = registries.default_scheme(reference.domain, self._config.insecure_registries)
        return registry_pb2.RegistryResolver(auth_stream=auth_stream, default_scheme=scheme)

    def _unpack(self, platform: platform_pb2.Platform) -> imagestore_pb2.UnpackConfiguration:
        return imagestore_pb2.UnpackConfiguration(platform=platform, snapshotter=self._config.storage_driver)


def _familiar(name: str) -> str:
    try:
        return references.parse_canonical(name).familiar
    except InvalidReference:
        return name


def _platform(platform: Platform) -> platform_pb2.Platform:
    return platform_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


def _loading(step: progress_pb2.Progress) -> Iterator[Json]:
    if step.event in ("extracting", "importing") and step.desc.digest and step.progress:
        total = step.total or step.desc.size
        yield lines.status_line("Loading layer", lines.short_id(step.desc.digest), step.progress, total)
