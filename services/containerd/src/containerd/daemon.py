"""The daemon put together: stores, exchange, shims and services, in the order in which they need each other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from containerd import restart, systemd, version
from containerd.anyvalue import AnyValue
from containerd.config import Config, ConfigError
from containerd.errors import ContainerdError, NotFound
from containerd.events import Exchange
from containerd.metadata.containers import ContainerStore
from containerd.metadata.leases import LeaseStore
from containerd.metadata.namespaces import NamespaceStore
from containerd.metadata.restarts import RestartStore
from containerd.metadata.schema import MIGRATIONS, OCCUPANTS
from containerd.metrics import cgroups, process
from containerd.metrics.calls import Calls
from containerd.metrics.endpoint import Endpoint
from containerd.metrics.stacks import stacks
from containerd.metrics.text import CONTENT_TYPE, render
from containerd.mounts import Mount
from containerd.plugins import PluginInfo
from containerd.runtime.bootstrap import resolve_binary
from containerd.runtime.bundle import Bundles
from containerd.runtime.shims import DEFAULT_RUNTIME, Shims
from containerd.runtime.template import ANNOTATION, Template
from containerd.server import Server
from containerd.services import health
from containerd.services.containers import Containers
from containerd.services.events import Events, ForwardedEvents
from containerd.services.introspection import Introspection, server_uuid
from containerd.services.leases import Leases
from containerd.services.namespaces import Namespaces
from containerd.services.streaming import Streaming
from containerd.services.tasks import Tasks
from containerd.services.version import Version
from containerd.streaming import Streams
from containerd.tasks import Tasks as TaskDomain
from gantry.contracts.containerd.services.containers.v1.containers_pb2_grpc import add_ContainersServicer_to_server
from gantry.contracts.containerd.services.events.ttrpc.v1 import events_pb2 as ttrpc_events
from gantry.contracts.containerd.services.events.v1.events_pb2_grpc import add_EventsServicer_to_server
from gantry.contracts.containerd.services.introspection.v1.introspection_pb2_grpc import (
    add_IntrospectionServicer_to_server,
)
from gantry.contracts.containerd.services.leases.v1.leases_pb2_grpc import add_LeasesServicer_to_server
from gantry.contracts.containerd.services.namespaces.v1.namespace_pb2_grpc import add_NamespacesServicer_to_server
from gantry.contracts.containerd.services.streaming.v1.streaming_pb2_grpc import add_StreamingServicer_to_server
from gantry.contracts.containerd.services.tasks.v1.tasks_pb2_grpc import add_TasksServicer_to_server
from gantry.contracts.containerd.services.version.v1.version_pb2_grpc import add_VersionServicer_to_server
from gantry.contracts.containerd.types.introspection_pb2 import RuntimeInfo
from gantry.database import Database
from gantry.ttrpc import address as ttrpc_address
from gantry.ttrpc.aio_server import Server as TTRPCServer

__all__ = ["Daemon", "DaemonError", "Storage"]

_log = logging.getLogger(__name__)

TASKS_DIRECTORY = "io.containerd.runtime.v2.task"
STOP_GRACE = 3.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

Register = Callable[[Any, Any], None]


class DaemonError(Exception):
    """The daemon cannot start; the message says what is in the way."""


class Storage(Protocol):
    """What :mod:`containerd.storage` builds: content, images, snapshots, diff, transfer, and the garbage collector."""

    servicers: Sequence[tuple[Register, object]]
    plugins: Sequence[PluginInfo]

    async def start(self) -> None:
        """Bring what is on disk and what the database knows together."""

    async def stop(self) -> None:
        """End what is under way."""

    def mounts(self, namespace: str, snapshotter: str, key: str) -> Sequence[Mount]:
        """Return the mounts of a snapshot; for a thread to call. Raises :class:`NotFound`."""

    def schedule_collection(self) -> None:
        """Say that something may have become garbage. Cheap; called in the loop."""

    async def collect(self) -> None:
        """Collect the garbage now, and return when it is gone."""


class _NoStorage:
    """Stands in where the package was installed without its storage half: nothing is stored, nothing is garbage."""

    servicers: Sequence[tuple[Register, object]] = ()
    plugins: Sequence[PluginInfo] = ()

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    def mounts(self, namespace: str, snapshotter: str, key: str) -> Sequence[Mount]:  # noqa: ARG002 (a protocol's)
        raise NotFound(f"snapshotter not loaded: {snapshotter}: not found")

    def schedule_collection(self) -> None:
        return

    async def collect(self) -> None:
        return


class Daemon:
    """Everything that runs. :meth:`start`, then :meth:`stop`; both in one event loop."""

    def __init__(self, config: Config, *, debug: bool = False) -> None:
        self.config = config.resolved()
        self._debug = debug
        self._cleanup = contextlib.AsyncExitStack()
        self._template: Template | None = None

    async def start(self) -> None:
        """Take the directories, find what runs, and answer on the sockets. Raises :class:`DaemonError`."""
        try:
            await self._start()
        except (OSError, ContainerdError, ConfigError) as error:
            await self.stop()
            raise DaemonError(str(error)) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop in the opposite order. Shims, containers and the template go on."""
        await self._cleanup.aclose()

    async def _start(self) -> None:
        config = self.config
        self._prepare_directories()
        database = Database(f"{config.root}/metadata.db", MIGRATIONS)
        self._cleanup.callback(database.close)
        events = Exchange()
        streams = Streams()
        containers = ContainerStore(database)
        leases = LeaseStore(database)
        storage = _build_storage(config, database, leases, events, streams)
        self._cleanup.push_async_callback(storage.stop)
        await storage.start()

        tasks = f"{config.state}/{TASKS_DIRECTORY}", f"{config.root}/{TASKS_DIRECTORY}"
        shims = Shims(config, Bundles(*tasks), events, _runtime_of(containers), debug=self._debug)
        await self._serve_events(events)
        # After the events: a shim that is found again reports what it has kept at once.
        self._cleanup.push_async_callback(shims.stop)
        await asyncio.gather(shims.load(), self._start_template(shims))

        calls = Calls(histogram=config.grpc_histogram)
        server = Server(config.max_receive, config.max_send, calls)
        collect, released = storage.collect, storage.schedule_collection
        server.add(add_NamespacesServicer_to_server, Namespaces(NamespaceStore(database, OCCUPANTS), events))
        server.add(add_ContainersServicer_to_server, Containers(containers, events, released))
        server.add(add_LeasesServicer_to_server, Leases(leases, released, collect))
        server.add(add_EventsServicer_to_server, Events(events))
        server.add(add_StreamingServicer_to_server, Streaming(streams))
        server.add(add_VersionServicer_to_server, Version())
        domain = TaskDomain(config, shims, containers.get)
        server.add(add_TasksServicer_to_server, Tasks(domain))
        introspection = Introspection(server_uuid(config.root), lambda: self._plugins(storage), _runtime_info_of(shims))
        server.add(add_IntrospectionServicer_to_server, introspection)
        for register, servicer in storage.servicers:
            server.add(register, servicer)
        healthy = health.Health()
        server.add(health.register, healthy)
        await healthy.serving()

        # The exchange, the streams and the waits end first: their calls last as long as the client likes.
        self._cleanup.push_async_callback(server.stop, STOP_GRACE)
        self._cleanup.callback(events.close)
        self._cleanup.callback(streams.close)
        self._cleanup.callback(shims.release)
        await self._listen(server)
        self._monitor_restarts(containers, RestartStore(database), domain, storage, events)
        await self._serve_pages(calls, domain)

    async def _serve_pages(self, calls: Calls, tasks: TaskDomain) -> None:
        """Answer over HTTP where the configuration says so: metrics for Prometheus, stacks for debugging."""
        config = self.config

        async def metrics() -> tuple[str, str]:
            found = await tasks.all_metrics(time.time_ns)
            containers = cgroups.families((namespace, metric.id, metric.data) for namespace, metric in found)
            return CONTENT_TYPE, render([*containers, *calls.families(), *process.families()])

        if config.metrics_address:
            endpoint = Endpoint({"/v1/metrics": metrics})
            try:
                await endpoint.listen(config.metrics_address)
            except (OSError, ValueError) as error:
                raise DaemonError(f"failed to get listener for metrics endpoint: {error}") from error
            self._cleanup.push_async_callback(endpoint.close)
        if config.debug_address:
            path = config.debug_address.removeprefix("unix://")
            endpoint = Endpoint({"/debug/stacks": stacks, "/debug/pprof/goroutine": stacks})
            try:
                await endpoint.listen_unix(path, config.debug_uid, config.debug_gid)
            except OSError as error:
                raise DaemonError(f"failed to get listener for debug endpoint: {error}") from error
            self._cleanup.callback(_unlink, path)
            self._cleanup.push_async_callback(endpoint.close)

    def _monitor_restarts(
        self, containers: ContainerStore, restarts: RestartStore, tasks: TaskDomain, storage: Storage, events: Exchange
    ) -> None:
        """Begin to keep containers as their labels want them, unless the configuration disables it."""
        config = self.config
        if config.disabled(_RESTART_MONITOR):
            return
        interval = config.duration(_RESTART_MONITOR, "interval", restart.DEFAULT_INTERVAL)
        monitor = restart.Monitor(interval, containers, restarts, tasks, storage.mounts, events)
        self._cleanup.push_async_callback(monitor.stop)
        monitor.start()

    async def _listen(self, server: Server) -> None:
        """Answer on the configured socket, or behind those that the service manager passed."""
        config = self.config
        inherited = systemd.listen_sockets()
        own = f"{config.state}/containerd.grpc.sock" if inherited else config.address
        await server.start(own, config.uid, config.gid)
        self._cleanup.callback(_unlink, own)
        if inherited:
            relay = systemd.Relay(inherited, own)
            self._cleanup.push_async_callback(relay.stop)
            relay.start()

    def _prepare_directories(self) -> None:
        config = self.config
        if config.root == config.state:
            raise DaemonError("root and state must be different paths")
        for directory, mode in ((config.root, 0o711), (config.state, 0o711), (config.shim_sockets, 0o700)):
            os.makedirs(directory, mode=mode, exist_ok=True)
        for path in (config.address, config.ttrpc_address):
            os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        for directory in (config.root, config.state):
            lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._cleanup.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DaemonError(f"{directory} is in use by another containerd") from None

    async def _serve_events(self, events: Exchange) -> None:
        path = self.config.ttrpc_address
        _unlink(path)
        listener = ttrpc_address.listen(path, mode=0o660)
        os.chown(path, self.config.ttrpc_uid, self.config.ttrpc_gid)
        server = TTRPCServer()
        server.add_service(ttrpc_events.DESCRIPTOR.services_by_name["Events"], ForwardedEvents(events))
        await server.serve(listener)
        self._cleanup.callback(_unlink, path)
        self._cleanup.push_async_callback(server.close)

    async def _start_template(self, shims: Shims) -> None:
        try:
            path = resolve_binary(DEFAULT_RUNTIME)
        except ContainerdError as error:
            _log.warning("default runtime is not installed: %s", error)
            return
        template = Template(shims.binary(path), f"{self.config.state}/{ANNOTATION}/runc-v2.sock")
        self._cleanup.callback(template.close)
        shims.use_template(template, path)
        self._template = template
        await template.ensure()

    def _plugins(self, storage: Storage) -> list[PluginInfo]:
        here = (("linux", _ARCHITECTURES.get(platform.machine(), platform.machine())),)
        plugins = [
            PluginInfo("io.containerd.event.v1", "exchange"),
            PluginInfo("io.containerd.metadata.v1", "sqlite"),
            PluginInfo("io.containerd.lease.v1", "manager"),
            PluginInfo("io.containerd.streaming.v1", "manager"),
            PluginInfo("io.containerd.shim.v1", "manager"),
            PluginInfo(
                "io.containerd.runtime.v2",
                "task",
                requires=("io.containerd.event.v1", "io.containerd.metadata.v1"),
                platforms=here,
                exports={"log-uri-schemes": "fifo,binary,file"},
            ),
            *(PluginInfo("io.containerd.service.v1", f"{name}-service") for name in _SERVICES if name in _LOCAL),
            *(PluginInfo("io.containerd.grpc.v1", name) for name in _SERVICES),
            PluginInfo("io.containerd.grpc.v1", "healthcheck"),
        ]
        if not self.config.disabled(_RESTART_MONITOR):
            plugins.append(PluginInfo(_RESTART_PLUGIN, "restart", capabilities=restart.CAPABILITIES))
        if self._template is not None and self._template.running:
            exports = {"address": self._template.path}
            plugins.append(PluginInfo(ANNOTATION, "runc-v2", platforms=here, exports=exports))
        return [*plugins, *storage.plugins]


_RESTART_PLUGIN = "io.containerd.monitor.container.v1"
_RESTART_MONITOR = f"{_RESTART_PLUGIN}.restart"

_SERVICES = ("containers", "events", "introspection", "leases", "namespaces", "streaming", "tasks", "version")
_LOCAL = ("containers", "introspection", "namespaces", "tasks")


def _build_storage(
    config: Config, database: Database, leases: LeaseStore, events: Exchange, streams: Streams
) -> Storage:
    if importlib.util.find_spec("containerd.storage") is None:
        _log.warning("containerd.storage is not installed: no images, snapshots or content")
        return _NoStorage()
    storage = importlib.import_module("containerd.storage")
    built: Storage = storage.build(config, database, leases, events, streams)
    return built


def _runtime_of(containers: ContainerStore) -> Callable[[str, str], str | None]:
    def runtime_of(namespace: str, container_id: str) -> str | None:
        try:
            return containers.get(namespace, container_id).runtime
        except ContainerdError:
            return None

    return runtime_of


def _runtime_info_of(shims: Shims) -> Callable[[str, AnyValue | None], Awaitable[RuntimeInfo]]:
    async def runtime_info(runtime: str, options: AnyValue | None) -> RuntimeInfo:
        return await shims.binary(resolve_binary(runtime or DEFAULT_RUNTIME)).info(options, 10.0)

    return runtime_info


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def banner() -> str:
    """Return what ``--version`` prints."""
    return f"containerd gantry {version.VERSION} {version.REVISION}"
