"""The template process: it has the shim's code loaded and forks a ready shim in a moment.

Speaks ``gantry.shim.template.v1`` (see the contract for codes and packets). It is a matter of speed only: whenever
it cannot be had, a shim is started by its command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess

from containerd.anyvalue import AnyValue
from containerd.errors import AlreadyExists, ContainerdError, FailedPrecondition, Unavailable, Unknown
from containerd.runtime.bootstrap import Bootstrap, ShimBinary, publish_binary
from containerd.runtime.bundle import Bundle
from gantry.contracts.containerd.types.introspection_pb2 import RuntimeInfo
from gantry.contracts.gantry.shim.template.v1 import template_pb2
from gantry.linux.unix import connect_path

__all__ = ["ANNOTATION", "Template"]

_log = logging.getLogger(__name__)

ANNOTATION = "io.gantry.shim.template.v1"
PACKET = 256 << 10
START_TIMEOUT = 20.0
CALL_TIMEOUT = 10.0
RETRY_AFTER = 5.0
"""Seconds until a template that could not be started is tried again: a broken one must not slow every start."""


class TemplateGone(Exception):
    """Nobody answers on the template's socket."""


class Template:
    """The template of one shim binary, at one socket. Started when it is first needed, found again when it runs."""

    def __init__(self, binary: ShimBinary, path: str) -> None:
        self._binary = binary
        self.path = path
        self._starting = asyncio.Lock()
        self._retry_at = 0.0
        self._unsupported = False
        self._installed: tuple[int, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._restarting: asyncio.Task[bool] | None = None
        self.running = False

    async def ensure(self) -> bool:
        """Make sure that a template of the installed version answers; tell whether one does."""
        async with self._starting:
            try:
                installed = _file_identity(self._binary.path)
            except OSError:
                return False
            if installed == self._installed:
                if self.running:
                    return True
                if self._unsupported or asyncio.get_running_loop().time() < self._retry_at:
                    return False
            self._installed = installed
            try:
                self.running = await self._ensure()
            except (TemplateGone, ContainerdError, OSError) as error:
                _log.warning("shim template cannot be used: %s", error, extra={"path": self.path})
                self.running = False
            if not self.running:
                self._retry_at = asyncio.get_running_loop().time() + RETRY_AFTER
            return self.running

    async def fork(self, bundle: Bundle, options: AnyValue | None, timeout: float) -> Bootstrap | None:
        """Fork a shim for ``bundle``; None when there is no template and the shim has to be started by itself.

        Raises :class:`AlreadyExists`, :class:`FailedPrecondition`, :class:`Unknown` as the template answered.
        """
        request = template_pb2.Request(
            fork=template_pb2.Fork(
                namespace=bundle.namespace,
                id=bundle.id,
                bundle=bundle.path,
                address=self._binary.address,
                ttrpc_address=self._binary.ttrpc_address,
                publish_binary=publish_binary(),
                debug=self._binary.debug,
                environment=self._binary.environment(bundle.namespace),
                socket_dir=self._binary.socket_dir,
            )
        )
        if options is not None:
            request.fork.options.type_url, request.fork.options.value = options.type_url, options.value
        for attempt in (1, 2):
            # Asks the file system, not the program: an upgrade of the shim's package replaces the file.
            if not await self.ensure():
                return None
            try:
                reply = await self._call(request, timeout)
            except TemplateGone as error:
                _log.warning("shim template is gone: %s", error, extra={"path": self.path, "attempt": attempt})
                self.running = False
                continue
            bootstrap = _checked(reply).bootstrap
            return Bootstrap(bootstrap.version, bootstrap.address, bootstrap.protocol or "ttrpc")
        return None

    async def stop(self) -> None:
        """End the template; its shims go on."""
        self._watch(0)
        with contextlib.suppress(TemplateGone):
            await self._call(template_pb2.Request(stop=template_pb2.Stop()), CALL_TIMEOUT)
        self.running = False

    def close(self) -> None:
        """Look after the template no more; it runs on."""
        self._watch(0)
        if self._restarting is not None:
            self._restarting.cancel()

    def _watch(self, pid: int) -> None:
        """Be told by the kernel when the template's process ends: nothing has to ask in the meantime."""
        loop = asyncio.get_running_loop()
        if self._pidfd >= 0:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if pid:
            try:
                self._pidfd = os.pidfd_open(pid)
            except ProcessLookupError as error:
                raise TemplateGone(f"process {pid} has ended") from error
            loop.add_reader(self._pidfd, self._died)

    def _died(self) -> None:
        _log.warning("shim template died", extra={"path": self.path})
        self._watch(0)
        if self._process is not None:
            self._process.poll()  # so that it does not stay a zombie
        self.running = False
        self._restarting = asyncio.get_running_loop().create_task(self.ensure())

    async def _ensure(self) -> bool:
        self._unsupported = False
        try:
            info = await self._binary.info(None, START_TIMEOUT)
        except Unknown as error:
            # Shims of containerd 1.x do not know the flag.
            _log.debug("shim does not answer -info: %s", error, extra={"binary": self._binary.path})
            info = RuntimeInfo()
        if ANNOTATION not in info.annotations:
            _log.info("shim has no template: each is started by its command line", extra={"binary": self._binary.path})
            self._unsupported = True
            return False
        with contextlib.suppress(TemplateGone):
            pong = await self._ping()
            if pong.version == info.version.version:
                self._watch(pong.pid)
                return True
            _log.info("shim template is of another version", extra={"running": pong.version})
            await self.stop()
        await self._start()
        self._watch((await self._ping()).pid)
        return True

    async def _ping(self) -> template_pb2.Pong:
        reply = await self._call(template_pb2.Request(ping=template_pb2.Ping()), CALL_TIMEOUT)
        return _checked(reply).pong

    async def _start(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o711, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        argv = [self._binary.path, "-address", self._binary.address, "-socket", self.path, "template"]
        # Detached: it outlives this daemon, and a signal for the daemon's group is not for it.
        log = os.open(f"{self.path}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # No asyncio subprocess: that one is tied to this loop's life, and the template is not.
            self._process = subprocess.Popen(
                argv,
                cwd="/",
                env=self._binary.environment(""),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while True:
                    with contextlib.suppress(TemplateGone):
                        await self._ping()
                        _log.info("shim template started", extra={"path": self.path, "pid": self._process.pid})
                        return
                    if self._process.poll():
                        raise Unavailable(f"shim template ended with status {self._process.returncode}: unavailable")
                    await asyncio.sleep(0.01)  # until its socket is there
        except TimeoutError:
            self._process.kill()
            raise Unavailable(f"shim template did not answer within {START_TIMEOUT:g} s: unavailable") from None

    async def _call(self, request: template_pb2.Request, timeout: float) -> template_pb2.Reply:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            try:
                # A connect to a unix socket completes at once or fails (EAGAIN: its backlog is full).
                connect_path(connection, self.path)
                async with asyncio.timeout(timeout):
                    await loop.sock_sendall(connection, request.SerializeToString())
                    data = await loop.sock_recv(connection, PACKET)
            except TimeoutError:
                raise TemplateGone(f"no reply within {timeout:g} s") from None
            except OSError as error:
                raise TemplateGone(f"{self.path}: {error.strerror}") from error
        if not data:
            raise TemplateGone(f"{self.path}: closed the connection")
        return template_pb2.Reply.FromString(data)


def _file_identity(path: str) -> tuple[int, int]:
    """Return what changes when a program is installed anew."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


_ERRORS = {6: AlreadyExists, 9: FailedPrecondition, 14: Unavailable}


def _checked(reply: template_pb2.Reply) -> template_pb2.Reply:
    if reply.code:
        raise _ERRORS.get(reply.code, Unknown)(reply.message)
    return reply
