"""Unpacking images: layers become a chain of snapshots, named by their chain ids.

Source: image-spec, "Layer ChainID".
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from containerd.content import ContentStore
from containerd.descriptors import MAX_MANIFEST_SIZE, Descriptor, platform_from_json
from containerd.diff.apply import Applier
from containerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from containerd.labels import SNAPSHOT_REF, UNCOMPRESSED
from containerd.mounts import Mount
from containerd.observers import nobody
from containerd.scope import Scope
from containerd.snapshots import Snapshotter
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.locks import KeyedLocks
from gantry.oci.digest import Digest, InvalidDigest
from gantry.oci.platform import Platform

__all__ = ["ImageConfig", "Unpacker", "chain_ids", "read_config"]

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What unpacking has to know of an image configuration."""

    platform: Platform
    diff_ids: tuple[str, ...]


def read_config(content: ContentStore, scope: Scope, config: Descriptor) -> ImageConfig:
    """Read an image configuration. Raises :class:`InvalidArgument` naming the field that is wrong."""
    data = content.read(scope, config.digest, MAX_MANIFEST_SIZE * 2)
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"image config {config.digest} is not JSON: {error}: invalid argument") from error
    rootfs = document.get("rootfs") if isinstance(document, dict) else None
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None:
        diff_ids = []
    if not isinstance(document, dict) or not isinstance(diff_ids, list):
        raise InvalidArgument(f"image config {config.digest}: rootfs.diff_ids is not a list: invalid argument")
    try:
        checked = tuple(str(Digest(diff_id)) for diff_id in diff_ids)
    except (InvalidDigest, AttributeError) as error:
        raise InvalidArgument(f"image config {config.digest}: rootfs.diff_ids: {error}: invalid argument") from error
    return ImageConfig(platform_from_json(document), checked)


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain id of each layer: it names the layer together with all below it."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            diff_id = "sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest()
        chain.append(diff_id)
    return chain


class Unpacker:
    """Unpacks images into snapshots. Safe for threads: what two want at once is made once."""

    def __init__(self, content: ContentStore, applier: Applier, locks: KeyedLocks) -> None:
        self._content = content
        self._applier = applier
        self._locks = locks

    def unpack(
        self,
        scope: Scope,
        snapshotter: Snapshotter,
        config: Descriptor,
        layers: Sequence[Descriptor],
        *,
        cancellation: Cancellation,
        fetched: Callable[[Descriptor], Future[None] | None] = nobody,
        extracting: Callable[[Descriptor, int], None] = nobody,
        extracted: Callable[[Descriptor], None] = nobody,
    ) -> str:
        """Unpack an image and return its chain id, the name of its snapshot (empty for an image without layers).

        ``fetched`` may return a future to wait for before a layer is read: layers are unpacked as they come.
        Raises :class:`InvalidArgument` when configuration and manifest disagree, :class:`FailedPrecondition` for a
        layer with another content than its diff id says.
        """
        image = read_config(self._content, scope, config)
        if len(image.diff_ids) != len(layers):
            raise InvalidArgument(
                f"number of layers and diffIDs don't match: {len(layers)} != {len(image.diff_ids)}: invalid argument"
            )
        chain = chain_ids(image.diff_ids)
        for number, layer in enumerate(layers):
            with self._locks.hold(("snapshot", scope.namespace, snapshotter.name, chain[number]), cancellation):
                parent = chain[number - 1] if number else ""
                step = _Step(layer, image.diff_ids[number], chain[number], parent)
                made = self._layer(scope, snapshotter, step, cancellation, fetched, extracting)
            if made:
                extracted(layer)
        top = chain[-1] if chain else ""
        if top:
            label = f"containerd.io/gc.ref.snapshot.{snapshotter.name}"
            self._content.update(scope, config.digest, {label: top}, [f"labels.{label}"])
        return top

    def _layer(
        self,
        scope: Scope,
        snapshotter: Snapshotter,
        step: _Step,
        cancellation: Cancellation,
        fetched: Callable[[Descriptor], Future[None] | None],
        extracting: Callable[[Descriptor, int], None],
    ) -> bool:
        labels = {SNAPSHOT_REF: step.chain_id}
        prepared = self._prepare(scope, snapshotter, step, labels)
        if prepared is None:
            return False
        key, mounts = prepared
        try:
            waiting = fetched(step.layer)
            if waiting is not None:
                waiting.result()

            def progress(done: int) -> None:
                cancellation.check()
                extracting(step.layer, done)

            applied = self._applier.apply(scope, step.layer, mounts, progress=progress)
            if applied.digest != step.diff_id:
                raise FailedPrecondition(
                    f'wrong diff id "{applied.digest}" calculated on extraction "{step.diff_id}", '
                    f"layer {step.layer.digest}: failed precondition"
                )
            snapshotter.commit(scope, step.chain_id, key, labels)
        except AlreadyExists:  # another client has unpacked it in the meantime
            self._abandon(scope, snapshotter, key)
        except BaseException:
            self._abandon(scope, snapshotter, key)
            raise
        self._content.update(scope, step.layer.digest, {UNCOMPRESSED: step.diff_id}, [f"labels.{UNCOMPRESSED}"])
        return True

    def _prepare(
        self, scope: Scope, snapshotter: Snapshotter, step: _Step, labels: dict[str, str]
    ) -> tuple[str, Sequence[Mount]] | None:
        """Make the snapshot to extract to, or return None when the layer is unpacked already."""
        for _ in range(_ATTEMPTS):
            key = f"extract-{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()} {step.chain_id}"
            try:
                return key, snapshotter.prepare(scope, key, step.parent, labels)
            except AlreadyExists:
                try:
                    snapshotter.stat(scope, step.chain_id)
                except NotFound:
                    continue  # removed between the two: try again
                return None
        raise AlreadyExists(f"unable to prepare extraction snapshot for {step.chain_id}: already exists")

    def _abandon(self, scope: Scope, snapshotter: Snapshotter, key: str) -> None:
        try:
            snapshotter.remove(scope, key)
        except NotFound:
            return
        snapshotter.cleanup()


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer on its way: what is in it, what it becomes, and what it is put on."""

    layer: Descriptor
    diff_id: str
    chain_id: str
    parent: str
