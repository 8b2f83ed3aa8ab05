"""Terminals: the pair made in the container's own devpts, and its master end sent to whoever asked for it."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
import sys

from gantry.linux import mount as linux_mount
from gantry.linux import path as linux_path
from gantry.linux import unix
from runc.errors import RuntimeFailure, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import ConsoleSize

# asm-generic/ioctls.h
TCGETS, TCSETS = 0x5401, 0x5402
TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
# struct termios of the kernel: four words of flags, of which the second is for output, the line, 19 characters.
_TERMIOS_SIZE, _ONLCR = 36, 0x0004

PTMX = "/dev/ptmx"
_PTMX_DEVICE = os.makedev(5, 2)


def window(height: int, width: int) -> bytes:
    """struct winsize."""
    return b"".join(number.to_bytes(2, sys.byteorder) for number in (height, width, 0, 0))


def open_pair(root_fd: int | None) -> tuple[int, int]:
    """A new terminal of the container: master and slave. With `root_fd` /dev/ptmx is looked up inside that root."""
    try:
        if root_fd is None:
            master = os.open(PTMX, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        else:
            master = linux_path.open_in_root(root_fd, PTMX, os.O_RDWR | os.O_NOCTTY)
        _check_ptmx(master)
        fcntl.ioctl(master, TIOCSPTLCK, b"\0\0\0\0")
        # The peer by descriptor: no path of the container is asked for it.
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFailure(f"unable to open a terminal: {describe(error)}") from error
    return master, slave


def _check_ptmx(fd: int) -> None:
    """An image may have put anything at /dev/ptmx."""
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX_DEVICE:
        raise OSError(errno.ENOTTY, "not a terminal multiplexer", PTMX)


def mount_over_console(root_fd: int, slave: int) -> None:
    """Bind the terminal on /dev/console (config-linux.md "Default Devices")."""
    target = linux_path.create_file_in_root(root_fd, "/dev/console", 0o666)
    try:
        tree = linux_mount.open_tree(linux_path.descriptor_path(slave))
        try:
            linux_mount.move_mount(tree, "", to_fd=target)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def set_size(fd: int, size: ConsoleSize | None) -> None:
    """Set the terminal's size in characters."""
    if size:
        fcntl.ioctl(fd, TIOCSWINSZ, window(size.get("height", 0), size.get("width", 0)))


def plain_newlines(master: int) -> None:
    """Have the terminal pass on newlines as they are: whoever shows them has a terminal that adds the return."""
    settings = bytearray(fcntl.ioctl(master, TCGETS, bytes(_TERMIOS_SIZE)))
    output = int.from_bytes(settings[4:8], sys.byteorder) & ~_ONLCR
    settings[4:8] = output.to_bytes(4, sys.byteorder)
    fcntl.ioctl(master, TCSETS, bytes(settings))


def take(slave: int) -> None:
    """Make the terminal the standard streams, and the controlling terminal of the caller, who leads a session."""
    for fd in (0, 1, 2):
        os.dup2(slave, fd, inheritable=True)
    fcntl.ioctl(0, TIOCSCTTY, 0)


def connect(path: str) -> _socket.socket:
    """Connect to the socket of --console-socket. Raises RuntimeFailure."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        unix.connect_path(sock, path)
    except OSError as error:
        sock.close()
        raise RuntimeFailure(f"console socket: {describe(error)}") from error
    return sock


def send_master(sock: _socket.socket, master: int) -> None:
    """One message whose text is the master's name and which carries its descriptor, as engines expect it."""
    unix.send_packet(sock, PTMX.encode(), (master,))
