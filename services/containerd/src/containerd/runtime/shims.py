"""The shims that run, and what happens when one starts, ends, dies, or is found again.

A shim outlives the daemon. Its bundle says how to reach it; :meth:`Shims.load` connects to those that live and
cleans up after those that do not. A shim whose connection ends is given one chance to be reached again (it may have
replaced itself by a newer version); then its container is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from containerd.anyvalue import AnyValue
from containerd.config import Config
from containerd.errors import AlreadyExists, ContainerdError, NotFound, Unimplemented
from containerd.events import EXIT_TOPIC, Envelope, Exchange
from containerd.runtime.bootstrap import (
    BINARY,
    BOOTSTRAP,
    NEWEST_VERSION,
    Bootstrap,
    Exit,
    ShimBinary,
    read_bootstrap,
    resolve_binary,
    write_bootstrap,
)
from containerd.runtime.bundle import Bundle, Bundles
from containerd.runtime.shim import Shim, ShimGone
from containerd.runtime.shimlog import ShimLog
from containerd.runtime.template import Template
from gantry.contracts.containerd.events import task_pb2 as event_types
from gantry.contracts.containerd.task.v3 import shim_pb2
from gantry.contracts.containerd.v1.types import task_pb2 as task_types

__all__ = ["Shims"]

_log = logging.getLogger(__name__)

KILLED = 137
DEFAULT_RUNTIME = "io.containerd.runc.v2"
_EXIT_TYPE = event_types.TaskExit.DESCRIPTOR.full_name
_LOADING_AT_ONCE = 16
_CONNECT_TIMEOUT = 5.0
_RECONNECT_TIMEOUT = 1.0
_EXIT_GRACE = 2.0
"""Seconds that a shim found again gets to report by itself an exit that nobody heard of."""


class Shims:
    """All shims of a daemon, by namespace and container id. Used in the event loop.

    ``runtime_of`` gives the runtime's name of a container, for bundles that do not say by which binary they live.
    """

    def __init__(
        self,
        config: Config,
        bundles: Bundles,
        events: Exchange,
        runtime_of: Callable[[str, str], str | None],
        *,
        debug: bool = False,
    ) -> None:
        self._config = config
        self._bundles = bundles
        self._events = events
        self._runtime_of = runtime_of
        self._debug = debug
        self._shims: dict[tuple[str, str], Shim] = {}
        self._starting: set[tuple[str, str]] = set()
        self._finishing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._logs: dict[tuple[str, str], ShimLog] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._templates: dict[str, Template] = {}
        self._stopping = False
        events.listen(self._observe)

    def binary(self, path: str) -> ShimBinary:
        """Return the shim binary at ``path`` with this daemon's addresses."""
        config = self._config
        return ShimBinary(path, config.address, config.ttrpc_address, config.shim_sockets, self._debug)

    def use_template(self, template: Template, path: str) -> None:
        """Fork the shims of the binary at ``path`` from ``template``."""
        self._templates[path] = template

    def get(self, namespace: str, container_id: str) -> Shim | None:
        """Return the shim of a container, or None."""
        return self._shims.get((namespace, container_id))

    def all(self, namespace: str) -> list[Shim]:
        """Return the shims of a namespace."""
        return [shim for (owner, _), shim in self._shims.items() if owner == namespace]

    def everywhere(self) -> list[Shim]:
        """Return the shims of all namespaces."""
        return list(self._shims.values())

    # --- start

    async def start(
        self,
        namespace: str,
        container_id: str,
        spec: bytes,
        runtime: str,
        options: AnyValue | None,
        *,
        fork: bool,
    ) -> Shim:
        """Make the bundle and start the shim of a new task; ``fork`` allows the template to be used.

        Raises :class:`AlreadyExists` and what keeps the shim from running; nothing is left behind then.
        """
        key = (namespace, container_id)
        if key in self._shims or key in self._starting:
            raise AlreadyExists(f"task {container_id}: already exists")
        self._starting.add(key)
        try:
            finishing = self._finishing.get(key)
            if finishing is not None:
                await asyncio.wait((finishing,))
            binary = self.binary(resolve_binary(runtime))
            bundle = await asyncio.to_thread(self._bundles.create, namespace, container_id, spec)
            starting = asyncio.ensure_future(self._start(bundle, binary, options, fork=fork))
            try:
                shim = await asyncio.shield(starting)
            except asyncio.CancelledError:
                await asyncio.shield(self._spawn(self._give_up(starting, bundle, binary)))
                raise
            except BaseException:
                await asyncio.shield(self._spawn(self._abandon(bundle, binary)))
                raise
            self._shims[key] = shim
            return shim
        finally:
            self._starting.discard(key)

    async def _start(self, bundle: Bundle, binary: ShimBinary, options: AnyValue | None, *, fork: bool) -> Shim:
        timeout = self._config.timeout("io.gantry.timeout.shim.start")
        # Before the shim is there: a daemon that finds the bundle after a crash knows by which program to clean up.
        bundle.write(BINARY, binary.path)
        bootstrap: Bootstrap | None = None
        template = self._templates.get(binary.path)
        if template is not None and fork:
            bootstrap = await template.fork(bundle, options, timeout)
        if bootstrap is None:
            self._logs[bundle.namespace, bundle.id] = ShimLog.create(bundle)
            bootstrap = await binary.start(bundle, options, timeout)
        write_bootstrap(bundle, bootstrap)
        shim = Shim(bundle, binary, bootstrap, self._lost)
        await shim.connect(_CONNECT_TIMEOUT)
        return shim

    async def _give_up(self, starting: asyncio.Task[Shim], bundle: Bundle, binary: ShimBinary) -> None:
        """The caller has gone during a start: a shim that is on its way comes all the same, and is ended then."""
        try:
            shim = await starting
        except (OSError, ContainerdError):
            await self._abandon(bundle, binary)
        else:
            await self.discard(shim, answered=False)

    async def _abandon(self, bundle: Bundle, binary: ShimBinary) -> None:
        """Clean up after a shim that may or may not have come to life."""
        self._close_log(bundle)
        await self._run_delete(bundle, binary)
        await self._remove(bundle)

    # --- end

    async def discard(self, shim: Shim, *, answered: bool) -> None:
        """End the shim of a task that could not be created.

        Unless the shim has ``answered``, it may have been stopped half-way, and what it began is cleaned up for it.
        """
        self._forget(shim)
        request = shim_pb2.DeleteRequest(id=shim.id)
        with contextlib.suppress(ContainerdError):
            await shim.call("Delete", request, shim_pb2.DeleteResponse, self._timeout("cleanup"))
        await self._finish(shim, trusted=answered)

    def finish(self, shim: Shim) -> None:
        """End the shim of a task that has been deleted, in the background; a new task of this id waits for it."""
        self._forget(shim)
        key = (shim.namespace, shim.id)
        task = self._finishing[key] = self._spawn(self._finish(shim))
        task.add_done_callback(lambda _: self._finishing.pop(key, None))

    async def _finish(self, shim: Shim, *, trusted: bool = True) -> None:
        clean = False
        try:
            request = shim_pb2.ShutdownRequest(id=shim.id)
            await shim.call("Shutdown", request, Empty, self._timeout("shutdown"))
            clean = await shim.disconnected(self._timeout("shutdown"))
        except ShimGone:
            clean = True
        except ContainerdError as error:
            _log.error("failed to shutdown shim: %s", error, extra={"id": shim.id, "namespace": shim.namespace})
        await shim.close()
        if not clean or not trusted:
            # A cold start of the shim's program: only where the shim did not clean up itself.
            await self._run_delete(shim.bundle, shim.binary)
        shim.ended(Exit(KILLED, time.time_ns()))
        await self._remove(shim.bundle)

    def _forget(self, shim: Shim) -> None:
        shim.deleted = True
        if self._shims.get((shim.namespace, shim.id)) is shim:
            del self._shims[shim.namespace, shim.id]

    # --- death

    def _lost(self, shim: Shim) -> None:
        if not shim.deleted and not self._stopping:
            self._spawn(self._recover(shim))

    async def _recover(self, shim: Shim) -> None:
        extra = {"id": shim.id, "namespace": shim.namespace}
        _log.info("shim disconnected", extra=extra)
        try:
            await shim.connect(_RECONNECT_TIMEOUT)
            await self._state(shim)
        except (OSError, NotFound):
            if shim.deleted:
                return
        except ContainerdError as error:
            # One that answers, or at least listens, is not dead.
            _log.warning("shim is connected again, but does not say how it is: %s", error, extra=extra)
            return
        else:
            _log.info("shim is connected again", extra=extra)
            return
        self._forget(shim)
        await shim.close()
        await self._bury(shim.bundle, shim.binary, shim)

    async def _bury(self, bundle: Bundle, binary: ShimBinary, shim: Shim | None = None) -> None:
        """Clean up after a dead shim and say that its container has ended."""
        _log.info("cleaning up after dead shim", extra={"id": bundle.id, "namespace": bundle.namespace})
        exit_ = await self._run_delete(bundle, binary) or Exit(KILLED, time.time_ns())
        if not exit_.exited_at:
            exit_ = Exit(exit_.status, time.time_ns(), exit_.pid)
        exited = bundle.exited()
        await self._remove(bundle)
        stamp = Timestamp(seconds=exit_.exited_at // 1_000_000_000, nanos=exit_.exited_at % 1_000_000_000)
        if not exited:
            event = event_types.TaskExit(
                container_id=bundle.id, id=bundle.id, pid=exit_.pid, exit_status=exit_.status, exited_at=stamp
            )
            self._events.publish(EXIT_TOPIC, event, bundle.namespace)
        deletion = event_types.TaskDelete(
            container_id=bundle.id, pid=exit_.pid, exit_status=exit_.status, exited_at=stamp, id=bundle.id
        )
        self._events.publish("/tasks/delete", deletion, bundle.namespace)
        if shim is not None:
            shim.ended(exit_)

    async def _run_delete(self, bundle: Bundle, binary: ShimBinary) -> Exit | None:
        try:
            return await binary.delete(bundle, self._timeout("cleanup"))
        except ContainerdError as error:
            _log.warning(
                "failed to clean up after shim: %s", error, extra={"id": bundle.id, "namespace": bundle.namespace}
            )
            return None

    async def _remove(self, bundle: Bundle) -> None:
        self._close_log(bundle)
        try:
            await asyncio.to_thread(bundle.delete)
        except OSError as error:
            _log.error("failed to delete bundle: %s", error, extra={"id": bundle.id, "namespace": bundle.namespace})

    def _close_log(self, bundle: Bundle) -> None:
        log = self._logs.pop((bundle.namespace, bundle.id), None)
        if log is not None:
            log.close()

    # --- being found again

    async def load(self) -> None:
        """Find the shims of an earlier daemon; clean up after those that are gone."""
        limit = asyncio.Semaphore(_LOADING_AT_ONCE)

        async def load(bundle: Bundle) -> None:
            async with limit:
                try:
                    await self._load(bundle)
                except (ContainerdError, OSError) as error:
                    # Its shim may be well, and of a version that only a newer daemon understands.
                    extra = {"id": bundle.id, "namespace": bundle.namespace}
                    _log.error("failed to load shim, its bundle is left as it is: %s", error, extra=extra)

        bundles = await asyncio.to_thread(lambda: list(self._bundles.all()))
        await asyncio.gather(*(load(bundle) for bundle in bundles))
        await asyncio.to_thread(self._bundles.remove_orphaned_work)
        await self._end_strays()

    async def _end_strays(self) -> None:
        """End the shims that were forked for an earlier daemon which died before it wrote down where they listen."""
        directory = self._config.shim_sockets
        # The text, not what could be understood of it: a bundle that was left alone still has its shim.
        known = "\n".join(bundle.read(BOOTSTRAP) or "" for bundle in self._bundles.all())
        for name in sorted(os.listdir(directory)):
            if name in known or not stat.S_ISSOCK(os.lstat(f"{directory}/{name}").st_mode):
                continue
            address = f"unix://{directory}/{name}"
            _log.info("ending a shim without a bundle", extra={"address": address})
            stray = Shim(Bundle("", "", ""), self.binary(""), Bootstrap(NEWEST_VERSION, address), lambda _: None)
            with contextlib.suppress(OSError, ContainerdError):
                await stray.connect(_RECONNECT_TIMEOUT)
                await stray.call("Shutdown", shim_pb2.ShutdownRequest(now=True), Empty, self._timeout("shutdown"))
                await stray.disconnected(self._timeout("shutdown"))
            await stray.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")

    async def _load(self, bundle: Bundle) -> None:
        binary = await self._binary_of(bundle)
        bootstrap = read_bootstrap(bundle)
        if bootstrap is None:
            # The daemon died before the shim's reply. A shim that came up since has no task, and ends by this.
            await self._abandon(bundle, binary)
            return
        shim = Shim(bundle, binary, bootstrap, self._lost)
        log = ShimLog.reopen(bundle)
        if log is not None:
            self._logs[bundle.namespace, bundle.id] = log
        self._shims[bundle.namespace, bundle.id] = shim
        extra = {"id": bundle.id, "namespace": bundle.namespace}
        try:
            await shim.connect(self._timeout("load"))
            state = await self._state(shim)
        except (OSError, ShimGone):
            self._forget(shim)
            await self._bury(bundle, binary)
        except NotFound:
            _log.info("cleaning leaked shim process", extra=extra)
            self._forget(shim)
            # A shim gives up a creation when the daemon that asked for it dies: the container may be there in part.
            await self._finish(shim, trusted=False)
        except ContainerdError as error:
            # One that is stuck, or in trouble, is not dead: its container may be well.
            _log.warning("shim was found, but does not say how it is: %s", error, extra=extra)
        else:
            _log.info("shim found again", extra=extra)
            if state.status == task_types.STOPPED and not bundle.exited():
                self._spawn(self._report_exit(shim, state))

    async def _report_exit(self, shim: Shim, state: shim_pb2.StateResponse) -> None:
        """Publish an exit that happened while no daemon ran, unless the shim does so: not every shim keeps events."""
        await asyncio.sleep(_EXIT_GRACE)
        if shim.deleted or shim.bundle.exited():
            return
        event = event_types.TaskExit(
            container_id=shim.id,
            id=shim.id,
            pid=state.pid,
            exit_status=state.exit_status,
            exited_at=state.exited_at,
        )
        self._events.publish(EXIT_TOPIC, event, shim.namespace)

    async def _state(self, shim: Shim) -> shim_pb2.StateResponse:
        request = shim_pb2.StateRequest(id=shim.id)
        try:
            return await shim.call("State", request, shim_pb2.StateResponse, self._timeout("load"))
        except Unimplemented:
            if shim.version <= 2:
                raise
            # The binary on disk was newer than the shim that runs: what it said of its version was its own.
            shim.version -= 1
            return await shim.call("State", request, shim_pb2.StateResponse, self._timeout("load"))

    async def _binary_of(self, bundle: Bundle) -> ShimBinary:
        """Return the program of the bundle's shim; one that is not installed any more is no reason to lose the shim."""
        path = bundle.read(BINARY)
        if not path:
            runtime = await asyncio.to_thread(self._runtime_of, bundle.namespace, bundle.id) or DEFAULT_RUNTIME
            try:
                path = resolve_binary(runtime)
            except ContainerdError:
                path = runtime
        return self.binary(path)

    # --- the rest

    def release(self) -> None:
        """End the calls that wait for a process: they would last as long as it does."""
        for shim in self._shims.values():
            shim.release()

    async def stop(self) -> None:
        """Finish what is under way and let go of the shims, which go on."""
        self._stopping = True
        if self._background:
            await asyncio.wait(set(self._background), timeout=self._timeout("cleanup"))
        for shim in self._shims.values():
            await shim.close()
        for log in self._logs.values():
            log.close()

    def _observe(self, envelope: Envelope) -> None:
        """Hear of exits as subscribers do, and tell those who wait."""
        if envelope.topic != EXIT_TOPIC or envelope.event.type_url.rpartition("/")[2] != _EXIT_TYPE:
            return
        event = event_types.TaskExit.FromString(envelope.event.value)
        shim = self._shims.get((envelope.namespace, event.container_id))
        if shim is None:
            return
        process = "" if event.id == event.container_id else event.id
        if not process:
            shim.bundle.mark_exited()
        exited_at = event.exited_at.seconds * 1_000_000_000 + event.exited_at.nanos
        shim.exited(process, Exit(event.exit_status, max(exited_at, 0), event.pid))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work on a shim failed: %s", error, exc_info=error)

    def _timeout(self, name: str) -> float:
        return self._config.timeout(f"io.containerd.timeout.shim.{name}")
