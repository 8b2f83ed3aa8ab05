"""Removing a container: first it is marked, then its pieces go, last its record. Safe to repeat at any point."""

from __future__ import annotations

import shutil

from dockerd import errors
from dockerd.containers.creation import remove_snapshot
from dockerd.containers.model import Status
from dockerd.containers.parts import Parts
from dockerd.containers.registry import Handle
from dockerd.containers.starting import Starting
from dockerd.containers.wait import Condition, Outcome

__all__ = ["Removal"]


class Removal:
    """Removes containers that do not run. Every method's caller holds the container."""

    def __init__(self, parts: Parts, starting: Starting) -> None:
        self._parts = parts
        self._starting = starting

    def remove(self, handle: Handle, *, volumes: bool) -> None:
        """Remove the container, with ``volumes`` its anonymous volumes too.

        Raises the error of the piece that stays; the container is then DEAD and can be removed again.
        """
        if handle.removed:
            raise errors.NotFound(f"No such container: {handle.id}")
        exit_code = handle.container.state.exit_code
        container = self._parts.change(handle, status=Status.REMOVING)
        try:
            self._take_apart(handle, volumes)
        except BaseException as error:
            self._parts.change(handle, status=Status.DEAD, error=str(error))
            handle.waiters.removal_failed(Outcome(exit_code, str(error)))
            self._parts.streams.answer(container.id, (Condition.REMOVED,), exit_code, str(error))
            raise
        handle.removed = True
        self._parts.registry.remove(handle)
        self._parts.publish(container, "destroy")
        handle.waiters.removed(Outcome(exit_code))
        self._parts.streams.answer(container.id, tuple(Condition), exit_code)

    def _take_apart(self, handle: Handle, volumes: bool) -> None:
        parts, container = self._parts, handle.container
        if handle.clean:
            parts.streams.forget(container.id)
        else:
            self._starting.tear_down(container)
        snapshot = parts.helpers.submit(remove_snapshot, parts, container)
        try:
            anonymous = {point.name for point in container.mounts if point.anonymous}
            released = parts.volumes.release(container.id)
            if volumes:
                for name in released:
                    if name in anonymous:
                        self._remove_volume(name)
            shutil.rmtree(container.root, ignore_errors=True)
            shutil.rmtree(parts.config.container_state(container.id), ignore_errors=True)
        finally:
            snapshot.result()
        parts.store.delete(container.id)

    def _remove_volume(self, name: str) -> None:
        try:
            self._parts.volumes.remove(name, force=True)
        except errors.Conflict:  # another container has it by --volumes-from
            return
