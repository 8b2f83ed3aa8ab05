"""``docker history``: the steps of an image, each with the layer that it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dockerd.images.model import Image

__all__ = ["Step", "history"]


@dataclass(frozen=True)
class Step:
    """One step, ``size`` in bytes. Only the newest has the image's id and tags."""

    id: str
    created: str
    created_by: str
    comment: str
    size: int
    tags: tuple[str, ...]


def history(image: Image, layer_size: Callable[[int], int]) -> list[Step]:
    """The steps from the newest down. ``layer_size`` gives the size of a layer by its number.

    Layers of which the configuration tells no history are steps without a text.
    """
    recorded = image.content.config.get("history")
    entries: list[dict[str, Any]] = [entry for entry in recorded or () if isinstance(entry, dict)]
    layers = len(image.content.diff_ids)
    with_layer = sum(1 for entry in entries if not entry.get("empty_layer"))
    entries = [{} for _ in range(layers - with_layer)] + entries
    steps: list[Step] = []
    layer = 0
    for entry in entries:
        size = 0
        if not entry.get("empty_layer") and layer < layers:
            size = layer_size(layer)
            layer += 1
        newest = len(steps) == len(entries) - 1
        steps.append(
            Step(
                id=image.id if newest else "<missing>",
                created=str(entry.get("created") or image.created),
                created_by=str(entry.get("created_by") or ""),
                comment=str(entry.get("comment") or ""),
                size=size,
                tags=image.repo_tags if newest else (),
            )
        )
    return steps[::-1]
