"""The containers of one engine: the face of this package for the API and for the other parts."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import msgspec
from google.protobuf import any_pb2

from dockerd import errors
from dockerd.config import Config
from dockerd.containers import host, names, spec, timestamps, validation
from dockerd.containers.archive import Archives, PathStatus
from dockerd.containers.changes import Change
from dockerd.containers.commit import Commit, Committing
from dockerd.containers.connecting import Connecting
from dockerd.containers.creation import Creation
from dockerd.containers.exits import Exits
from dockerd.containers.health_monitor import HealthMonitor
from dockerd.containers.lifecycle import Done, Lifecycle
from dockerd.containers.model import Container, HostConfig, Status
from dockerd.containers.monitor import Monitor
from dockerd.containers.parts import Parts
from dockerd.containers.reconcile import Reconciler
from dockerd.containers.registry import Handle, Registry
from dockerd.containers.removal import Removal
from dockerd.containers.starting import Starting
from dockerd.containers.store import ContainerStore
from dockerd.containers.update import updated
from dockerd.containers.wait import Condition, Outcome
from dockerd.images import ImageUse
from gantry.contracts.containerd.events import task_pb2 as task_events
from gantry.contracts.containerd.services.snapshots.v1 import snapshots_pb2
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from dockerd.containerd_client import Client
    from dockerd.containers.exec import ExecService
    from dockerd.events import EventLog
    from dockerd.images import ImageService
    from dockerd.networks import NetworkService
    from dockerd.server.reactor import Reactor
    from dockerd.stdio import StreamService
    from dockerd.volumes import VolumeService
    from gantry.database import Database

__all__ = ["ContainerService"]

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 30.0
_RESOURCES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


class ContainerService:
    """Creates, runs and removes containers. Threads may call it at the same time.

    References are ids, names, or beginnings of ids; an unknown one is NotFound (``No such container: x``) everywhere.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        containerd: Client,
        reactor: Reactor,
        events: EventLog,
        streams: StreamService,
        images: ImageService,
        networks: NetworkService,
        volumes: VolumeService,
    ) -> None:
        self._registry = Registry()
        self._parts = parts = Parts(
            config=config,
            containerd=containerd,
            reactor=reactor,
            events=events,
            streams=streams,
            images=images,
            networks=networks,
            volumes=volumes,
            store=ContainerStore(database),
            registry=self._registry,
            background=ThreadPoolExecutor(16, thread_name_prefix="containers"),
            helpers=ThreadPoolExecutor(16, thread_name_prefix="containers-helper"),
        )
        self._starting = Starting(parts)
        self._creation = Creation(parts)
        self.connecting = Connecting(parts)
        self._removal = Removal(parts, self._starting)
        self._archives = Archives(parts)
        self._exits = Exits(parts, self._starting, self._discard)
        self._lifecycle = Lifecycle(parts, self._starting, self._exits, self._discard)
        self._committing = Committing(parts, self._lifecycle)
        self._reconciler = Reconciler(parts, self._creation, self._starting, self._exits, self._removal)
        self._health: HealthMonitor | None = None
        self._monitor = Monitor(containerd, self._on_event, self._on_connected)
        self._exec_exited: Callable[[task_events.TaskExit], None] = lambda _event: None
        self._exec_forget: Callable[[str], None] = lambda _container_id: None
        self._adopted = threading.Event()
        self._prune_lock = threading.Lock()
        images.on_usage(self._image_uses)

    def start(self) -> None:
        """Take over the containers of the last engine, and begin to follow what happens to them.

        Raises Unavailable when containerd does not answer.
        """
        os.makedirs(os.path.join(self._parts.config.data_root, "containers"), mode=0o710, exist_ok=True)
        self._reconciler.load()
        self._monitor.start(_CONNECT_TIMEOUT)
        self._reconciler.adopt()
        self._adopted.set()
        if self._health is not None:
            self._health.resume()
        self._reconciler.start_wanted()

    def close(self) -> None:
        """Stop following; the containers go on."""
        self._monitor.close()
        for handle in self._registry.all():
            if handle.restart_timer is not None:
                handle.restart_timer.cancel()
        self._parts.background.shutdown(wait=True, cancel_futures=True)
        self._parts.helpers.shutdown(wait=True)

    def watch_execs(self, exited: Callable[[task_events.TaskExit], None], forget: Callable[[str], None]) -> None:
        """Tell who keeps the execs of their ends, and of containers whose execs are forgotten."""
        self._exec_exited = exited
        self._exec_forget = forget

    def check_health(self, execs: ExecService) -> None:
        """Run the containers' health checks as ``execs`` from now on. To be called before :meth:`start`."""
        self._health = HealthMonitor(self._parts, execs)
        self._parts.followers.append(self._health.follow)

    def get(self, reference: str) -> Container:
        """The container as it is now."""
        return self._registry.find(reference).container

    def find(self, container_id: str) -> Container | None:
        """The container with exactly this id."""
        handle = self._registry.get(container_id)
        return handle.container if handle is not None else None

    def all(self) -> list[Container]:
        """Every container as it is now, the newest first."""
        return sorted(
            (handle.container for handle in self._registry.all()), key=lambda entry: entry.created, reverse=True
        )

    def publish(self, container: Container, action: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell of what happened to a container (an event)."""
        self._parts.publish(container, action, attributes)

    def on_exit(self, reference: str, condition: Condition, callback: Callable[[Outcome], None]) -> Callable[[], None]:
        """Call ``callback`` once when the condition is true, at once if it is; returns how to stop waiting.

        The callback runs in the thread that brings the news and must be quick.
        """
        handle = self._registry.find(reference)
        lock = threading.Lock()

        def once(outcome: Outcome) -> None:
            if lock.acquire(blocking=False):  # for good
                callback(outcome)

        forget = handle.waiters.add(condition, once)
        container = handle.container
        running = container.state.running or container.state.status is Status.RESTARTING
        if condition is Condition.NOT_RUNNING and not running:
            forget()
            once(Outcome(container.state.exit_code, container.state.error))
        elif handle.removed:
            forget()
            once(Outcome(container.state.exit_code))
        return forget

    def create(self, body: Mapping[str, Any], name: str = "") -> tuple[Container, list[str]]:
        """Create a container; returns it and warnings for the user. See :meth:`Creation.create`."""
        return self._creation.create(body, name)

    def start_container(self, reference: str) -> None:
        """Run it. Raises NotModified when it runs."""
        self._lifecycle.start(self._registry.find(reference))

    def stop(self, reference: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop it within ``timeout`` seconds. Raises NotModified when it does not run."""
        self._lifecycle.stop(self._registry.find(reference), timeout, signal)

    def begin_stop(self, reference: str, timeout: int | None, signal: str, done: Done) -> None:
        """Stop it and tell ``done``. See :meth:`Lifecycle.begin_stop`."""
        self._lifecycle.begin_stop(self._registry.find(reference), timeout, signal, done)

    def begin_restart(self, reference: str, timeout: int | None, signal: str, done: Done) -> None:
        """Stop it, run it again and tell ``done``. See :meth:`Lifecycle.begin_restart`."""
        self._lifecycle.begin_restart(self._registry.find(reference), timeout, signal, done)

    def kill(self, reference: str, signal: str = "") -> None:
        """Send it a signal."""
        self._lifecycle.kill(self._registry.find(reference), signal)

    def restart(self, reference: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop it and run it again."""
        self._lifecycle.restart(self._registry.find(reference), timeout, signal)

    def pause(self, reference: str) -> None:
        """Freeze it."""
        self._lifecycle.pause(self._registry.find(reference))

    def unpause(self, reference: str) -> None:
        """Let it go on."""
        self._lifecycle.unpause(self._registry.find(reference))

    def rename(self, reference: str, name: str) -> None:
        """Give it another name. Raises Conflict, InvalidParameter."""
        handle = self._registry.find(reference)
        if not name:
            raise errors.InvalidParameter("Neither old nor new names may be empty")
        prefix = "Error when allocating new name: "
        with handle.exclusive():
            old = handle.container.name
            try:
                new = names.check_name(name)
            except errors.InvalidParameter as error:
                raise errors.InvalidParameter(f"{prefix}{error}".replace(f"({name})", f"(/{name})")) from None
            if new == old:
                raise errors.InvalidParameter("Renaming a container with the same name as its current name")
            try:
                self._parts.store.rename(handle.id, new)
            except errors.Conflict as error:
                raise errors.Conflict(f"{prefix}{error}") from None
            handle.container = msgspec.structs.replace(handle.container, name=new)
            self._registry.rename(handle, old, new)
            self._parts.networks.rename(handle.id, new)
            self._parts.publish(handle.container, "rename", {"oldName": f"/{old}"})

    def resize(self, reference: str, height: int, width: int) -> None:
        """Set the size of its terminal. Raises Conflict when it does not run."""
        container = self.get(reference)
        if not container.state.running:
            raise errors.Conflict(f"container {container.id} is not running")
        self._parts.containerd.tasks.ResizePty(
            tasks_pb2.ResizePtyRequest(container_id=container.id, width=width, height=height)
        )
        self._parts.publish(container, "resize", {"height": str(height), "width": str(width)})

    def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it, with ``force`` even while it runs, with ``volumes`` its anonymous volumes too.

        Raises Conflict when it runs, or is being removed already.
        """
        handle = self._registry.find(reference)
        if handle.container.state.status is Status.REMOVING:
            raise errors.Conflict(f"removal of container {reference} is already in progress")
        if force:
            self._end(handle)
        with handle.exclusive():
            if force and handle.removed:
                return  # it went with its end (--rm)
            status = handle.container.state.status
            if status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING):
                hint = "unpause and then stop" if status is Status.PAUSED else "stop"
                raise errors.Conflict(
                    f'cannot remove container "{handle.container.name}": container is {status}: '
                    f"{hint} the container before removing or force remove"
                )
            self._removal.remove(handle, volumes=volumes)
        self._exec_forget(handle.id)

    def prune(self, matches: Callable[[Container], bool]) -> list[Container]:
        """Remove every container that does not run and that ``matches``; returns those that were removed."""
        if not self._prune_lock.acquire(blocking=False):
            raise errors.Conflict("a prune operation is already running")
        try:
            removed = []
            for container in self.all():
                if container.state.status in (Status.CREATED, Status.EXITED, Status.DEAD) and matches(container):
                    try:
                        self.remove(container.id)
                    except (errors.NotFound, errors.Conflict):  # somebody took it into use, or removed it
                        continue
                    removed.append(container)
            return removed
        finally:
            self._prune_lock.release()

    def update(self, reference: str, body: Mapping[str, Any]) -> list[str]:
        """Change limits and the restart policy; returns warnings. Raises NotSupported naming what cannot be changed."""
        handle = self._registry.find(reference)
        with handle.exclusive():
            container = handle.container
            new, warnings = _updated(container, body)
            if container.state.running and spec.resources(new) != spec.resources(container.host_config):
                self._update_task(container, new)
            handle.container = msgspec.structs.replace(container, host_config=new)
            self._parts.store.save_definition(handle.container)
            self._parts.publish(handle.container, "update")
        return warnings

    def _update_task(self, container: Container, settings: HostConfig) -> None:
        resources = msgspec.json.encode(spec.resources(settings))
        try:
            self._parts.containerd.tasks.Update(
                tasks_pb2.UpdateTaskRequest(
                    container_id=container.id,
                    resources=any_pb2.Any(type_url=_RESOURCES_TYPE_URL, value=resources),
                )
            )
        except errors.EngineError as error:
            raise type(error)(f"Cannot update container {container.id}: {error}") from error

    def pids(self, container: Container) -> list[int]:
        """Process ids, on the host, of all processes of a running container."""
        reply = self._parts.containerd.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id=container.id))
        return [process.pid for process in reply.processes]

    def metrics(self, container: Container) -> tuple[str, bytes] | None:
        """The numbers of a running container as containerd gives them: the type's name and the message; None if there
        are none."""
        reply = self._parts.containerd.tasks.Metrics(tasks_pb2.MetricsRequest(filters=[f"id=={container.id}"]))
        for metric in reply.metrics:
            if metric.id == container.id:
                return metric.data.type_url.rpartition("/")[2], metric.data.value
        return None

    def snapshot_usage(self, containers: Iterable[Container]) -> dict[str, int]:
        """Bytes that each of the containers has written to its root file system."""
        sizes = {}
        for container in containers:
            request = snapshots_pb2.UsageRequest(snapshotter=container.snapshotter, key=container.id)
            try:
                sizes[container.id] = self._parts.containerd.snapshots.Usage(request).size
            except errors.NotFound:
                sizes[container.id] = 0
        return sizes

    def commit(self, reference: str, asked: Commit) -> str:
        """Make an image of it; returns the image's id. See :meth:`Committing.commit`."""
        return self._committing.commit(self._registry.find(reference), asked)

    def path_status(self, reference: str, path: str) -> PathStatus:
        """What is at a path of it. Raises NotFound."""
        return self._archives.status(self._registry.find(reference), reference, path)

    def read_archive(self, reference: str, path: str) -> tuple[PathStatus, Iterator[bytes]]:
        """A tar archive of what is at a path of it, to be closed. Raises NotFound."""
        return self._archives.read(self._registry.find(reference), reference, path)

    def write_archive(
        self, reference: str, path: str, archive: IO[bytes], *, copy_owner: bool, keep_kinds: bool
    ) -> None:
        """Extract a tar archive into a directory of it. See :meth:`Archives.write`."""
        handle = self._registry.find(reference)
        self._archives.write(handle, reference, path, archive, copy_owner=copy_owner, keep_kinds=keep_kinds)

    def export(self, reference: str) -> Iterator[bytes]:
        """A tar archive of its root file system, to be closed. Raises Conflict when it is being removed."""
        return self._archives.export(self._registry.find(reference))

    def changes(self, reference: str) -> list[Change]:
        """What it has changed in its root file system."""
        return self._archives.changes(self._registry.find(reference))

    def _image_uses(self) -> list[ImageUse]:
        """What the images need to know before one of them is removed."""
        containers = [handle.container for handle in self._registry.all()]
        return [ImageUse(entry.id, entry.image_id, entry.state.running) for entry in containers]

    def _end(self, handle: Handle) -> None:
        """Make the container's process end, for a removal by force."""
        status = handle.container.state.status
        if status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING):
            try:
                self._lifecycle.kill(handle)
            except (errors.Conflict, errors.NotFound):
                return

    def _discard(self, handle: Handle) -> None:
        """Remove a container that was to live for one run only (``--rm``). The caller holds it."""
        try:
            self._removal.remove(handle, volumes=True)
        except errors.EngineError as error:
            _log.warning("container %s: cannot remove it: %s", handle.id[:12], error)
        self._exec_forget(handle.id)

    def _on_event(self, event: Message) -> None:
        if isinstance(event, task_events.TaskExit):
            self._on_exit_event(event)
            return
        handle = self._registry.get(getattr(event, "container_id", ""))
        if handle is None:
            return
        if isinstance(event, task_events.TaskOOM):
            self._in_background(handle, lambda: self._out_of_memory(handle))
        elif isinstance(event, task_events.TaskPaused):
            self._in_background(handle, lambda: self._paused(handle, Status.RUNNING, Status.PAUSED))
        elif isinstance(event, task_events.TaskResumed):
            self._in_background(handle, lambda: self._paused(handle, Status.PAUSED, Status.RUNNING))

    def _on_exit_event(self, event: task_events.TaskExit) -> None:
        if event.id != event.container_id:
            self._parts.in_background(partial(self._exec_exited, event))
            return
        handle = self._registry.get(event.container_id)
        if handle is not None:
            finished_at = timestamps.from_protobuf(event.exited_at)
            self._in_background(handle, lambda: self._exits.handle(handle, event.pid, event.exit_status, finished_at))

    def in_background(self, action: Callable[[], None]) -> None:
        """Run ``action`` in a thread of the pool."""
        self._parts.in_background(action)

    def _in_background(self, handle: Handle, action: Callable[[], None]) -> None:
        self._parts.in_background(partial(handle.submit, action))

    def _out_of_memory(self, handle: Handle) -> None:
        self._parts.change(handle, oom_killed=True)
        self._parts.publish(handle.container, "oom")

    def _paused(self, handle: Handle, before: Status, after: Status) -> None:
        # Somebody paused it below the engine; what the engine itself did is known already.
        if handle.container.state.status is before:
            container = self._parts.change(handle, status=after)
            self._parts.publish(container, "pause" if after is Status.PAUSED else "unpause")

    def _on_connected(self) -> None:
        if self._adopted.is_set():
            self._parts.in_background(self._reconciler.resynchronize)


def _updated(container: Container, body: Mapping[str, Any]) -> tuple[HostConfig, list[str]]:
    prefix = f"Cannot update container {container.id}: "
    try:
        new, warnings = updated(container.host_config, body, host.current())
    except errors.Conflict as error:
        raise errors.Conflict(f"{prefix}{error}") from error
    if container.host_config.auto_remove and new.restart_policy.name not in ("", "no"):
        raise errors.Conflict(
            f"{prefix}Restart policy cannot be updated because AutoRemove is enabled for the container"
        )
    validation.check_restart_policy(new.restart_policy, new.auto_remove)
    return new, warnings
