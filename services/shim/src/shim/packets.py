"""A SOCK_SEQPACKET socket that takes requests with descriptors, for gantry.stdio.v1 and the template's contract."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from gantry.linux import unix as linux_unix
from gantry.ttrpc.server import peer_is_trusted
from shim.loop import Loop

LONGEST: Final = 256 << 10


class PacketServer:
    """One reply for each request, in order.

    `handle` gets the bytes and a list of descriptors; those that it leaves in the list are closed. None instead of
    bytes stands for a packet that was too long. It gives the reply and whether the connection may go on.
    """

    def __init__(
        self, loop: Loop, listener: socket.socket, handle: Callable[[bytes | None, list[int]], tuple[bytes, bool]]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._handle = handle
        self._connections: set[socket.socket] = set()
        listener.setblocking(False)
        loop.on_readable(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        if not peer_is_trusted(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._connections.add(connection)
        self._loop.on_readable(connection.fileno(), lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        data: bytes | None
        try:
            data, descriptors = linux_unix.receive_packet(connection, LONGEST + 1, 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                self._drop(connection)
                return
            data = None
        try:
            if data == b"" and not descriptors:
                self._drop(connection)
                return
            reply, goes_on = self._handle(data if data is None or len(data) <= LONGEST else None, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        try:
            connection.send(reply)
        except OSError:
            goes_on = False
        if not goes_on:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        self._loop.forget(connection.fileno())
        connection.close()

    def abandon(self) -> None:
        """In a forked child: closes what belongs to the parent, whose selector must not learn of it."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._listener.close()

    def close(self) -> None:
        """Closes listener and connections."""
        for connection in list(self._connections):
            self._drop(connection)
        self._loop.forget(self._listener.fileno())
        self._listener.close()


def listen(path: str) -> socket.socket:
    """A listening socket at a path of any length, mode 0600. A socket left there by a process that died is replaced.

    OSError (EADDRINUSE) when somebody answers at it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        try:
            linux_unix.bind_path(listener, path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _answers(path):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            linux_unix.bind_path(listener, path)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1)
        try:
            linux_unix.connect_path(probe, path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


def remove(path: str) -> None:
    """Removes a socket; one that is gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
