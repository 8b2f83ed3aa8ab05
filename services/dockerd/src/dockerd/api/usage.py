"""What images, containers and volumes take on disk: ``GET /system/df``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from dockerd.api import images, volumes
from dockerd.containers import views
from dockerd.errors import NotFound
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2

if TYPE_CHECKING:
    from dockerd.engine import Engine

__all__ = ["KINDS", "collect", "directory_size"]

KINDS = ("container", "image", "volume", "build-cache")
"""The values of the query's ``type``."""


def collect(engine: Engine, kinds: Set[str]) -> dict[str, Any]:
    """The reply's body, with the parts that ``kinds`` name."""
    body: dict[str, Any] = {}
    if "image" in kinds:
        body |= _images(engine)
    if "container" in kinds:
        body["Containers"] = _containers(engine, {image.id: image.size for image in engine.images.list()})
    if "volume" in kinds:
        body["Volumes"] = _volumes(engine)
    if "build-cache" in kinds:
        body["BuildCache"] = []
    return body


def _images(engine: Engine) -> dict[str, Any]:
    found = engine.images.list()
    users = Counter(container.image_id for container in engine.containers.all())
    owners = Counter(str(chain) for image in found for chain in set(image.content.chain_ids))
    sizes = {chain: _snapshot_size(engine, chain) for chain in owners}
    rows = []
    for image in found:
        chains = {str(chain) for chain in image.content.chain_ids}
        shared = sum(sizes[chain] for chain in chains if owners[chain] > 1)
        rows.append(images.summary(image) | {"Containers": users[image.id], "SharedSize": shared})
    return {"LayersSize": sum(sizes.values()), "Images": rows}


def _snapshot_size(engine: Engine, key: str) -> int:
    request = snapshots_pb2.UsageRequest(snapshotter=engine.config.storage_driver, key=key)
    try:
        return int(engine.containerd.snapshots.Usage(request).size)
    except NotFound:  # not unpacked
        return 0


def _containers(engine: Engine, image_sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    containers = engine.containers.all()
    written = engine.containers.snapshot_usage(containers)
    rows = []
    for one in containers:
        size = {"SizeRw": written[one.id], "SizeRootFs": written[one.id] + image_sizes.get(one.image_id, 0)}
        settings = engine.networks.settings(one.id, one.host_config.network_mode, one.endpoints, name=one.name)
        rows.append(views.listed(one, settings, size))
    return rows


def _volumes(engine: Engine) -> list[dict[str, Any]]:
    rows = []
    for volume in engine.volumes.list():
        usage = {"RefCount": len(engine.volumes.users(volume.name)), "Size": directory_size(volume.mountpoint)}
        rows.append(volumes.summary(volume) | {"UsageData": usage})
    return rows


def directory_size(path: str) -> int:
    """Bytes of the files below ``path``, those with several names counted once; what vanishes meanwhile is not."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
    return total
