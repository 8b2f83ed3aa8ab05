"""The socket on which the OCI runtime hands over the master of a new terminal (runc's --console-socket)."""

from __future__ import annotations

import contextlib
import os
import socket

from gantry.linux import unix as linux_unix
from shim.errors import RuntimeFailure
from shim.loop import Loop

_WAIT = 10.0


class ConsoleSocket:
    """Listens in the bundle under a short relative name: the runtime runs there, so no bundle's path is too long."""

    def __init__(self, loop: Loop, bundle: str, name: str) -> None:
        self._loop = loop
        self._path = os.path.join(bundle, name)
        self.name = name
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        linux_unix.bind_path(self._listener, self._path)
        self._listener.listen(1)
        self._listener.setblocking(False)

    async def receive(self) -> int:
        """The master's descriptor. RuntimeFailure when the runtime sends none."""
        if not await self._loop.readable(self._listener.fileno(), _WAIT):
            raise RuntimeFailure("failed to retrieve console master: the runtime did not connect")
        connection, _ = self._listener.accept()
        with connection:
            connection.setblocking(False)
            if not await self._loop.readable(connection.fileno(), _WAIT):
                raise RuntimeFailure("failed to retrieve console master: the runtime sent nothing")
            _, descriptors = linux_unix.receive_packet(connection, 4096, 4)
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise RuntimeFailure(f"failed to retrieve console master: {len(descriptors)} descriptors came")
        return descriptors[0]

    def close(self) -> None:
        """Removes the socket."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
