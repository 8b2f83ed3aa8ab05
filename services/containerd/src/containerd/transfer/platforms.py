"""Which manifests of an index a transfer is about."""

from __future__ import annotations

from collections.abc import Sequence

from containerd.descriptors import Descriptor
from gantry.oci.platform import Platform

__all__ = ["runs_on", "select_manifests"]


def runs_on(machine: Platform, offered: Platform) -> int | None:
    """Return how well a machine runs what is offered: 0 is best, None is not at all."""
    for rank, candidate in enumerate(machine.compatible()):
        if offered.matches(candidate):
            return rank
    return None


def select_manifests(
    manifests: Sequence[Descriptor], platforms: Sequence[Platform], limit: int = 0
) -> list[Descriptor]:
    """Return the manifests for these platforms, the best for each; without platforms all of them, up to ``limit``.

    A manifest that names no platform is always meant. An exact match hides what merely runs there as well.
    """
    if not platforms:
        return list(manifests[:limit] if limit else manifests)
    ranked: list[tuple[int, int, Descriptor]] = []
    for order, wanted in enumerate(platforms):
        ranks = [(runs_on(wanted, item.platform), item) for item in manifests if item.platform is not None]
        fitting = [(rank, item) for rank, item in ranks if rank is not None]
        if fitting:
            best = min(rank for rank, _ in fitting)
            ranked += [(order, rank, item) for rank, item in fitting if rank == best]
    chosen = [item for _, _, item in ranked] + [item for item in manifests if item.platform is None]
    unique = list({item.digest: item for item in chosen}.values())
    return unique[:limit] if limit else unique
