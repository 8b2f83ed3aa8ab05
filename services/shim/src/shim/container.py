"""One container: its root file system, its processes, and what happens to them.

Events are promises in a fixed order: create before start, start before exit, every exec's exit before the container's.
A process may end at any point of its launch; its exit is then held back until its start has been told.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gantry.contracts.containerd.events import task_pb2
from gantry.contracts.containerd.types import mount_pb2
from shim import cgroups, rootfs
from shim import options as runtime_options
from shim.attach import AttachServer
from shim.cgroups import Cgroup
from shim.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimeFailure, ShimError
from shim.launch import Launcher
from shim.loop import Future, Loop
from shim.options import Options
from shim.process import Parked, Process, State, drop
from shim.reaper import Exit, Reaper
from shim.rootfs import Mount
from shim.runtime import Runtime, read_pid_file
from shim.streams.build import Owner, ProcessStreams
from shim.streams.config import StdioConfig
from shim.streams.hub import Hub
from shim.streams.session import Session, SessionSpec

_log = logging.getLogger(__name__)
SIGKILL = 9
_FLUSH_WITHIN = 2.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What the containers of one shim have in common."""

    loop: Loop
    reaper: Reaper
    launcher: Launcher
    namespace: str
    publish: Callable[[Message], None]
    runtime_for: Callable[[Options, str], Runtime]
    lingering: set[Hub] = field(default_factory=set)

    def keep_until_flushed(self, hub: Hub) -> None:
        """Streams whose readers are behind outlive their container; the shim waits for them before it ends."""
        if not hub.flushed.done:
            self.lingering.add(hub)
            hub.flushed.add_callback(lambda _: self.lingering.discard(hub))


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What Create asks for."""

    id: str
    bundle: str
    config: StdioConfig
    rootfs: tuple[Mount, ...] = ()
    options: Options = field(default_factory=Options)


class Container:
    """From a successful `create` to `delete`."""

    def __init__(self, shared: Shared, request: CreateRequest) -> None:
        self._shared = shared
        self._request = request
        self._owner = Owner(
            request.id, shared.namespace, request.bundle, request.options.io_uid, request.options.io_gid
        )
        self.id = request.id
        self.bundle = request.bundle
        self._rootfs = os.path.join(request.bundle, "rootfs") if request.rootfs else ""
        self.runtime = shared.runtime_for(request.options, request.bundle)
        self.init = self._process(request.id, request.config)
        self.execs: dict[str, Process] = {}
        self.cgroup: Cgroup | None = None
        self._attach_server: AttachServer | None = None
        self._starting = False
        self._held_exit: Exit | None = None
        self._init_gone = False
        self._running_execs = 0
        self._no_execs: Future[None] | None = None

    def _process(self, process_id: str, config: StdioConfig) -> Process:
        streams = ProcessStreams(self._shared.loop, self._shared.launcher, config, self._owner)
        return Process(self._shared.loop, process_id, config, streams)

    # Create, start, exec

    async def create(self, parked: Sequence[Parked] = ()) -> None:
        """Mounts, makes the streams, and has the runtime make the container. On an error nothing is left."""
        taken = list(parked)
        try:
            runtime_options.save(self.bundle, self._request.options)
            if self._rootfs:
                rootfs.mount_all(self._request.rootfs, self._rootfs)
            self._open_attach_socket()
            while taken:
                self.init.attach(taken[0].descriptor, taken[0].spec)
                taken.pop(0)
            with self._shared.reaper.launching():
                self.init.pid = await self._launch(self.init, "pty", "init.pid", None)
                self.cgroup = cgroups.of_process(self.init.pid)
                self._shared.reaper.claim(self.init.pid, self._init_ended)
                self._publish_create()
        except Exception as error:
            for client in taken:
                drop(client)
            self._undo_create()
            if isinstance(error, OSError):
                raise ShimError(f"failed to create container: {error}") from error
            raise

    def _open_attach_socket(self) -> None:
        uri = self.init.streams.uri
        if uri is not None:
            try:
                self._attach_server = AttachServer(self._shared.loop, uri.socket, self)
            except OSError as error:
                raise ShimError(f"cannot listen at attach socket {uri.socket}: {error.strerror}") from error

    def _undo_create(self) -> None:
        self.init.fail(time.time_ns())
        self._close_attach_socket()
        if self._rootfs:
            try:
                rootfs.unmount_all(self._rootfs)
            except OSError as error:
                _log.warning("failed to clean up rootfs mount: %s", error)

    async def _launch(self, process: Process, console: str, pid_file: str, spec: bytes | None) -> int:
        """Runs the runtime's create, or its exec when there is a `spec`; gives the pid."""
        streams = process.streams
        path = os.path.join(self.bundle, pid_file)
        await streams.prepare(f".{console}.sock")
        socket = streams.console.name if streams.console is not None else ""
        try:
            if spec is None:
                await self._told(process, self.runtime.create(self.id, path, streams.child, socket))
            else:
                await self._told(process, self.runtime.exec(self.id, spec, path, streams.child, socket))
        finally:
            streams.launched()
        try:
            await streams.started()
            return read_pid_file(path)
        except Exception:
            await self._discard(path, whole=spec is None)
            raise

    async def _discard(self, pid_file: str, *, whole: bool) -> None:
        """The runtime did its part and ours failed: what it made must not stay."""
        try:
            if whole:
                await self.runtime.delete(self.id, force=True)
            else:
                os.kill(read_pid_file(pid_file), SIGKILL)
        except (OSError, ShimError) as error:
            _log.warning("what could not be started of %s cannot be removed: %s", self.id, error)

    async def _told(self, process: Process, call: Coroutine[Future[Any], None, None]) -> None:
        """Starts a call of the runtime; as soon as it runs, our copies of its descriptors go."""
        task = self._shared.loop.spawn(call)
        process.streams.launched()
        await task

    def _publish_create(self) -> None:
        config = self._request.config
        self._shared.publish(
            task_pb2.TaskCreate(
                container_id=self.id,
                bundle=self.bundle,
                rootfs=[
                    mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
                    for m in self._request.rootfs
                ],
                io=task_pb2.TaskIO(
                    stdin=config.stdin, stdout=config.stdout, stderr=config.stderr, terminal=config.terminal
                ),
                pid=self.init.pid,
            )
        )

    async def start(self) -> int:
        """Lets the init process go; gives its pid."""
        async with self.init.lock:
            self.init.require("start", State.CREATED)
            self._starting = True
            try:
                await self.runtime.start(self.id)
                self.init.state = State.RUNNING
                self._shared.publish(task_pb2.TaskStart(container_id=self.id, pid=self.init.pid))
            finally:
                self._starting = False
                held, self._held_exit = self._held_exit, None
                if held is not None:
                    self._shared.loop.call_soon(lambda: self._init_ended(held))
            return self.init.pid

    def add_exec(self, exec_id: str, config: StdioConfig) -> None:
        """Prepares one more process, which `start_exec` runs. Clients may attach to it from now on."""
        if self.init.state is State.PAUSED or self.init.state is State.STOPPED:
            raise FailedPrecondition(f"cannot exec in a {self.init.state.value} state")
        if not exec_id or "/" in exec_id or exec_id in (".", ".."):
            raise InvalidArgument(f"exec id {exec_id!r} cannot be a file's name")
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}: already exists")
        self.execs[exec_id] = self._process(exec_id, config)
        self._shared.publish(task_pb2.TaskExecAdded(container_id=self.id, exec_id=exec_id))

    async def start_exec(self, exec_id: str, spec: bytes) -> int:
        """Runs a process that was added; gives its pid."""
        process = self.process(exec_id)
        async with process.lock:
            process.require("start", State.CREATED)
            if self._init_gone:
                raise FailedPrecondition(f"container {self.id} init process is not running")
            self._running_execs += 1
            try:
                with self._shared.reaper.launching():
                    process.pid = await self._launch(process, f"pty-{exec_id[:64]}", f"{exec_id}.pid", spec)
                    self._shared.reaper.claim(process.pid, lambda ended: self._exec_ended(process, ended))
                    process.state = State.RUNNING
                    self._shared.publish(
                        task_pb2.TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=process.pid)
                    )
            except Exception as error:
                self._exec_gone()
                process.not_started(time.time_ns())
                if isinstance(error, OSError):
                    raise ShimError(f"failed to start exec {exec_id}: {error}") from error
                raise
            return process.pid

    # Exits

    def _init_ended(self, ended: Exit) -> None:
        if self._starting:
            self._held_exit = ended
            return
        self._shared.loop.background(self._finish_init(ended), f"exit of {self.id}")

    async def _finish_init(self, ended: Exit) -> None:
        self._init_gone = True
        if self._shares_pid_namespace():
            try:
                await self.runtime.kill(self.id, SIGKILL, True)
            except (NotFound, RuntimeFailure) as error:
                _log.info("killing what is left of %s: %s", self.id, error)
        if self._running_execs:
            self._no_execs = self._shared.loop.future()
            await self._no_execs
        await self.init.finish(ended)
        self._shared.keep_until_flushed(self.init.streams.hub)
        self._publish_exit(self.init, ended)

    def _exec_ended(self, process: Process, ended: Exit) -> None:
        self._shared.loop.background(self._finish_exec(process, ended), f"exit of {process.id}")

    async def _finish_exec(self, process: Process, ended: Exit) -> None:
        await process.finish(ended)
        self._shared.keep_until_flushed(process.streams.hub)
        self._publish_exit(process, ended)
        self._exec_gone()

    def _exec_gone(self) -> None:
        self._running_execs -= 1
        if not self._running_execs and self._no_execs is not None:
            self._no_execs.set_result(None)

    def _publish_exit(self, process: Process, ended: Exit) -> None:
        self._shared.publish(
            task_pb2.TaskExit(
                container_id=self.id,
                id=process.id,
                pid=ended.pid,
                exit_status=ended.status,
                exited_at=timestamp(ended.at),
            )
        )

    def _shares_pid_namespace(self) -> bool:
        """Whether other processes may outlive the init process; so they do not where it had a namespace made for it."""
        try:
            with open(os.path.join(self.bundle, "config.json"), "rb") as file:
                namespaces = json.load(file).get("linux", {}).get("namespaces") or []
            return not any(ns.get("type") == "pid" and not ns.get("path") for ns in namespaces)
        except (OSError, ValueError, AttributeError) as error:
            _log.error("config.json of %s cannot be read: %s", self.id, error)
            return True

    # What is done to a running container

    def process(self, exec_id: str) -> Process:
        """The init process for an empty id, else the exec's. NotFound when there is none."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}: not found") from None

    async def kill(self, exec_id: str, signal: int, everything: bool) -> None:
        """Signals one process, or all of the container."""
        process = self.process(exec_id)
        if process is not self.init:
            process.signal(signal)
            return
        async with self.init.lock:
            await self.runtime.kill(self.id, signal, everything)

    async def pause(self) -> None:
        """Freezes the container."""
        async with self.init.lock:
            self._require_for("pause", State.RUNNING)
            await self.runtime.pause(self.id)
            self.init.state = State.PAUSED
            self._shared.publish(task_pb2.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        """Thaws the container."""
        async with self.init.lock:
            self._require_for("resume", State.PAUSED)
            await self.runtime.resume(self.id)
            if self.init.state is State.PAUSED:
                self.init.state = State.RUNNING
            self._shared.publish(task_pb2.TaskResumed(container_id=self.id))

    async def update(self, resources: bytes) -> None:
        """Sets resource limits."""
        async with self.init.lock:
            self._require_for("update", State.CREATED, State.RUNNING, State.PAUSED)
            await self.runtime.update(self.id, resources)

    def _require_for(self, doing: str, *allowed: State) -> None:
        state = self.init.state
        if state not in allowed:
            what = {State.CREATED: "task in created state", State.RUNNING: "a running process"}.get(
                state, f"a {state.value} container"
            )
            raise FailedPrecondition(f"cannot {doing} {what}")

    # Attached clients

    def attach(self, descriptor: int, spec: SessionSpec) -> None:
        """Takes over a client's connection. On an error it is still the sender's."""
        if any(session.spec.id == spec.id for session in self.sessions()):
            raise AlreadyExists(f"session {spec.id} is attached already")
        self.process(spec.exec_id).attach(descriptor, spec)

    def sessions(self) -> Iterable[Session]:
        """All attached clients."""
        return [session for process in (self.init, *self.execs.values()) for session in process.sessions()]

    def _close_attach_socket(self) -> None:
        if self._attach_server is not None:
            self._attach_server.close()
            self._attach_server = None

    # The end

    async def delete(self) -> Exit:
        """Removes the container; gives its exit (all zero when it was never started)."""
        async with self.init.lock:
            self.init.require("delete", State.CREATED, State.STOPPED)
            if self.init.state is State.STOPPED:
                await self._shared.loop.within(self.init.streams.hub.flushed, _FLUSH_WITHIN)
            await self.runtime.delete(self.id)
            if self.init.state is State.CREATED:
                await self._killed_by_delete()
            self.init.streams.close()
            self._close_attach_socket()
            for exec_id in list(self.execs):
                self._forget_exec(exec_id)
            if self._rootfs:
                try:
                    rootfs.unmount_all(self._rootfs)
                except OSError as error:
                    raise ShimError(f"failed rootfs umount: {error}") from error
        ended = self.init.exit or Exit(self.init.pid, 0, 0)
        self._shared.publish(
            task_pb2.TaskDelete(
                container_id=self.id, pid=ended.pid, exit_status=ended.status, exited_at=timestamp(ended.at)
            )
        )
        return ended

    async def _killed_by_delete(self) -> None:
        """A created process was killed by the runtime's delete: its exit belongs to it before it is gone."""
        await self._shared.loop.within(self.init.ended, _FLUSH_WITHIN)
        if not self.init.ended.done:
            self.init.streams.abort()

    async def delete_exec(self, exec_id: str) -> Exit:
        """Forgets an exec that has ended or never started; gives its exit."""
        process = self.process(exec_id)
        async with process.lock:
            process.require("delete", State.CREATED, State.STOPPED)
            if process.state is State.STOPPED:
                await self._shared.loop.within(process.streams.hub.flushed, _FLUSH_WITHIN)
            self._forget_exec(exec_id)
        return process.exit or Exit(process.pid, 0, 0)

    def _forget_exec(self, exec_id: str) -> None:
        process = self.execs.pop(exec_id)
        if process.state is not State.STOPPED:
            process.fail(time.time_ns())
        process.streams.close()
        try:
            os.unlink(os.path.join(self.bundle, f"{exec_id}.pid"))
        except FileNotFoundError:
            return


def timestamp(nanoseconds: int) -> Timestamp:
    """A moment in ns since the epoch as a protobuf timestamp."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
