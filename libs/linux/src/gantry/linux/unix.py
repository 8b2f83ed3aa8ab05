"""Unix sockets: paths of any length, and packets that carry descriptors.

`sun_path` holds 108 bytes; /proc/self/fd/N/NAME reaches a socket in any directory with a short text.
Sockets are taken as anything with the methods of `socket.socket`, so that a caller may use the lighter `_socket`.
"""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOL_SOCKET = _socket.SOL_SOCKET
SCM_RIGHTS = _socket.SCM_RIGHTS
_INT = 4
MAX_DESCRIPTORS = 253
"""The most descriptors that the kernel passes in one message (SCM_MAX_FD)."""


def _at_short_path(path: str, use: Callable[[str], None]) -> None:
    directory, name = os.path.split(path)
    if not name:
        raise OSError(22, "socket path names no file", path)
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{name}")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def bind_path(sock: _socket.socket, path: str, mode: int = 0o600) -> None:
    """Bind a Unix socket to a path of any length, with exactly these permissions from the first moment on.

    The process's umask is changed meanwhile: not for use beside threads that create files.
    Raises OSError naming the path; an existing file is EADDRINUSE.
    """

    def bind(short: str) -> None:
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(short)
        finally:
            os.umask(before)

    _at_short_path(path, bind)


def connect_path(sock: _socket.socket, path: str) -> None:
    """Connect a Unix socket to a path of any length. Raises OSError naming the path."""
    _at_short_path(path, sock.connect)


def send_packet(sock: _socket.socket, data: bytes, descriptors: Sequence[int] = (), flags: int = 0) -> None:
    """Send one packet, on a stream socket one write, with descriptors. Raises OSError when it goes out in part."""
    ancillary = []
    if descriptors:
        raw = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in descriptors)
        ancillary.append((SOL_SOCKET, SCM_RIGHTS, raw))
    sent = sock.sendmsg([data], ancillary, flags | _socket.MSG_NOSIGNAL)
    if sent != len(data):
        raise OSError(90, f"sendmsg: {sent} of {len(data)} bytes sent")


def receive_packet(
    sock: _socket.socket, size: int = 65536, max_descriptors: int = 16, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Receive one packet and its descriptors, which are close-on-exec. Empty data without descriptors is the end.

    Raises OSError (EMSGSIZE) when the packet or its descriptors did not fit; what came with it is closed then.
    """
    space = _socket.CMSG_SPACE(max_descriptors * _INT)
    data, ancillary, got, _ = sock.recvmsg(size, space, flags | _socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, raw in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            usable = len(raw) - len(raw) % _INT
            descriptors += [int.from_bytes(raw[i : i + _INT], sys.byteorder) for i in range(0, usable, _INT)]
    if got & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        for fd in descriptors:
            os.close(fd)
        raise OSError(90, "recvmsg: packet longer than the buffer")
    return data, descriptors
