"""Making the record and the world agree: when the engine comes up, and each time containerd was away.

The record is SQLite, the world is containerd's tasks. A task that ended meanwhile still has its exit code until it is
deleted. What the record has and the world has not was lost with the machine or with its shim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from dockerd import errors
from dockerd.containers import restart, timestamps
from dockerd.containers.creation import Creation
from dockerd.containers.exits import Exits
from dockerd.containers.model import ZERO_TIME, Status
from dockerd.containers.parts import OWNER_LABEL, Parts
from dockerd.containers.registry import Handle
from dockerd.containers.removal import Removal
from dockerd.containers.starting import Starting, delete_container, delete_task
from gantry.contracts.containerd.services.containers.v1 import containers_pb2
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.containerd.v1.types import task_pb2

__all__ = ["Reconciler"]

_log = logging.getLogger(__name__)

# What the real engine gives to a container whose end nobody saw.
_UNKNOWN_EXIT = 255

# Seconds. By then containerd has finished what an engine that was killed had asked for.
_SECOND_LOOK = 60.0


@dataclass(frozen=True)
class _Task:
    pid: int
    running: bool
    paused: bool
    exit_code: int
    finished_at: str


def _task(process: task_pb2.Process) -> _Task:
    return _Task(
        pid=process.pid,
        running=process.status in (task_pb2.RUNNING, task_pb2.PAUSED, task_pb2.PAUSING),
        paused=process.status in (task_pb2.PAUSED, task_pb2.PAUSING),
        exit_code=process.exit_status,
        finished_at=timestamps.from_protobuf(process.exited_at),
    )


class Reconciler:
    """Compares and repairs."""

    def __init__(self, parts: Parts, creation: Creation, starting: Starting, exits: Exits, removal: Removal) -> None:
        self._parts = parts
        self._creation = creation
        self._starting = starting
        self._exits = exits
        self._removal = removal

    def load(self) -> None:
        """Make the containers of the record known; unfinished ones are unmade."""
        for container, complete in list(self._parts.store.load()):
            if complete:
                self._parts.registry.add(Handle(container))
            else:
                _log.info("container %s was not finished: it is removed", container.id[:12])
                self._creation.unmake(container)

    def adopt(self) -> None:
        """Take over what runs and follow up on what ended, once, before any request is served.

        Networks are restored in between: exits need them, and they need to know what runs.
        """
        tasks = self._tasks()
        live = [handle.id for handle in self._parts.registry.all() if self._is_live(handle, tasks)]
        self._parts.networks.restore(live)
        for handle in self._parts.registry.all():
            handle.submit(partial(self._adopt_one, handle, tasks.get(handle.id)))
        self._remove_strangers()
        # A call of the last engine's may reach containerd after its end.
        self._parts.reactor.call_later(
            _SECOND_LOOK, lambda: self._parts.in_background(partial(self._tolerate, self._remove_strangers))
        )

    def resynchronize(self) -> None:
        """Follow up on exits that were not told, after containerd was away."""
        tasks = self._tasks()
        for handle in self._parts.registry.all():
            handle.submit(partial(self._settle_again, handle, tasks.get(handle.id)))

    def start_wanted(self) -> None:
        """Start what its restart policy wants to run when the engine comes up."""
        for handle in self._parts.registry.all():
            state = handle.container.state
            if state.running or state.started_at == ZERO_TIME or state.status in (Status.REMOVING, Status.DEAD):
                continue
            policy = handle.container.host_config.restart_policy
            wanted = restart.should_start_with_engine(
                policy, state.exit_code, state.restart_count, state.stopped_by_user
            )
            if wanted or state.status is Status.RESTARTING:
                self._parts.in_background(partial(handle.submit, partial(self._start, handle)))

    def _start(self, handle: Handle) -> None:
        if handle.container.state.running or handle.removed:
            return
        try:
            self._starting.start(handle)
        except errors.EngineError as error:
            _log.warning("container %s: cannot start it with the engine: %s", handle.id[:12], error)
            self._parts.change(handle, status=Status.EXITED)

    def _tasks(self) -> Mapping[str, _Task]:
        reply = self._parts.containerd.tasks.List(tasks_pb2.ListTasksRequest(), timeout=30)
        found = {}
        for process in reply.tasks:
            # The real engine names the container in `id` for a task's own process.
            found[process.container_id or process.id] = _task(process)
        return found

    def _task_now(self, container_id: str) -> _Task | None:
        try:
            reply = self._parts.containerd.tasks.Get(tasks_pb2.GetRequest(container_id=container_id), timeout=5)
        except errors.NotFound:
            return None
        return _task(reply.process)

    def _is_live(self, handle: Handle, tasks: Mapping[str, _Task]) -> bool:
        task = tasks.get(handle.id)
        return handle.container.state.running and task is not None and task.running

    def _adopt_one(self, handle: Handle, task: _Task | None) -> None:
        container = handle.container
        if container.state.status in (Status.REMOVING, Status.DEAD):
            self._finish_removal(handle)
            return
        if self._settle(handle, task):
            self._parts.streams.restore(handle.container)
            return
        state = handle.container.state
        if task is not None and not container.state.running:
            _log.info("container %s: a start was not finished, it is undone", handle.id[:12])
            self._starting.tear_down(container)
        # Also one that was never started: its client may have lost this engine during the start, and waits for the end.
        gone = not handle.removed and state.status in (Status.EXITED, Status.CREATED)
        if gone and container.host_config.auto_remove:
            self._finish_removal(handle)

    def _settle_again(self, handle: Handle, task: _Task | None) -> None:
        """Settle while containers come and go: the list may be older than a start that was under way."""
        if handle.container.state.running and (task is None or not task.running):
            task = self._task_now(handle.id)
        self._settle(handle, task)

    def _settle(self, handle: Handle, task: _Task | None) -> bool:
        """Bring the state up to date with the task; whether the container runs."""
        state = handle.container.state
        if handle.removed or not state.running:
            return False
        if task is not None and task.running:
            status = Status.PAUSED if task.paused else Status.RUNNING
            if (task.pid, status) != (state.pid, state.status):
                self._parts.change(handle, pid=task.pid, status=status)
            return True
        if task is None:
            _log.warning("container %s: it ended unseen", handle.id[:12])
            self._exits.handle(handle, 0, _UNKNOWN_EXIT, timestamps.now())
        else:
            self._exits.handle(handle, 0, task.exit_code, task.finished_at)
        return False

    def _finish_removal(self, handle: Handle) -> None:
        try:
            self._removal.remove(handle, volumes=handle.container.host_config.auto_remove)
        except errors.EngineError as error:
            _log.warning("container %s: cannot remove it: %s", handle.id[:12], error)

    def _remove_strangers(self) -> None:
        """Remove what this engine made in containerd and has no record of."""
        parts, snapshotter = self._parts, self._parts.config.storage_driver
        mine = f'labels."{OWNER_LABEL}"=="{parts.config.data_root}"'
        reply = parts.containerd.containers.List(containers_pb2.ListContainersRequest(filters=[mine]))
        listing = parts.containerd.snapshots.List(
            snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter, filters=[mine]), timeout=30
        )
        containers = [entry.id for entry in reply.containers]
        snapshots = [info.name for page in listing for info in page.info]
        # Looked up after the lists were taken: a record comes before anything else of its container.
        known = parts.store.ids()
        for container_id in containers:
            if container_id not in known:
                _log.info("container %s is in containerd only: it is removed", container_id[:12])
                self._tolerate(partial(self._remove_stranger, container_id))
        for name in snapshots:
            if name not in known:
                request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=name)
                self._tolerate(partial(parts.containerd.snapshots.Remove, request))

    def _remove_stranger(self, container_id: str) -> None:
        delete_task(self._parts, container_id)
        delete_container(self._parts, container_id)

    @staticmethod
    def _tolerate(action: Callable[[], object]) -> None:
        try:
            action()
        except errors.EngineError as error:
            _log.warning("left over in containerd: %s", error)
