"""The shim itself: one process, one thread, until its last container is deleted and Shutdown is asked."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gantry.contracts.containerd.task.v2 import shim_pb2 as shim_v2_pb2
from gantry.contracts.containerd.task.v3 import shim_pb2 as shim_v3_pb2
from gantry.linux import process as linux_process
from gantry.ttrpc.server import Server
from shim import logs
from shim.container import Shared
from shim.events import Publisher
from shim.launch import EntryPoint, Launcher
from shim.loop import Loop
from shim.options import Options
from shim.process import Parked, drop
from shim.reaper import Reaper
from shim.runtime import CommandLineRuntime
from shim.service import TaskService

_log = logging.getLogger(__name__)
_EVENTS_WITHIN = 5.0
_READERS_WITHIN = 300.0


@dataclass(frozen=True, slots=True)
class ShimParameters:
    """What a shim is told at its birth."""

    namespace: str
    id: str
    bundle: str
    ttrpc_address: str
    socket_path: str
    scripts: str
    debug: bool = False
    warm: Sequence[EntryPoint] = ()
    parked: Mapping[str, list[Parked]] = field(default_factory=dict)


class Shim:
    """Puts the parts together around one loop."""

    def __init__(self, parameters: ShimParameters, listener: socket.socket) -> None:
        self._parameters = parameters
        self.loop = loop = Loop()
        self._reaper = Reaper(loop)
        self._publisher = Publisher(loop, parameters.namespace, parameters.ttrpc_address)
        launcher = Launcher(loop, self._reaper, parameters.scripts, parameters.warm)
        self._shared = Shared(
            loop=loop,
            reaper=self._reaper,
            launcher=launcher,
            namespace=parameters.namespace,
            publish=self._publisher.publish,
            runtime_for=lambda options, bundle: self._runtime(launcher, options, bundle),
        )
        self._parked = dict(parameters.parked)
        service = TaskService(self._shared, self._parked, self._shut_down)
        self._server = Server(loop.selector)
        for module in (shim_v2_pb2, shim_v3_pb2):
            self._server.add_service(module.DESCRIPTOR.services_by_name["Task"], service)
        self._server.serve(listener)
        self._stopping = False

    def _runtime(self, launcher: Launcher, options: Options, bundle: str) -> CommandLineRuntime:
        return CommandLineRuntime(launcher, options, self._parameters.namespace, bundle)

    def run(self) -> None:
        """Serves until the end."""
        linux_process.set_child_subreaper()
        self._reaper.on_signal = lambda _number: self._shut_down()
        self._reaper.install((signal.SIGTERM, signal.SIGINT))
        self.loop.run()
        self._server.close()
        self._publisher.close()
        self._reaper.close()
        self.loop.close()

    def _shut_down(self) -> None:
        if not self._stopping:
            self._stopping = True
            # In the next round: the answer to Shutdown goes out first.
            self.loop.call_soon(lambda: self.loop.background(self._end(), "shutdown"))

    async def _end(self) -> None:
        """Goes as soon as containerd has all events, and attached clients and logs all output."""
        self._server.stop_listening()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._parameters.socket_path)
        self._server.flush(1.0)
        self._server.close()
        for clients in self._parked.values():
            for client in clients:
                drop(client)
        self._parked.clear()
        if not await self.loop.within(self._publisher.drained(), _EVENTS_WITHIN):
            _log.error("%d events could not be delivered", self._publisher.pending)
        for hub in list(self._shared.lingering):
            await self.loop.within(hub.flushed, _READERS_WITHIN)
        self.loop.stop()


def serve(parameters: ShimParameters, listener: socket.socket) -> None:
    """Runs a shim in this process, whose working directory becomes the bundle."""
    os.chdir(parameters.bundle)
    logs.open_fifo("log")
    logs.set_up(parameters.debug, id=parameters.id, namespace=parameters.namespace)
    linux_process.set_name("containerd-shim")
    Shim(parameters, listener).run()
