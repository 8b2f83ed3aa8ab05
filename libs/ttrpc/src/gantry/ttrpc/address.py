"""Addresses of the form unix:///path, and sockets at paths longer than sun_path (108 bytes)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator


def socket_path(address: str) -> str:
    """The path in `unix:///path` or in a plain path. ValueError for any other scheme."""
    path = address.removeprefix("unix://")
    if not path.startswith("/"):
        raise ValueError(f"address {address!r} is not unix:///ABSOLUTE/PATH")
    return path


@contextlib.contextmanager
def reachable(path: str) -> Iterator[str]:
    """A short name for a socket's path, good inside the block.

    connect(2) and bind(2) take at most 108 bytes; a longer path goes through a descriptor of its directory.
    """
    if len(os.fsencode(path)) < 108:
        yield path
        return
    directory, name = os.path.split(path)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def connect(address: str, timeout: float | None = None) -> socket.socket:
    """A connected stream socket. OSError names the address."""
    path = socket_path(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        with reachable(path) as name:
            sock.connect(name)
    except OSError as error:
        sock.close()
        raise _named(error, path) from error
    return sock


def listen(address: str, *, mode: int = 0o600, backlog: int = 128) -> socket.socket:
    """A listening stream socket that only `mode` can reach from the first moment on. The path must not exist yet."""
    path = socket_path(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The mode of the descriptor is what bind(2) gives the file, so there is no moment at which it is wider.
        os.fchmod(sock.fileno(), mode)
        with reachable(path) as name:
            sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _named(error, path) from error
    return sock


def _named(error: OSError, path: str) -> OSError:
    if error.errno is None:
        return error
    return OSError(error.errno, os.strerror(error.errno), path)
