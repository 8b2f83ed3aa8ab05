"""Further processes in running containers: ``docker exec``.

An exec lives in the engine's memory: its record is of use only as long as its container runs. It goes five minutes
after its end, or with its container's removal.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import any_pb2

from dockerd import errors
from dockerd.containers import capabilities, spec, users, validation
from dockerd.containers.model import Container, Status
from dockerd.containers.rootfs import read_file
from dockerd.containers.starting import exit_code_of_failure
from dockerd.containers.wire import from_wire
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2
from gantry.contracts.containerd.v1.types import task_pb2

if TYPE_CHECKING:
    from dockerd.containerd_client import Client
    from dockerd.containers.service import ContainerService
    from dockerd.events import EventLog
    from dockerd.stdio import StreamService
    from gantry.contracts.containerd.events import task_pb2 as task_events

__all__ = ["PROCESS_TYPE_URL", "Exec", "ExecRequest", "ExecService"]

PROCESS_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"

_KEPT_AFTER_END = 300.0
_START_TIMEOUT = 10.0

_log = logging.getLogger(__name__)


def _wire_name(field: str) -> str:
    return "".join(part.capitalize() for part in field.split("_"))


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, rename=_wire_name):
    """The body of ``POST /containers/{id}/exec``."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None
    attach_stdin: bool = False
    attach_stderr: bool = False
    attach_stdout: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: list[str] | None = None


@dataclass(frozen=True)
class Exec:
    """One exec as it is at this moment. ``exit_code`` is None before its end; ``ended_at`` is monotonic seconds."""

    id: str
    container_id: str
    request: ExecRequest
    running: bool = False
    starting: bool = False
    exit_code: int | None = None
    pid: int = 0
    ended_at: float = 0.0
    failed: bool = False

    @property
    def command(self) -> list[str]:
        """What is run."""
        return self.request.cmd or []


class ExecService:
    """The execs of all containers."""

    def __init__(
        self, containers: ContainerService, containerd: Client, events: EventLog, streams: StreamService
    ) -> None:
        self._containers = containers
        self._containerd = containerd
        self._events = events
        self._streams = streams
        self._lock = threading.Lock()
        self._execs: dict[str, Exec] = {}
        self._settled: dict[str, threading.Event] = {}  # of those that are being started
        self._watchers: dict[str, Callable[[int], None]] = {}
        containers.watch_execs(self.exited, self._container_removed)

    def create(self, reference: str, body: Mapping[str, Any]) -> Exec:
        """Prepare an exec in a running container. Raises NotFound, Conflict when it does not run, InvalidParameter."""
        plain = {key.lower(): value for key, value in body.items()}
        if isinstance(plain.get("cmd"), str):
            plain["cmd"] = [plain["cmd"]]
        request = from_wire(plain, ExecRequest)
        if not request.cmd:
            raise errors.InvalidParameter("No exec command specified")
        container = self._running(reference)
        self._purge()
        made = Exec(id=secrets.token_hex(32), container_id=container.id, request=request)
        with self._lock:
            self._execs[made.id] = made
        self._publish(container, f"exec_create: {_words(made)}", made)
        return made

    def get(self, exec_id: str) -> Exec:
        """The exec, with what containerd knows of its end if that was not told yet. Raises NotFound."""
        # The client may read the end of the output before Tasks.Start has answered here.
        settled = self._settled.get(exec_id)
        if settled is not None:
            settled.wait(_START_TIMEOUT)
        found = self._find(exec_id)
        if not found.running:
            return found
        try:
            reply = self._containerd.tasks.Get(
                tasks_pb2.GetRequest(container_id=found.container_id, exec_id=exec_id), timeout=5
            )
        except errors.EngineError:  # it has just been deleted: its end is known by now
            return self._find(exec_id)
        if reply.process.status == task_pb2.STOPPED:
            return replace(found, running=False, exit_code=reply.process.exit_status)
        return self._find(exec_id)

    def ids(self, container_id: str) -> list[str]:
        """Ids of the execs that run in a container."""
        with self._lock:
            return [entry.id for entry in self._execs.values() if entry.container_id == container_id and entry.running]

    def prepare(self, exec_id: str, *, console_size: Sequence[int] | None = None) -> Container:
        """Make the exec known to containerd, so that its streams can be attached before it starts.

        Raises NotFound, Conflict when it has run or its container does not run, InvalidParameter for a user that is not
        there; else :meth:`start` has to follow.
        """
        with self._lock:
            found = self._find(exec_id)
            if found.running or found.starting:
                raise errors.Conflict(f"exec command {exec_id} is already running")
            if found.exit_code is not None:
                raise errors.Conflict(f"exec command {exec_id} has already run")
            found = self._execs[exec_id] = replace(found, starting=True)
            self._settled[exec_id] = threading.Event()
        try:
            container = self._running(found.container_id)
            self._publish(container, f"exec_start: {_words(found)}", found)
            self._prepare(found, container, console_size)
        except errors.EngineError as error:
            self._failed(found, error)
            raise
        return container

    def start(self, exec_id: str) -> None:
        """Run a prepared exec.

        Raises InvalidParameter when its command cannot be run, with runc's reason; then :meth:`clean` has to follow.
        """
        found = self._find(exec_id)
        try:
            container = self._containers.get(found.container_id)
            self._streams.before_start(container, exec_id)
            reply = self._containerd.tasks.Start(tasks_pb2.StartRequest(container_id=container.id, exec_id=exec_id))
        except errors.EngineError as error:
            raise self._failed(found, error) from error
        with self._lock:
            now = self._execs.get(exec_id)
            # The news of its end may have been quicker.
            if now is not None and now.exit_code is None:
                self._execs[exec_id] = replace(now, running=True, starting=False, pid=reply.pid)
        self._settle(exec_id)

    def clean(self, exec_id: str) -> None:
        """Delete at containerd an exec that did not start, once its client knows why. Others are left alone."""
        found = self._find(exec_id)
        if found.failed or found.starting:
            self._delete(found)
            self._settle(exec_id)

    def resize(self, exec_id: str, height: int, width: int) -> None:
        """Set the size of its terminal. Raises NotFound, Conflict when it does not run."""
        found = self._find(exec_id)
        if not found.running and not found.starting:
            raise errors.Conflict(f"exec command {exec_id} is not running")
        request = tasks_pb2.ResizePtyRequest(
            container_id=found.container_id, exec_id=exec_id, width=width, height=height
        )
        self._containerd.tasks.ResizePty(request)

    def exited(self, event: task_events.TaskExit) -> None:
        """The news that an exec has ended. May block: not for the thread that brings the news."""
        with self._lock:
            found = self._execs.get(event.id)
            if found is not None:
                found = self._execs[event.id] = replace(
                    found,
                    running=False,
                    starting=False,
                    exit_code=event.exit_status,
                    pid=found.pid or event.pid,
                    ended_at=time.monotonic(),
                )
        request = tasks_pb2.DeleteProcessRequest(container_id=event.container_id, exec_id=event.id)
        try:
            self._containerd.tasks.DeleteProcess(request)
        except errors.EngineError as error:
            _log.debug("exec %s: it is gone with its container: %s", event.id[:12], error)
        self._streams.after_exit(event.container_id, event.id)
        if found is not None:
            container = self._containers.find(event.container_id)
            if container is not None:
                self._publish(container, "exec_die", found, {"exitCode": str(event.exit_status)})
        watcher = self._watchers.pop(event.id, None)
        if watcher is not None:
            watcher(event.exit_status)

    def on_end(self, exec_id: str, callback: Callable[[int], None]) -> None:
        """Tell ``callback`` the exit code of an exec that was not started yet."""
        self._watchers[exec_id] = callback

    def _settle(self, exec_id: str) -> None:
        with self._lock:
            settled = self._settled.pop(exec_id, None)
        if settled is not None:
            settled.set()

    def _container_removed(self, container_id: str) -> None:
        with self._lock:
            for entry in [entry for entry in self._execs.values() if entry.container_id == container_id]:
                del self._execs[entry.id]
                self._watchers.pop(entry.id, None)

    def _find(self, exec_id: str) -> Exec:
        found = self._execs.get(exec_id)
        if found is None:
            raise errors.NotFound(f"No such exec instance: {exec_id}")
        return found

    def _running(self, reference: str) -> Container:
        container = self._containers.get(reference)
        if container.state.status is Status.PAUSED:
            raise errors.Conflict(f"Container {reference} is paused, unpause the container before exec")
        if container.state.status is Status.RESTARTING:
            raise errors.Conflict(f"Container {reference} is restarting, wait until the container is running")
        if not container.state.running:
            raise errors.Conflict(f"container {container.id} is not running")
        return container

    def _purge(self) -> None:
        limit = time.monotonic() - _KEPT_AFTER_END
        with self._lock:
            for entry in [entry for entry in self._execs.values() if entry.ended_at and entry.ended_at < limit]:
                del self._execs[entry.id]

    def _prepare(self, found: Exec, container: Container, console_size: Sequence[int] | None) -> None:
        process = _process(found, container, console_size)
        streams = self._streams.uris(container, found.id, stdin=found.request.attach_stdin, terminal=found.request.tty)
        self._containerd.tasks.Exec(
            tasks_pb2.ExecProcessRequest(
                container_id=container.id,
                exec_id=found.id,
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
                terminal=streams.terminal,
                spec=any_pb2.Any(type_url=PROCESS_TYPE_URL, value=json.dumps(process).encode()),
            )
        )

    def _delete(self, found: Exec) -> None:
        request = tasks_pb2.DeleteProcessRequest(container_id=found.container_id, exec_id=found.id)
        try:
            self._containerd.tasks.DeleteProcess(request)
        except errors.EngineError as error:
            _log.debug("exec %s: nothing to delete: %s", found.id[:12], error)
        self._streams.after_exit(found.container_id, found.id)

    def _failed(self, found: Exec, error: errors.EngineError) -> errors.EngineError:
        """Record why it could not be run; returns the error as clients read it."""
        code = exit_code_of_failure(f"task for container: {error}")
        self._watchers.pop(found.id, None)
        with self._lock:
            if found.id in self._execs:
                self._execs[found.id] = replace(
                    found, starting=False, exit_code=code, ended_at=time.monotonic(), failed=True
                )
        self._settle(found.id)
        return errors.InvalidParameter(str(error)) if code in (126, 127) else error

    def _publish(self, container: Container, action: str, entry: Exec, extra: Mapping[str, str] | None = None) -> None:
        self._containers.publish(container, action, {"execID": entry.id, **(extra or {})})


def _words(entry: Exec) -> str:
    return " ".join([entry.command[0], " ".join(entry.command[1:])])


def _process(entry: Exec, container: Container, console_size: Sequence[int] | None) -> dict[str, Any]:
    """``process`` of the runtime specification for an exec in a running container."""
    request, host_config = entry.request, container.host_config
    identity = _identity(container, request.user)
    granted = capabilities.effective(
        capabilities.normalize(host_config.cap_add, "CapAdd"),
        capabilities.normalize(host_config.cap_drop, "CapDrop"),
        privileged=host_config.privileged or request.privileged,
    )
    process: dict[str, Any] = {
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.additional_gids)},
        "args": entry.command,
        "env": spec.environment(container, request.env or (), tty=request.tty),
        "cwd": request.working_dir or container.config.working_dir or "/",
        "capabilities": spec.process_capabilities(granted),
        "oomScoreAdj": host_config.oom_score_adj,
    }
    if request.tty:
        process["terminal"] = True
        height, width = console_size or request.console_size or (0, 0)
        if height and width:
            process["consoleSize"] = {"height": height, "width": width}
    if validation.security_options(host_config).get("no-new-privileges") == "true":
        process["noNewPrivileges"] = True
    return process


def _identity(container: Container, user: str) -> users.Identity:
    """Who the process is by the files that the container has now."""
    groups = container.host_config.group_add or ()
    wanted = user or container.config.user
    try:
        root = os.open(f"/proc/{container.state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.Conflict(f"container {container.id} is not running") from error
    try:
        return users.resolve(wanted, groups, read_file(root, "etc/passwd"), read_file(root, "etc/group"))
    finally:
        os.close(root)
