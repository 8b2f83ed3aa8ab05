"""Tasks: the containers that run, and the processes in them.

A thin layer over the shims: what a task is, the shim knows; this knows which shim, and the words of the errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd import filters as filter_language
from containerd.anyvalue import AnyValue
from containerd.config import Config
from containerd.errors import (
    AlreadyExists,
    ContainerdError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from containerd.identifiers import validate_identifier
from containerd.metadata.containers import Container
from containerd.runtime.bootstrap import Exit
from containerd.runtime.options import PLUGIN, configured_options
from containerd.runtime.shim import Shim, ShimGone
from containerd.runtime.shims import Shims
from gantry.contracts.containerd.runc.v1 import oci_pb2
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.contracts.containerd.types import mount_pb2

__all__ = ["Metric", "Mount", "ProcessIO", "ProcessInfo", "ProcessState", "Tasks"]

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

STATUS_UNKNOWN = 0
_RUNC_OPTIONS = oci_pb2.Options.DESCRIPTOR.full_name


@dataclass(frozen=True)
class Mount:
    """A part of a container's root file system, as mount(8) would be told."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProcessIO:
    """Where the standard streams go: paths of FIFOs or URIs, empty for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True)
class ProcessState:
    """A process as its shim sees it. ``status`` is a number of containerd.v1.types.Status; times in nanoseconds."""

    container_id: str
    id: str
    pid: int = 0
    status: int = STATUS_UNKNOWN
    io: ProcessIO = ProcessIO()
    exit_status: int = 0
    exited_at: int = 0


@dataclass(frozen=True)
class ProcessInfo:
    """A process inside a container, and what the shim knows of it."""

    pid: int
    info: AnyValue | None


@dataclass(frozen=True)
class Metric:
    """A container's resource usage at ``timestamp`` (nanoseconds), in the shim's own type."""

    id: str
    timestamp: int
    data: AnyValue


class Tasks:
    """All tasks. ``container`` looks a container up and raises :class:`NotFound`; it is called in a thread.

    Raises :class:`~containerd.config.ConfigError` for options of a runtime that cannot be.

    In every method ``timeout`` is what is left of the caller's time in seconds, None when it waits as long as it takes.
    """

    def __init__(self, config: Config, shims: Shims, container: Callable[[str, str], Container]) -> None:
        self._config = config
        self._options = configured_options(config.plugin(PLUGIN))
        self._shims = shims
        self._container = container

    async def create(
        self,
        namespace: str,
        container_id: str,
        rootfs: Sequence[Mount],
        io: ProcessIO,
        options: AnyValue | None,
        runtime_path: str,
        timeout: float | None,
    ) -> int:
        """Start a shim for the container and create its init process, which does not run yet. Returns its pid.

        Raises :class:`NotFound`, :class:`AlreadyExists`, or what the runtime says; nothing is left behind then.
        """
        container = await asyncio.to_thread(self._container, namespace, container_id)
        _refuse_checkpoint(options)
        spec = container.spec.value if container.spec else b"{}"
        # Options that say nothing are none: the client library always sends the message.
        chosen = options if options is not None and options.value else container.runtime_options
        runtime = runtime_path or container.runtime
        if chosen is None or not chosen.value:
            chosen = self._options.get(container.runtime, chosen)
        try:
            shim = await self._shims.start(namespace, container_id, spec, runtime, chosen, fork=not _joins_a_pod(spec))
        except AlreadyExists:
            raise
        except (OSError, ContainerdError) as error:
            raise _prefixed("failed to start shim", error) from error
        request = shim_pb2.CreateTaskRequest(
            id=container_id,
            bundle=shim.bundle.path,
            rootfs=[mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in rootfs],
            terminal=io.terminal,
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            options=_any(chosen),
        )
        creating = asyncio.ensure_future(
            shim.call("Create", request, shim_pb2.CreateTaskResponse, self._limit(timeout))
        )
        try:
            response = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self._discard_created(shim, creating)))
            raise
        except BaseException as error:
            answered = isinstance(error, ContainerdError) and not isinstance(error, (ShimGone, DeadlineExceeded))
            await asyncio.shield(asyncio.ensure_future(self._shims.discard(shim, answered=answered)))
            if isinstance(error, ShimGone):
                raise Unavailable(f"failed to create shim task: {error}: unavailable") from error
            if isinstance(error, ContainerdError):
                raise _prefixed("failed to create shim task", error) from error
            raise
        return response.pid

    async def _discard_created(self, shim: Shim, creating: asyncio.Future[shim_pb2.CreateTaskResponse]) -> None:
        """The caller has gone: the shim does what it was asked for all the same, and can undo it only after that."""
        answered = True
        try:
            # As long as a shim has for it: one that does not answer is ended as it is.
            await asyncio.wait_for(creating, self._config.timeout("io.containerd.timeout.shim.shutdown"))
        except (TimeoutError, ShimGone, DeadlineExceeded):
            answered = False
        except ContainerdError:
            pass  # the shim has undone it
        await self._shims.discard(shim, answered=answered)

    async def start(self, namespace: str, container_id: str, exec_id: str, timeout: float | None) -> int:
        """Run a created process; returns its pid."""
        request = shim_pb2.StartRequest(id=container_id, exec_id=exec_id)
        response = await self._call(namespace, container_id, "Start", request, shim_pb2.StartResponse, timeout)
        return response.pid

    async def delete(self, namespace: str, container_id: str, timeout: float | None) -> Exit:
        """Remove a task that has ended, and its shim."""
        shim = await self._shim(namespace, container_id)
        request = shim_pb2.DeleteRequest(id=container_id)
        try:
            response = await shim.call("Delete", request, shim_pb2.DeleteResponse, self._limit(timeout))
        except ShimGone:
            raise NotFound(f"task {container_id} not found") from None
        except NotFound as error:
            self._shims.finish(shim)
            raise _prefixed("failed to delete task", error) from error
        except ContainerdError as error:
            raise _prefixed("failed to delete task", error) from error
        self._shims.finish(shim)
        return _exit(response)

    async def delete_process(self, namespace: str, container_id: str, exec_id: str, timeout: float | None) -> Exit:
        """Remove an exec that has ended."""
        request = shim_pb2.DeleteRequest(id=container_id, exec_id=exec_id)
        response = await self._call(namespace, container_id, "Delete", request, shim_pb2.DeleteResponse, timeout)
        return _exit(response)

    async def get(self, namespace: str, container_id: str, exec_id: str, timeout: float | None) -> ProcessState:
        """Return how a process is."""
        shim = await self._shim(namespace, container_id)
        return await self._state(shim, exec_id, timeout)

    async def list(self, namespace: str) -> list[ProcessState]:
        """Return all tasks. One whose shim does not answer in time is listed with an unknown status."""

        async def state(shim: Shim) -> ProcessState | None:
            try:
                return await self._state(shim, "", None)
            except DeadlineExceeded as error:
                _log.warning("%s", error, extra={"id": shim.id, "namespace": namespace})
                return ProcessState(shim.id, shim.id)
            except ContainerdError:
                return None  # deleted meanwhile

        states = await asyncio.gather(*(state(shim) for shim in self._shims.all(namespace)))
        return [found for found in states if found is not None]

    async def kill(
        self, namespace: str, container_id: str, exec_id: str, signal: int, everything: bool, timeout: float | None
    ) -> None:
        """Signal a process, or with ``everything`` all of the container's."""
        request = shim_pb2.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=everything)
        await self._call(namespace, container_id, "Kill", request, Empty, timeout)

    async def exec(
        self, namespace: str, container_id: str, exec_id: str, spec: AnyValue, io: ProcessIO, timeout: float | None
    ) -> None:
        """Add a process, which does not run yet. Raises :class:`InvalidArgument`, :class:`AlreadyExists`."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty")
        validate_identifier(exec_id, f"invalid exec id {exec_id}")
        request = shim_pb2.ExecProcessRequest(
            id=container_id,
            exec_id=exec_id,
            terminal=io.terminal,
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            spec=_any(spec),
        )
        await self._call(namespace, container_id, "Exec", request, Empty, timeout)

    async def resize(
        self, namespace: str, container_id: str, exec_id: str, width: int, height: int, timeout: float | None
    ) -> None:
        """Set the size of a process's terminal in characters."""
        request = shim_pb2.ResizePtyRequest(id=container_id, exec_id=exec_id, width=width, height=height)
        await self._call(namespace, container_id, "ResizePty", request, Empty, timeout)

    async def close_stdin(self, namespace: str, container_id: str, exec_id: str, timeout: float | None) -> None:
        """End a process's standard input."""
        request = shim_pb2.CloseIORequest(id=container_id, exec_id=exec_id, stdin=True)
        await self._call(namespace, container_id, "CloseIO", request, Empty, timeout)

    async def pause(self, namespace: str, container_id: str, timeout: float | None) -> None:
        """Freeze all processes of a container."""
        await self._call(namespace, container_id, "Pause", shim_pb2.PauseRequest(id=container_id), Empty, timeout)

    async def resume(self, namespace: str, container_id: str, timeout: float | None) -> None:
        """Let a frozen container go on."""
        await self._call(namespace, container_id, "Resume", shim_pb2.ResumeRequest(id=container_id), Empty, timeout)

    async def pids(self, namespace: str, container_id: str, timeout: float | None) -> Sequence[ProcessInfo]:
        """Return the processes in a container."""
        request = shim_pb2.PidsRequest(id=container_id)
        response = await self._call(namespace, container_id, "Pids", request, shim_pb2.PidsResponse, timeout)
        return [ProcessInfo(process.pid, _value(process.info)) for process in response.processes]

    async def update(
        self,
        namespace: str,
        container_id: str,
        resources: AnyValue | None,
        annotations: Mapping[str, str],
        timeout: float | None,
    ) -> None:
        """Change the limits of a running container; ``resources`` is the runtime-spec's ``linux.resources``."""
        request = shim_pb2.UpdateTaskRequest(id=container_id, resources=_any(resources), annotations=annotations)
        await self._call(namespace, container_id, "Update", request, Empty, timeout)

    async def checkpoint(self, namespace: str, container_id: str) -> None:
        """Refuse: raises :class:`Unimplemented`, or :class:`NotFound` for a task that is not there."""
        await self._shim(namespace, container_id)
        raise Unimplemented(f"checkpoint of task {container_id} is not supported: not implemented")

    async def metrics(self, namespace: str, filters: Iterable[str], now: Callable[[], int]) -> Sequence[Metric]:
        """Return the resource usage of the tasks that match (fields ``id``, ``namespace``); those that answer."""
        matcher = filter_language.parse(filters)
        chosen = [shim for shim in self._shims.all(namespace) if matcher.match(_task_field(shim))]

        found = await asyncio.gather(*(self._stats(shim, "io.containerd.timeout.task.state", now) for shim in chosen))
        return [metric for metric in found if metric is not None]

    async def all_metrics(self, now: Callable[[], int]) -> Sequence[tuple[str, Metric]]:
        """Return the resource usage of the tasks of all namespaces, each with its namespace; those that answer."""
        shims = self._shims.everywhere()
        limit = "io.containerd.timeout.metrics.shimstats"
        found = await asyncio.gather(*(self._stats(shim, limit, now) for shim in shims))
        return [(shim.namespace, metric) for shim, metric in zip(shims, found, strict=True) if metric is not None]

    async def _stats(self, shim: Shim, limit: str, now: Callable[[], int]) -> Metric | None:
        request = shim_pb2.StatsRequest(id=shim.id)
        try:
            response = await shim.call("Stats", request, shim_pb2.StatsResponse, self._config.timeout(limit))
        except ContainerdError as error:
            if not isinstance(error, NotFound):
                _log.warning("collecting metrics: %s", error, extra={"id": shim.id, "namespace": shim.namespace})
            return None
        data = _value(response.stats)
        return None if data is None else Metric(shim.id, now(), data)

    async def wait(self, namespace: str, container_id: str, exec_id: str) -> Exit:
        """Wait for the end of a process."""
        shim = await self._shim(namespace, container_id)
        return await shim.wait(exec_id)

    async def _shim(self, namespace: str, container_id: str) -> Shim:
        shim = self._shims.get(namespace, container_id)
        if shim is None:
            # Which of the two is missing makes a difference to the client.
            await asyncio.to_thread(self._container, namespace, container_id)
            raise NotFound(f"task {container_id} not found")
        return shim

    async def _call(
        self,
        namespace: str,
        container_id: str,
        method: str,
        request: Message,
        response_type: type[M],
        timeout: float | None,
    ) -> M:
        shim = await self._shim(namespace, container_id)
        return await shim.call(method, request, response_type, self._limit(timeout))

    async def _state(self, shim: Shim, exec_id: str, timeout: float | None) -> ProcessState:
        request = shim_pb2.StateRequest(id=shim.id, exec_id=exec_id)
        try:
            state = await shim.call("State", request, shim_pb2.StateResponse, self._state_timeout(timeout))
        except ShimGone:
            raise NotFound(f"task {shim.id} not found") from None
        return ProcessState(
            container_id=shim.id,
            id=exec_id or shim.id,
            pid=state.pid,
            status=state.status,
            io=ProcessIO(state.stdin, state.stdout, state.stderr, state.terminal),
            exit_status=state.exit_status,
            exited_at=_nanoseconds(state),
        )

    def _limit(self, timeout: float | None) -> float:
        limit = self._config.timeout("io.gantry.timeout.shim.call")
        return limit if timeout is None else min(limit, timeout)

    def _state_timeout(self, timeout: float | None) -> float:
        limit = self._config.timeout("io.containerd.timeout.task.state")
        return limit if timeout is None else min(limit, timeout)


def _prefixed(doing: str, error: Exception) -> ContainerdError:
    if isinstance(error, ContainerdError):
        return type(error)(f"{doing}: {error}")
    return Unavailable(f"{doing}: {error}: unavailable")


def _refuse_checkpoint(options: AnyValue | None) -> None:
    if options is None or options.type_url.rpartition("/")[2] != _RUNC_OPTIONS:
        return
    if oci_pb2.Options.FromString(options.value).criu_image_path:
        raise Unimplemented("criu_image_path: restoring from a checkpoint is not supported: not implemented")


def _joins_a_pod(spec: bytes) -> bool:
    """Tell whether the container belongs into the shim of a pod that runs: only the start command finds that one."""
    if b"io.kubernetes.cri.container-type" not in spec:
        return False
    try:
        annotations = json.loads(spec).get("annotations") or {}
        return bool(annotations.get("io.kubernetes.cri.container-type") == "container")
    except (ValueError, AttributeError):
        return False


def _task_field(shim: Shim) -> filter_language.Adaptor:
    fields = {"id": shim.id, "namespace": shim.namespace}
    return lambda path: fields.get(path[0])


def _any(value: AnyValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def _value(message: Any) -> AnyValue | None:
    return AnyValue(message.type_url, message.value) if message.type_url else None


def _nanoseconds(message: shim_pb2.StateResponse | shim_pb2.DeleteResponse) -> int:
    return max(message.exited_at.seconds * 1_000_000_000 + message.exited_at.nanos, 0)


def _exit(response: shim_pb2.DeleteResponse) -> Exit:
    return Exit(response.exit_status, _nanoseconds(response), response.pid)
