"""What systemd gives a service: a socket to say that it is ready (sd_notify(3)), and listening sockets
(sd_listen_fds(3)).

gRPC for Python cannot listen on a socket that it did not make itself, and making the path anew would cut the service
manager's own socket off: activation would work once. So the inherited socket is kept, and each connection to it is
relayed to the server's own. Without activation nothing is relayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

__all__ = ["Relay", "listen_sockets", "notify"]

_FIRST = 3


def notify(message: str) -> None:
    """Send ``READY=1`` and the like; without a service manager nothing is done."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.sendto(message.encode(), path)


def listen_sockets() -> list[socket.socket]:
    """Return the sockets passed to this very process, and take them out of the environment of its children."""
    count, owner = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if owner != str(os.getpid()) or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=descriptor) for descriptor in range(_FIRST, _FIRST + int(count))]
    for listener in sockets:
        listener.set_inheritable(False)
    return sockets


class Relay:
    """Carries the connections of inherited sockets to the socket at ``path``."""

    CHUNK = 256 << 10

    def __init__(self, listeners: list[socket.socket], path: str) -> None:
        self._listeners = listeners
        self._path = path
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept from now on: connections that came before are waiting already."""
        for listener in self._listeners:
            listener.setblocking(False)
            # Not an asyncio server: from Python 3.13 on that one removes the socket's file, which is not ours.
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Accept no more and end what is relayed. The sockets' files stay: they are the service manager's."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            task = asyncio.get_running_loop().create_task(self._relay(client))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _relay(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=client, limit=self.CHUNK)
        writers = [writer]
        # An end that goes away ends the other one too: nothing has to be said about it.
        with contextlib.suppress(OSError):
            try:
                inner_reader, inner_writer = await asyncio.open_unix_connection(self._path, limit=self.CHUNK)
                writers.append(inner_writer)
                await asyncio.gather(self._copy(reader, inner_writer), self._copy(inner_reader, writer))
            finally:
                for end in writers:
                    end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(self.CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        await writer.drain()
