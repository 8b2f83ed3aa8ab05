"""What systemd gives a service: a socket to say that it is ready (sd_notify(3)), and listening sockets
(sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket

__all__ = ["listen_sockets", "notify"]

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
