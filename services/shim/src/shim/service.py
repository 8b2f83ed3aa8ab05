"""The task API (`containerd.task.v2.Task` and `v3.Task`): wire messages in, the domain called, wire messages out.

Both versions have the same messages field by field, so one set of handlers, written with v3's, serves both.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message

from gantry.contracts.containerd.events import task_pb2 as events_pb2
from gantry.contracts.containerd.runc.v1 import oci_pb2
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.contracts.containerd.v1.types import task_pb2
from gantry.ttrpc.errors import TTRPCError
from gantry.ttrpc.server import Call, Deferred
from shim import __version__, metrics, options
from shim.container import Container, CreateRequest, Shared, timestamp
from shim.errors import AlreadyExists, InvalidArgument, NotFound, NotImplementedByShim, ShimError
from shim.loop import Future
from shim.oom import OOMWatcher
from shim.process import Parked, State, drop
from shim.rootfs import Mount
from shim.streams.config import StdioConfig

_log = logging.getLogger(__name__)
_EMPTY: Final = empty_pb2.Empty()
_STATUS: Final = {
    State.CREATED: task_pb2.CREATED,
    State.RUNNING: task_pb2.RUNNING,
    State.PAUSED: task_pb2.PAUSED,
    State.STOPPED: task_pb2.STOPPED,
}


class TaskService:
    """Serves the containers of this shim. `on_shutdown` is called when the last one is gone and Shutdown was asked."""

    def __init__(self, shared: Shared, parked: dict[str, list[Parked]], on_shutdown: Callable[[], None]) -> None:
        self._shared = shared
        self._parked = parked
        self._on_shutdown = on_shutdown
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._exec_specs: dict[tuple[str, str], bytes] = {}
        self._oom = OOMWatcher(
            shared.loop, lambda container: shared.publish(events_pb2.TaskOOM(container_id=container))
        )

    def _answer(self, coroutine: Coroutine[Future[Any], None, Message]) -> Deferred:
        answer = Deferred()

        def done(task: Future[Message]) -> None:
            try:
                answer.resolve(task.result())
            except ShimError as error:
                answer.fail(TTRPCError(error.code, str(error)))
            except Exception as error:
                _log.exception("a call failed")
                answer.fail(TTRPCError(ShimError.code, f"{type(error).__name__}: {error}"))

        task = self._shared.loop.spawn(coroutine)
        if task.done:
            done(task)
        else:
            task.add_callback(done)
        return answer

    def _container(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound("container not created: not found") from None

    # The methods have the names of the service's descriptor.

    def Create(self, request: shim_pb2.CreateTaskRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._create(request))

    async def _create(self, request: shim_pb2.CreateTaskRequest) -> Message:
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExists(f"container {request.id}: already exists")
        parked = self._parked.pop(request.id, [])
        self._creating.add(request.id)
        try:
            container = self._new_container(request)
            taken, parked = parked, []
            await container.create(taken)
        finally:
            self._creating.discard(request.id)
            for client in parked:
                drop(client)
        self._containers[request.id] = container
        return shim_pb2.CreateTaskResponse(pid=container.init.pid)

    def _new_container(self, request: shim_pb2.CreateTaskRequest) -> Container:
        if request.checkpoint:
            raise NotImplementedByShim("checkpoint: restoring from a checkpoint is not supported by this shim")
        return Container(
            self._shared,
            CreateRequest(
                request.id,
                request.bundle,
                StdioConfig(request.stdin, request.stdout, request.stderr, request.terminal),
                tuple(Mount(m.type, m.source, tuple(m.options), m.target) for m in request.rootfs),
                options.from_any(request.options),
            ),
        )

    def Start(self, request: shim_pb2.StartRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._start(request))

    async def _start(self, request: shim_pb2.StartRequest) -> Message:
        container = self._container(request.id)
        if request.exec_id:
            container.process(request.exec_id)
            spec = self._exec_specs[request.id, request.exec_id]
            return shim_pb2.StartResponse(pid=await container.start_exec(request.exec_id, spec))
        if container.cgroup is not None:
            self._oom.add(container.id, container.cgroup)
        return shim_pb2.StartResponse(pid=await container.start())

    def Exec(self, request: shim_pb2.ExecProcessRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._exec(request))

    async def _exec(self, request: shim_pb2.ExecProcessRequest) -> Message:
        container = self._container(request.id)
        config = StdioConfig(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = exec_spec(request.spec.value, request.terminal)
        container.add_exec(request.exec_id, config)
        self._exec_specs[request.id, request.exec_id] = spec
        return _EMPTY

    def Delete(self, request: shim_pb2.DeleteRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._delete(request))

    async def _delete(self, request: shim_pb2.DeleteRequest) -> Message:
        container = self._container(request.id)
        if request.exec_id:
            ended = await container.delete_exec(request.exec_id)
            self._exec_specs.pop((request.id, request.exec_id), None)
        else:
            self._oom.remove(container.id)
            ended = await container.delete()
            self._containers.pop(request.id, None)
            self._exec_specs = {key: spec for key, spec in self._exec_specs.items() if key[0] != request.id}
        return shim_pb2.DeleteResponse(pid=ended.pid, exit_status=ended.status, exited_at=timestamp(ended.at))

    def State(self, request: shim_pb2.StateRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._state(request))

    async def _state(self, request: shim_pb2.StateRequest) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        state = process.state
        if container.init.state is State.PAUSED and state is State.RUNNING:
            state = State.PAUSED
        response = shim_pb2.StateResponse(
            id=process.id,
            bundle=container.bundle,
            pid=process.pid,
            status=_STATUS[state],
            stdin=process.config.stdin,
            stdout=process.config.stdout,
            stderr=process.config.stderr,
            terminal=process.config.terminal,
        )
        if process.exit is not None and state is State.STOPPED:
            response.exit_status = process.exit.status
            response.exited_at.CopyFrom(timestamp(process.exit.at))
        return response

    def Pids(self, request: shim_pb2.PidsRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._pids(request))

    async def _pids(self, request: shim_pb2.PidsRequest) -> Message:
        container = self._container(request.id)
        pids = await container.runtime.pids(container.id)
        execs = {process.pid: process.id for process in container.execs.values()}
        response = shim_pb2.PidsResponse()
        for pid in pids:
            entry = response.processes.add(pid=pid)
            if pid in execs:
                details = oci_pb2.ProcessDetails(exec_id=execs[pid])
                entry.info.CopyFrom(_any(details))
        return response

    def Pause(self, request: shim_pb2.PauseRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._then_empty(lambda: self._container(request.id).pause()))

    def Resume(self, request: shim_pb2.ResumeRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._then_empty(lambda: self._container(request.id).resume()))

    def Update(self, request: shim_pb2.UpdateTaskRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._then_empty(lambda: self._container(request.id).update(request.resources.value)))

    def Kill(self, request: shim_pb2.KillRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(
            self._then_empty(lambda: self._container(request.id).kill(request.exec_id, request.signal, request.all))
        )

    async def _then_empty(self, call: Callable[[], Coroutine[Future[Any], None, None]]) -> Message:
        await call()
        return _EMPTY

    def ResizePty(self, request: shim_pb2.ResizePtyRequest, _call: Call) -> Message:  # noqa: N802
        return self._now(
            lambda: self._container(request.id).process(request.exec_id).resize(request.width, request.height)
        )

    def CloseIO(self, request: shim_pb2.CloseIORequest, _call: Call) -> Message:  # noqa: N802
        return self._now(lambda: self._container(request.id).process(request.exec_id).streams.hub.close_input())

    def _now(self, call: Callable[[], object]) -> Message:
        try:
            call()
        except ShimError as error:
            raise TTRPCError(error.code, str(error)) from None
        return _EMPTY

    def Checkpoint(self, _request: shim_pb2.CheckpointTaskRequest, _call: Call) -> Message:  # noqa: N802
        error = NotImplementedByShim("checkpoint is not supported by this shim")
        raise TTRPCError(error.code, str(error))

    def Wait(self, request: shim_pb2.WaitRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._wait(request))

    async def _wait(self, request: shim_pb2.WaitRequest) -> Message:
        ended = await self._container(request.id).process(request.exec_id).ended
        return shim_pb2.WaitResponse(exit_status=ended.status, exited_at=timestamp(ended.at))

    def Stats(self, request: shim_pb2.StatsRequest, _call: Call) -> Deferred:  # noqa: N802
        return self._answer(self._stats(request))

    async def _stats(self, request: shim_pb2.StatsRequest) -> Message:
        container = self._container(request.id)
        if container.cgroup is None:
            raise NotFound("cgroup does not exist: not found")
        return shim_pb2.StatsResponse(stats=_any(metrics.read(container.cgroup)))

    def Connect(self, request: shim_pb2.ConnectRequest, _call: Call) -> Message:  # noqa: N802
        container = self._containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return shim_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=__version__)

    def Shutdown(self, _request: shim_pb2.ShutdownRequest, _call: Call) -> Message:  # noqa: N802
        if not self._containers and not self._creating:
            self._on_shutdown()
        return _EMPTY


def exec_spec(spec: bytes, terminal: bool) -> bytes:
    """The process object of an Exec with its terminal flag set as the request says. InvalidArgument if it is none."""
    try:
        process = json.loads(spec)
    except ValueError as error:
        raise InvalidArgument(f"process spec is not JSON: {error}") from None
    if not isinstance(process, dict):
        raise InvalidArgument("process spec is not a JSON object")
    process["terminal"] = terminal
    return json.dumps(process).encode()


def _any(message: Message) -> any_pb2.Any:
    """Packed under its bare name, as containerd's typeurl does."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
