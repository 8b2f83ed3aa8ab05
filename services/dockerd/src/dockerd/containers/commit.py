"""``docker commit``: the settings of the image that a container becomes, and the container held still meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dockerd import errors
from dockerd.containers import create
from dockerd.containers.lifecycle import Lifecycle
from dockerd.containers.model import ContainerConfig, Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.wire import from_wire
from dockerd.images.changes import apply_changes
from dockerd.images.commit import CommitRequest

__all__ = ["Commit", "Committing"]


@dataclass(frozen=True)
class Commit:
    """What a client asks for. ``config`` takes the place of the container's own where it says something; ``reference``
    is empty or the image's name."""

    reference: str = ""
    comment: str = ""
    author: str = ""
    changes: tuple[str, ...] = ()
    pause: bool = True
    config: Mapping[str, Any] | None = None


class Committing:
    """Makes images of containers."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        self._parts = parts
        self._lifecycle = lifecycle

    def commit(self, handle: Handle, asked: Commit) -> str:
        """Make an image of the container; returns its id. A running one is paused meanwhile, unless told otherwise.

        Raises Conflict for a container that is being removed, InvalidParameter for an instruction that is not allowed.
        """
        container = handle.container
        for status, words in ((Status.DEAD, "Dead"), (Status.REMOVING, "being removed")):
            if container.state.status is status:
                raise errors.Conflict(f"You cannot commit container {container.id} which is {words}")
        own = msgspec.to_builtins(container.config)
        changed = apply_changes(dict(asked.config) if asked.config else own, asked.changes)
        plain = {key.lower(): value for key, value in changed.items()}
        config = create.merge(from_wire(plain, ContainerConfig), own)
        request = CommitRequest(
            snapshotter=container.snapshotter,
            key=container.id,
            config=msgspec.to_builtins(config),
            command=" ".join(container.config.cmd or ()),
            comment=asked.comment,
            author=asked.author,
        )
        with contextlib.ExitStack() as stack:
            if asked.pause and container.state.status is Status.RUNNING:
                self._pause(handle, stack)
            image_id = self._parts.images.commit(container.image_id, request, asked.reference)
        self._parts.publish(
            container, "commit", {"comment": asked.comment, "imageID": image_id, "imageRef": asked.reference}
        )
        return image_id

    def _pause(self, handle: Handle, stack: contextlib.ExitStack) -> None:
        with contextlib.suppress(errors.EngineError):  # it has ended, or its control groups cannot freeze it
            self._lifecycle.pause(handle)
            stack.callback(self._unpause, handle)

    def _unpause(self, handle: Handle) -> None:
        with contextlib.suppress(errors.Conflict):  # somebody else did it, or ended it
            self._lifecycle.unpause(handle)
