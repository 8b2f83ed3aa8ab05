"""Transfers: which source goes to which destination, each under a lease of its own."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from containerd.content import ContentStore
from containerd.diff.apply import Applier
from containerd.errors import ContainerdError, InvalidArgument, NotFound, Unimplemented
from containerd.images import Image, ImageStore
from containerd.metadata.leases import LeaseStore
from containerd.observers import nobody
from containerd.scope import Scope
from containerd.snapshots import Snapshotter
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.endpoints import ExportStream, ImageStoreEndpoint, ImportStream, OCIRegistry
from containerd.transfer.export_images import ArchiveExporter
from containerd.transfer.fetch import Fetcher
from containerd.transfer.import_images import ImageImport
from containerd.transfer.importer import ArchiveImporter
from containerd.transfer.locks import KeyedLocks
from containerd.transfer.naming import images_for_target, require_images
from containerd.transfer.progress import Progress, ProgressTracker
from containerd.transfer.pull import Puller
from containerd.transfer.push import Pusher
from containerd.transfer.registry import Credentials, RegistryClient, hosts_for
from containerd.transfer.unpack import Unpacker
from gantry.oci import reference as references
from gantry.oci.reference import InvalidReference

__all__ = ["Connections", "TransferService"]

_LEASE_SECONDS = 24 * 3600
MOVES = 16
"""Pieces of content that are fetched or sent at once, by all transfers together."""


@dataclass(frozen=True, slots=True)
class Connections:
    """How a transfer reaches its client: each is a function for a thread to call, and may block.

    ``credentials(host, reference)`` asks who we are at a registry; ``received`` are the bytes of an import and
    ``send`` takes those of an export, of which ``flush`` sends the rest.
    """

    progress: Callable[[Progress], None] = nobody
    credentials: Callable[[str, str], Credentials | None] = nobody
    received: Iterable[bytes] = ()
    send: Callable[[bytes], None] = nobody
    flush: Callable[[], None] = nobody


class TransferService:
    """Carries out transfers in the calling thread. Safe for threads."""

    def __init__(
        self,
        content: ContentStore,
        images: ImageStore,
        snapshotters: dict[str, Snapshotter],
        leases: LeaseStore,
        applier: Applier,
        host_dir: str = "",
        released: Callable[[], None] = nobody,
    ) -> None:
        self._content = content
        self._images = images
        self._snapshotters = snapshotters
        self._leases = leases
        self._released = released
        self._host_dir = host_dir
        self._locks = KeyedLocks()
        self._executor = ThreadPoolExecutor(MOVES, thread_name_prefix="transfer-content")
        self._unpacker = Unpacker(content, applier, self._locks)

    def close(self) -> None:
        """End the threads. Transfers that are under way fail."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def transfer(
        self, scope: Scope, source: Any, destination: Any, connections: Connections, cancellation: Cancellation
    ) -> None:
        """Do one transfer. Raises :class:`Unimplemented` for a pair that has no meaning, and what went wrong."""
        with self._leased(scope) as leased:
            match source, destination:
                case OCIRegistry(), ImageStoreEndpoint():
                    self._pull(leased, source, destination, connections, cancellation)
                case ImageStoreEndpoint(), OCIRegistry():
                    self._push(leased, source, destination, connections, cancellation)
                case ImportStream(), ImageStoreEndpoint():
                    self._import(leased, source, destination, connections, cancellation)
                case ImageStoreEndpoint(), ExportStream():
                    self._export(leased, source, destination, connections)
                case ImageStoreEndpoint(), ImageStoreEndpoint():
                    self._tag(leased, source, destination)
                case _:
                    raise Unimplemented(f"unable to transfer from {source} to {destination}: not implemented")

    @contextmanager
    def _leased(self, scope: Scope) -> Iterator[Scope]:
        """Keep what the transfer makes until its image does; a client's own lease is used when there is one."""
        if scope.lease:
            yield scope
            return
        name = f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _LEASE_SECONDS))
        self._leases.create(scope.namespace, name, {"containerd.io/gc.expire": expiry})
        try:
            yield replace(scope, lease=name)
        finally:
            with suppress(NotFound):  # a client may have ended it
                self._leases.delete(scope.namespace, name)
            self._released()

    def _registry(self, registry: OCIRegistry, connections: Connections, cancellation: Cancellation) -> RegistryClient:
        try:
            reference = references.parse_canonical(registry.reference)
        except InvalidReference as error:
            raise InvalidArgument(f"{registry.reference[:300]}: {error}: invalid argument") from error
        hosts = hosts_for(reference.domain, registry.host_dir or self._host_dir, registry.default_scheme)
        return RegistryClient(
            reference,
            hosts,
            cancellation,
            lambda host: connections.credentials(host, registry.reference),
            registry.headers,
        )

    def _pull(
        self,
        scope: Scope,
        source: OCIRegistry,
        destination: ImageStoreEndpoint,
        connections: Connections,
        cancellation: Cancellation,
    ) -> None:
        progress = ProgressTracker(connections.progress, source.reference, "downloading")
        progress.say(f"Resolving from {source}")
        with self._registry(source, connections, cancellation) as registry:
            try:
                target = registry.resolve()
            except ContainerdError as error:
                raise type(error)(f"failed to resolve image: {error}") from error
            fetcher = Fetcher(self._content, self._locks, registry, scope, progress, cancellation)
            puller = Puller(
                scope,
                self._content,
                self._images,
                fetcher,
                self._unpacker,
                self._snapshotters,
                progress,
                cancellation,
                self._executor,
            )
            puller.run(source, target, destination)

    def _push(
        self,
        scope: Scope,
        source: ImageStoreEndpoint,
        destination: OCIRegistry,
        connections: Connections,
        cancellation: Cancellation,
    ) -> None:
        image = self._images.get(scope, source.name)
        progress = ProgressTracker(connections.progress, image.name, "uploading")
        with self._registry(destination, connections, cancellation) as registry:
            pusher = Pusher(scope, self._content, registry, progress, cancellation, self._executor)
            pusher.run(image, source, destination)

    def _import(
        self,
        scope: Scope,
        source: ImportStream,
        destination: ImageStoreEndpoint,
        connections: Connections,
        cancellation: Cancellation,
    ) -> None:
        progress = ProgressTracker(connections.progress, destination.name, "importing")
        progress.say("Importing")
        importer = ArchiveImporter(self._content, scope, compress=source.force_compress)
        index = importer.run(connections.received, source.media_type)
        stores = ImageImport(
            scope, self._content, self._images, self._unpacker, self._snapshotters, progress, cancellation
        )
        stores.run(index, destination)
        progress.say("Completed import")

    def _export(
        self, scope: Scope, source: ImageStoreEndpoint, destination: ExportStream, connections: Connections
    ) -> None:
        progress = ProgressTracker(connections.progress, source.name, "exporting")
        progress.say("Exporting")
        images = [self._images.get(scope, source.name)] if source.name else []
        for extra in source.extra_references:
            if extra.is_prefix:
                raise Unimplemented(f"prefix lookup of {extra.name} on export not implemented: not implemented")
            images.append(self._images.get(scope, extra.name))
        if not images:
            raise InvalidArgument("export names no image: invalid argument")
        ArchiveExporter(self._content, scope, destination, connections.send).run(images)
        connections.flush()
        progress.say("Completed export")

    def _tag(self, scope: Scope, source: ImageStoreEndpoint, destination: ImageStoreEndpoint) -> None:
        image: Image = self._images.get(scope, source.name)
        for named in require_images(images_for_target(destination, image.target)):
            self._images.store(scope, named)
