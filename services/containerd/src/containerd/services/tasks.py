"""containerd.services.tasks.v1.Tasks"""

# ruff: noqa: ARG002, N802 (names and arguments are the contract's)

from __future__ import annotations

import time
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from containerd.errors import InvalidArgument, Unimplemented
from containerd.namespaces import namespace_required
from containerd.runtime.bootstrap import Exit
from containerd.services.wire import any_message, any_value, timestamp
from containerd.tasks import Mount, ProcessIO, ProcessState
from containerd.tasks import Tasks as TaskDomain
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2 as messages
from gantry.contracts.containerd.services.tasks.v1 import tasks_pb2_grpc as service
from gantry.contracts.containerd.types import metrics_pb2
from gantry.contracts.containerd.v1.types import task_pb2

__all__ = ["Tasks"]

_Context = grpc.aio.ServicerContext[Any, Any]


def _process(state: ProcessState) -> task_pb2.Process:
    return task_pb2.Process(
        container_id=state.container_id,
        id=state.id,
        pid=state.pid,
        status=state.status,  # type: ignore[arg-type]
        stdin=state.io.stdin,
        stdout=state.io.stdout,
        stderr=state.io.stderr,
        terminal=state.io.terminal,
        exit_status=state.exit_status,
        exited_at=timestamp(state.exited_at),
    )


def _deleted(exit_: Exit, process: str = "") -> messages.DeleteResponse:
    return messages.DeleteResponse(
        id=process, pid=exit_.pid, exit_status=exit_.status, exited_at=timestamp(exit_.exited_at)
    )


class Tasks(service.TasksServicer):
    """Serves :class:`containerd.tasks.Tasks`. What is left of the caller's deadline goes with each call."""

    def __init__(self, tasks: TaskDomain) -> None:
        self._tasks = tasks

    async def Create(self, request: messages.CreateTaskRequest, context: _Context) -> messages.CreateTaskResponse:
        if request.HasField("checkpoint"):
            raise Unimplemented("checkpoint: restoring from a checkpoint is not supported: not implemented")
        pid = await self._tasks.create(
            namespace_required(),
            request.container_id,
            [Mount(m.type, m.source, m.target, tuple(m.options)) for m in request.rootfs],
            ProcessIO(request.stdin, request.stdout, request.stderr, request.terminal),
            any_value(request.options),
            request.runtime_path,
            context.time_remaining(),
        )
        return messages.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: messages.StartRequest, context: _Context) -> messages.StartResponse:
        pid = await self._tasks.start(
            namespace_required(), request.container_id, request.exec_id, context.time_remaining()
        )
        return messages.StartResponse(pid=pid)

    async def Delete(self, request: messages.DeleteTaskRequest, context: _Context) -> messages.DeleteResponse:
        return _deleted(await self._tasks.delete(namespace_required(), request.container_id, context.time_remaining()))

    async def DeleteProcess(self, request: messages.DeleteProcessRequest, context: _Context) -> messages.DeleteResponse:
        if not request.exec_id:
            raise InvalidArgument("exec id cannot be empty")
        exit_ = await self._tasks.delete_process(
            namespace_required(), request.container_id, request.exec_id, context.time_remaining()
        )
        return _deleted(exit_, request.exec_id)

    async def Get(self, request: messages.GetRequest, context: _Context) -> messages.GetResponse:
        state = await self._tasks.get(
            namespace_required(), request.container_id, request.exec_id, context.time_remaining()
        )
        return messages.GetResponse(process=_process(state))

    async def List(self, request: messages.ListTasksRequest, context: _Context) -> messages.ListTasksResponse:
        states = await self._tasks.list(namespace_required())
        return messages.ListTasksResponse(tasks=[_process(state) for state in states])

    async def Kill(self, request: messages.KillRequest, context: _Context) -> Empty:
        await self._tasks.kill(
            namespace_required(),
            request.container_id,
            request.exec_id,
            request.signal,
            request.all,
            context.time_remaining(),
        )
        return Empty()

    async def Exec(self, request: messages.ExecProcessRequest, context: _Context) -> Empty:
        spec = any_value(request.spec)
        if spec is None:
            raise InvalidArgument("exec spec cannot be empty")
        await self._tasks.exec(
            namespace_required(),
            request.container_id,
            request.exec_id,
            spec,
            ProcessIO(request.stdin, request.stdout, request.stderr, request.terminal),
            context.time_remaining(),
        )
        return Empty()

    async def ResizePty(self, request: messages.ResizePtyRequest, context: _Context) -> Empty:
        await self._tasks.resize(
            namespace_required(),
            request.container_id,
            request.exec_id,
            request.width,
            request.height,
            context.time_remaining(),
        )
        return Empty()

    async def CloseIO(self, request: messages.CloseIORequest, context: _Context) -> Empty:
        if request.stdin:
            await self._tasks.close_stdin(
                namespace_required(), request.container_id, request.exec_id, context.time_remaining()
            )
        return Empty()

    async def Pause(self, request: messages.PauseTaskRequest, context: _Context) -> Empty:
        await self._tasks.pause(namespace_required(), request.container_id, context.time_remaining())
        return Empty()

    async def Resume(self, request: messages.ResumeTaskRequest, context: _Context) -> Empty:
        await self._tasks.resume(namespace_required(), request.container_id, context.time_remaining())
        return Empty()

    async def ListPids(self, request: messages.ListPidsRequest, context: _Context) -> messages.ListPidsResponse:
        found = await self._tasks.pids(namespace_required(), request.container_id, context.time_remaining())
        return messages.ListPidsResponse(
            processes=[task_pb2.ProcessInfo(pid=process.pid, info=any_message(process.info)) for process in found]
        )

    async def Checkpoint(
        self, request: messages.CheckpointTaskRequest, context: _Context
    ) -> messages.CheckpointTaskResponse:
        await self._tasks.checkpoint(namespace_required(), request.container_id)
        return messages.CheckpointTaskResponse()

    async def Update(self, request: messages.UpdateTaskRequest, context: _Context) -> Empty:
        await self._tasks.update(
            namespace_required(),
            request.container_id,
            any_value(request.resources),
            dict(request.annotations),
            context.time_remaining(),
        )
        return Empty()

    async def Metrics(self, request: messages.MetricsRequest, context: _Context) -> messages.MetricsResponse:
        found = await self._tasks.metrics(namespace_required(), list(request.filters), time.time_ns)
        return messages.MetricsResponse(
            metrics=[
                metrics_pb2.Metric(timestamp=timestamp(m.timestamp), id=m.id, data=any_message(m.data)) for m in found
            ]
        )

    async def Wait(self, request: messages.WaitRequest, context: _Context) -> messages.WaitResponse:
        exit_ = await self._tasks.wait(namespace_required(), request.container_id, request.exec_id)
        return messages.WaitResponse(exit_status=exit_.status, exited_at=timestamp(exit_.exited_at))
