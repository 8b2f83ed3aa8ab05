"""The containers of the running engine, found by id, name or prefix; one operation at a time on each.

Listings read :attr:`Handle.container`, an immutable value, and never wait: a container that is stuck in an operation
cannot block them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dockerd import errors
from dockerd.containers.model import Container
from dockerd.containers.wait import Waiters

if TYPE_CHECKING:
    from dockerd.server.reactor import Timer
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Handle", "Registry"]

_log = logging.getLogger(__name__)


class Handle:
    """One container's place in the engine: its present value, its lock, and who waits for it."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.waiters = Waiters()
        # The first start finds the mounts of a fresh snapshot here; later ones ask for them.
        self.root_mounts: list[mount_pb2.Mount] | None = None
        self.pristine = False  # nothing has been written to the root file system since its creation
        self.clean = False  # nothing of a start is left: no task, no network, nothing in containerd but the snapshot
        self.restart_timer: Timer | None = None
        self.restart_delay = 0.0
        self.removed = False
        self.restarting_by_user = False  # a stop is under way and a start follows: --rm does not apply
        self._lock = threading.Lock()
        self._pending: deque[Callable[[], object]] = deque()

    @property
    def id(self) -> str:
        """The container's id."""
        return self.container.id

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the container for one operation; what was submitted meanwhile runs when it is let go."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()
            self._drain()

    def submit(self, action: Callable[[], object]) -> None:
        """Run ``action`` holding the container: now, or, when it is held, in the thread that holds it, afterwards.

        So an exit that is reported during a slow start costs no waiting thread. Actions keep their order.
        """
        self._pending.append(action)
        self._drain()

    def _drain(self) -> None:
        while self._pending and self._lock.acquire(blocking=False):
            try:
                while self._pending:
                    self._run(self._pending.popleft())
            finally:
                self._lock.release()

    def _run(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:
            # Nobody waits for this result: it is logged, and the next action has its turn.
            _log.exception("container %s: an operation in the background failed", self.id[:12])


class Registry:
    """All containers, by id and name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, Handle] = {}
        self._id_by_name: dict[str, str] = {}

    def add(self, handle: Handle) -> None:
        """Make the container known."""
        with self._lock:
            self._by_id[handle.id] = handle
            self._id_by_name[handle.container.name] = handle.id

    def rename(self, handle: Handle, old: str, new: str) -> None:
        """The container's name has changed."""
        with self._lock:
            self._id_by_name.pop(old, None)
            self._id_by_name[new] = handle.id

    def remove(self, handle: Handle) -> None:
        """Forget the container."""
        with self._lock:
            self._by_id.pop(handle.id, None)
            if self._id_by_name.get(handle.container.name) == handle.id:
                del self._id_by_name[handle.container.name]

    def all(self) -> list[Handle]:
        """Every container's handle, in no order."""
        with self._lock:
            return list(self._by_id.values())

    def get(self, container_id: str) -> Handle | None:
        """The container with exactly this id."""
        return self._by_id.get(container_id)

    def find(self, reference: str) -> Handle:
        """The container with this id, name, or unambiguous beginning of an id.

        Raises NotFound (``No such container``), InvalidParameter for a beginning that several share.
        """
        with self._lock:
            handle = self._by_id.get(reference)
            if handle is None:
                container_id = self._id_by_name.get(reference.removeprefix("/"))
                handle = self._by_id.get(container_id) if container_id else None
            if handle is not None:
                return handle
            matches = [item for key, item in self._by_id.items() if key.startswith(reference)] if reference else []
        if len(matches) > 1:
            raise errors.InvalidParameter(f"Multiple IDs found with provided prefix: {reference}")
        if not matches:
            raise errors.NotFound(f"No such container: {reference}")
        return matches[0]
