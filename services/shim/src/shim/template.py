"""The template process: the shim's code loaded once, ready shims forked from it in about a millisecond.

It speaks gantry.shim.template.v1 at its -socket. Between requests it holds nothing but clients' connections that came
before their container (`Park`). It owes nothing to the daemon that started it: that one may end and find it again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.linux import process as linux_process
from gantry.linux import unix
from gantry.ttrpc import address as addresses
from gantry.ttrpc.errors import Code
from shim import (
    __version__,
    bootstrap,
    cgroups,
    interpreter,
    logs,
    options,
    packets,
    preload,
    rehearsal,
    server,
    titles,
)
from shim.attach import only_descriptor, spec_of
from shim.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ShimError
from shim.flags import Flags, UsageError
from shim.holding import Holding, ResourceExhausted
from shim.launch import EntryPoint
from shim.loop import Loop
from shim.process import Parked, drop
from shim.reaper import Reaper

_log = logging.getLogger(__name__)

MOST_PARKED: Final = 4096
_Key = tuple[str, str]


@dataclass(slots=True)
class Parking:
    """Connections that wait for their container, by namespace and id."""

    loop: Loop
    clients: dict[_Key, list[Parked]] = field(default_factory=dict)

    def count(self) -> int:
        """How many wait."""
        return sum(map(len, self.clients.values()))

    def park(self, key: _Key, client: Parked) -> None:
        """Keeps a connection, which is the parking's from then on; one whose client hangs up is let go."""
        if any(client.spec.id == other.spec.id for waiting in self.clients.values() for other in waiting):
            raise AlreadyExists(f"session {client.spec.id} is parked already")
        if self.count() >= MOST_PARKED:
            raise ResourceExhausted(f"{MOST_PARKED} connections are parked already")
        self.clients.setdefault(key, []).append(client)
        self.loop.on_hangup(client.descriptor, lambda: self._hung_up(key, client))

    def _hung_up(self, key: _Key, client: Parked) -> None:
        waiting = self.clients.get(key, [])
        if client in waiting:
            waiting.remove(client)
            os.close(client.descriptor)
        if not waiting:
            self.clients.pop(key, None)

    def unpark(self, key: _Key) -> None:
        """Ends the connections of a container that does not come."""
        for client in self.clients.pop(key, []):
            self.loop.on_hangup(client.descriptor, None)
            drop(client)

    def abandon(self, own: _Key) -> None:
        """In a forked child: closes its copies of other containers' connections."""
        for key, clients in self.clients.items():
            if key != own:
                for client in clients:
                    os.close(client.descriptor)

    def handed_over(self, key: _Key) -> None:
        """A shim has them now: our copies are closed, the connections go on."""
        for client in self.clients.pop(key, []):
            self.loop.on_hangup(client.descriptor, None)
            os.close(client.descriptor)


class _Born(BaseException):
    """Unwinds the template's stack in a child that it has just forked; carries what the child is to be."""

    def __init__(self, parameters: server.ShimParameters, listener: socket.socket) -> None:
        super().__init__()
        self.parameters = parameters
        self.listener = listener


class Template:
    """Answers requests until Stop."""

    def __init__(self, listener: socket.socket, scripts: str, warm: list[EntryPoint]) -> None:
        self._loop = Loop()
        self._reaper = Reaper(self._loop)
        self._scripts = scripts
        self._warm = warm
        self._parking = Parking(self._loop)
        self._holding = Holding(self._loop)
        self._shims: dict[_Key, int] = {}
        self._server = packets.PacketServer(self._loop, listener, self._handle)

    def run(self) -> None:
        """Serves; raises _Born in a forked child."""
        self._reaper.on_signal = lambda _number: self._loop.stop()
        self._reaper.install((signal.SIGTERM, signal.SIGINT))
        try:
            self._loop.run()
        except _Born as born:
            # The child shares the parent's epoll: nothing is unregistered here, the descriptors are only closed.
            self._loop.close()
            self._parking.abandon((born.parameters.namespace, born.parameters.id))
            self._holding.abandon()
            signal.set_wakeup_fd(-1)
            self._server.abandon()
            raise
        for key in list(self._parking.clients):
            self._parking.unpark(key)
        self._holding.close()
        self._server.close()

    def _handle(self, data: bytes | None, descriptors: list[int]) -> tuple[bytes, bool]:
        reply = template_pb2.Reply(code=Code.OK)
        try:
            request = _parse(data)
        except InvalidArgument as error:
            reply.code, reply.message = error.code, str(error)
            return reply.SerializeToString(), False
        actions: dict[str | None, Callable[[], None]] = {
            "fork": lambda: self._fork(request.fork, reply),
            "park": lambda: self._park(request.park, descriptors),
            "unpark": lambda: self._parking.unpark((request.unpark.namespace, request.unpark.id)),
            "hold": lambda: self._hold(request.hold, descriptors),
            "answer": lambda: self._answer(request.answer),
            "ping": lambda: self._pong(reply),
            "stop": lambda: self._loop.call_soon(self._loop.stop),
        }
        action = actions.get(request.WhichOneof("action"))
        try:
            if action is None:
                reply.code, reply.message = Code.UNIMPLEMENTED, "an action that this template does not know"
            else:
                action()
        except ShimError as error:
            reply.code, reply.message = error.code, str(error)
        except OSError as error:
            _log.exception("a request failed")
            reply.code, reply.message = Code.INTERNAL, str(error)
        return reply.SerializeToString(), True

    def _pong(self, reply: template_pb2.Reply) -> None:
        reply.pong.version = __version__
        reply.pong.pid = os.getpid()
        reply.pong.parked = self._parking.count()
        reply.pong.held = self._holding.count()

    def _hold(self, hold: template_pb2.Hold, descriptors: list[int]) -> None:
        self._holding.hold((hold.namespace, hold.id), hold.condition, only_descriptor(descriptors))
        descriptors.clear()

    def _answer(self, answer: template_pb2.Answer) -> None:
        self._holding.answer((answer.namespace, answer.id), list(answer.conditions), answer.data)

    def _park(self, park: template_pb2.Park, descriptors: list[int]) -> None:
        spec = spec_of(park.session)
        if spec.exec_id:
            raise InvalidArgument("a session for an exec cannot be parked")
        if not park.namespace or not park.id:
            raise InvalidArgument("park without namespace or id")
        if (park.namespace, park.id) in self._shims:
            raise AlreadyExists(f"the shim of {park.id} runs: attach there")
        descriptor = only_descriptor(descriptors)
        self._parking.park((park.namespace, park.id), Parked(descriptor, spec))
        descriptors.clear()

    def _fork(self, fork: template_pb2.Fork, reply: template_pb2.Reply) -> None:
        key = (fork.namespace, fork.id)
        if not fork.namespace or not fork.id:
            raise InvalidArgument("fork without namespace or id")
        if not os.path.isdir(fork.bundle):
            raise FailedPrecondition(f"bundle {fork.bundle!r} is not a directory")
        shim_cgroup = options.from_any(fork.options).shim_cgroup if fork.HasField("options") else ""
        address = bootstrap.socket_address(fork.socket_dir, fork.address, fork.namespace, fork.id)
        listener = bootstrap.bind(address)
        parameters = self._parameters(fork, address)
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ.update(fork.environment)
            titles.set_command_line(_command_line(fork))
            with contextlib.suppress(OSError):
                bootstrap.adjust_oom_score(os.getpid(), parent)
            raise _Born(parameters, listener)
        listener.close()
        self._shims[key] = pid
        self._reaper.claim(pid, lambda _: self._shim_ended(key))
        self._parking.handed_over(key)
        if shim_cgroup:
            cgroups.add_process(pid, shim_cgroup)
        reply.bootstrap.version = bootstrap.VERSION
        reply.bootstrap.address = address
        reply.bootstrap.protocol = bootstrap.PROTOCOL
        reply.bootstrap.pid = pid

    def _parameters(self, fork: template_pb2.Fork, address: str) -> server.ShimParameters:
        return server.ShimParameters(
            namespace=fork.namespace,
            id=fork.id,
            bundle=fork.bundle,
            ttrpc_address=fork.ttrpc_address or bootstrap.ttrpc_address(fork.environment, fork.address),
            socket_path=addresses.socket_path(address),
            scripts=self._scripts,
            debug=fork.debug,
            warm=self._warm,
            parked={fork.id: self._parking.clients.get((fork.namespace, fork.id), [])},
        )

    def _shim_ended(self, key: _Key) -> None:
        self._shims.pop(key, None)


def _parse(data: bytes | None) -> template_pb2.Request:
    if data is None:
        raise InvalidArgument(f"packet longer than {packets.LONGEST} bytes")
    request = template_pb2.Request()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"packet is not a request: {error}") from None
    return request


def _command_line(fork: template_pb2.Fork) -> list[str]:
    debug = ["-debug"] if fork.debug else []
    program = os.path.abspath(sys.argv[0])
    return [program, "-namespace", fork.namespace, "-id", fork.id, "-address", fork.address, *debug]


def run(flags: Flags) -> None:
    """The template command: serves until Stop or SIGTERM. In a forked child it serves a shim instead and never returns.

    Runs from a read-only clone of the interpreter where the kernel has that (Linux 5.12; see `interpreter`).
    """
    if not flags.socket:
        raise UsageError("template needs -socket PATH")
    interpreter.run_from_readonly_clone()
    linux_process.close_range(3)
    listener = packets.listen(os.path.abspath(flags.socket))
    scripts = bootstrap.scripts_directory()
    _detach()
    logs.set_up(flags.debug, template=flags.socket)
    warm = preload.entry_points(scripts) if linux_process.executable_is_readonly() else []
    preload.warm_up()
    rehearsal.rehearse()
    gc.collect()
    gc.freeze()
    path = os.path.abspath(flags.socket)
    try:
        Template(listener, scripts, warm).run()
    except _Born as born:
        bootstrap.become_shim(born.parameters, born.listener)
    packets.remove(path)


def stop(flags: Flags) -> None:
    """The template-stop command: asks the template at -socket to end. Shims go on. One that is not there has ended."""
    if not flags.socket:
        raise UsageError("template-stop needs -socket PATH")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        try:
            unix.connect_path(connection, os.path.abspath(flags.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        connection.send(template_pb2.Request(stop=template_pb2.Stop()).SerializeToString())
        reply = template_pb2.Reply.FromString(connection.recv(packets.LONGEST))
        if reply.code:
            raise ShimError(reply.message)


def _detach() -> None:
    """Leaves the starter's session, directory and pipes; stderr stays, for the log."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
