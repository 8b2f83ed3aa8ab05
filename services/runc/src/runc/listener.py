"""SCMP_ACT_NOTIFY: handing the descriptor of a filter's notifications to the agent that answers them.

config-linux.md "Seccomp" (listenerPath, listenerMetadata) and "The Container Process State". From the moment the filter
is installed the process may be stopped at any call that the profile notifies of, until the agent has answered; so it
says with one plain write(2), the only call that may not be notified of, which number the descriptor has, and the
runtime fetches it (pidfd_getfd(2)) and passes it on.
"""

from __future__ import annotations

import _socket
import os

from gantry.linux import process as linux_process
from gantry.linux import unix
from runc import SPEC_VERSION, jsontext, security
from runc.errors import RuntimeFailure, system_text
from runc.messages import FAILED, GO, NOTIFY, READY, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gantry.oci.runtime import Seccomp

ACTION = "SCMP_ACT_NOTIFY"
_UNUSABLE = "write"


class Listener:
    """Where the agent of a container is, and what it is told besides."""

    __slots__ = ("metadata", "path")

    def __init__(self, path: str, metadata: str) -> None:
        self.path = path
        self.metadata = metadata


def plan(profile: Seccomp) -> Listener | None:
    """The agent that the profile needs, None for one that notifies of nothing. Raises RuntimeFailure."""
    if profile["defaultAction"] == ACTION:
        raise RuntimeFailure("SCMP_ACT_NOTIFY cannot be used as default action")
    notified = [name for rule in profile.get("syscalls", []) if rule["action"] == ACTION for name in rule["names"]]
    if not notified:
        return None
    if _UNUSABLE in notified:
        raise RuntimeFailure(f"SCMP_ACT_NOTIFY cannot be used for the {_UNUSABLE} syscall")
    path = profile.get("listenerPath", "")
    if not path:
        raise RuntimeFailure("seccomp listenerPath is not set")
    return Listener(path, profile.get("listenerMetadata", ""))


# In the container


def install(compiled: bytes, channel: Channel) -> None:
    """Install the filter, and wait until the runtime has its notifications. Raises RuntimeFailure, ParentGone."""
    fd = security.install_filter(compiled)
    os.write(channel.fileno(), NOTIFY + b"\0%d" % fd)
    channel.wait_go()
    os.close(fd)


# In the runtime


def expect_ready(channel: Channel, listener: Listener, pid: int, state: Callable[[], dict[str, object]]) -> None:
    """Wait for READY, passing the notifications of the process on before. Raises RuntimeFailure."""
    kind, text = channel.receive()
    if kind == NOTIFY:
        fd = _fetch(pid, int(text))
        try:
            channel.send(GO)
            send(listener, process_state(listener, pid, state()), fd)
        finally:
            os.close(fd)
        kind, text = channel.receive()
    if kind == FAILED:
        raise RuntimeFailure(text)
    if kind != READY:
        raise RuntimeFailure("container init exited before it was ready")


def _fetch(pid: int, number: int) -> int:
    pidfd = linux_process.pidfd_open(pid)
    try:
        return linux_process.pidfd_getfd(pidfd, number)
    except OSError as error:
        raise RuntimeFailure(f"unable to get the seccomp listener of the process: {system_text(error)}") from error
    finally:
        os.close(pidfd)


def process_state(listener: Listener, pid: int, state: dict[str, object]) -> bytes:
    """The container process state, as it goes over the socket."""
    document: dict[str, object] = {"ociVersion": SPEC_VERSION, "fds": ["seccompFd"], "pid": pid}
    if listener.metadata:
        document["metadata"] = listener.metadata
    document["state"] = state
    return jsontext.dumps(document).encode("utf-8", "surrogateescape")


def send(listener: Listener, document: bytes, fd: int) -> None:
    """Connect to the agent, tell it, and close: one state a connection. Raises RuntimeFailure."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        try:
            if listener.path.startswith("@"):  # an abstract address (unix(7))
                sock.connect("\0" + listener.path[1:])
            else:
                unix.connect_path(sock, listener.path)
        except OSError as error:
            raise RuntimeFailure(
                "failed to connect with seccomp agent specified in the seccomp profile: "
                f"dial unix {listener.path}: connect: {system_text(error)}"
            ) from error
        try:
            unix.send_packet(sock, document, (fd,))
        except OSError as error:
            raise RuntimeFailure(f"cannot send seccomp fd to {listener.path}: {system_text(error)}") from error
    finally:
        sock.close()
