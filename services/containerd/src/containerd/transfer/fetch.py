"""Bringing content from a registry into the content store, verified."""

from __future__ import annotations

from containerd.content import ContentStore, Writer
from containerd.descriptors import Descriptor, reference_key
from containerd.errors import (
    AlreadyExists,
    ContainerdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from containerd.identifiers import validate_labels
from containerd.labels import DISTRIBUTION_SOURCE
from containerd.scope import Scope
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.locks import KeyedLocks
from containerd.transfer.progress import ProgressTracker
from containerd.transfer.registry import RegistryClient

__all__ = ["Fetcher"]

_LOCKED_DELAY = 0.1


class Fetcher:
    """Fetches what one pull needs. Safe for threads."""

    def __init__(
        self,
        content: ContentStore,
        locks: KeyedLocks,
        registry: RegistryClient,
        scope: Scope,
        progress: ProgressTracker,
        cancellation: Cancellation,
    ) -> None:
        self._content = content
        self._locks = locks
        self._registry = registry
        self._scope = scope
        self._progress = progress
        self._cancellation = cancellation

    def fetch(self, descriptor: Descriptor) -> None:
        """Bring one piece of content here unless it is here, and note where it came from.

        Raises :class:`FailedPrecondition` when it is not what its descriptor promises; what was written is dropped.
        """
        self._cancellation.check()
        with self._locks.hold(("blob", self._scope.namespace, descriptor.digest), self._cancellation):
            try:
                writer = self._writer(descriptor)
            except AlreadyExists:
                self._progress.exists(descriptor)
            else:
                self._download(descriptor, writer)
                self._progress.complete(descriptor)
        self._note_source(descriptor)

    def _writer(self, descriptor: Descriptor) -> Writer:
        if not descriptor.size:
            raise InvalidArgument(
                f"unable to fetch descriptor ({descriptor.digest}) which reports content size of zero: invalid argument"
            )
        while True:
            try:
                return self._content.writer(
                    self._scope, reference_key(descriptor), total=descriptor.size, expected=descriptor.digest
                )
            except Unavailable:  # a client is fetching the same by itself: wait for what it gets
                self._cancellation.sleep(_LOCKED_DELAY)

    def _download(self, descriptor: Descriptor, writer: Writer) -> None:
        reference = reference_key(descriptor)
        with writer:
            try:
                self._copy(descriptor, writer)
                writer.commit(size=descriptor.size, expected=descriptor.digest)
            except AlreadyExists:
                return
            except FailedPrecondition as error:
                writer.close()
                self._drop(reference)
                raise FailedPrecondition(f'failed commit on ref "{reference}": {error}') from error
            except ResourceExhausted:
                writer.close()
                self._drop(reference)  # the room is needed; what was fetched can be fetched again
                raise

    def _copy(self, descriptor: Descriptor, writer: Writer) -> None:
        if writer.offset > descriptor.size:
            writer.truncate()
        if writer.offset == descriptor.size:
            return
        for piece in self._registry.fetch(descriptor, writer.offset):
            if writer.offset + len(piece) > descriptor.size:
                raise FailedPrecondition(
                    f"unexpected commit size: more than {descriptor.size} bytes of {descriptor.digest} came: "
                    "failed precondition"
                )
            writer.write(piece)
            self._progress.moving(descriptor, writer.offset)

    def _drop(self, reference: str) -> None:
        try:
            self._content.abort(self._scope, reference)
        except NotFound:
            return

    def _note_source(self, descriptor: Descriptor) -> None:
        """Add the repository to the label of its host, by which a push finds where content can be mounted from."""
        reference = self._registry.reference
        host = reference.domain.partition(":")[0]
        key = f"{DISTRIBUTION_SOURCE}.{host}"
        known = self._content.info(self._scope, descriptor.digest).labels.get(key, "")
        value = ",".join(sorted({*filter(None, known.split(",")), reference.path}))
        if value == known:
            return
        try:
            validate_labels({key: value}, "labels")
        except ContainerdError:
            return  # a layer that very many repositories have: the label is full
        self._content.update(self._scope, descriptor.digest, {key: value}, [f"labels.{key}"])
