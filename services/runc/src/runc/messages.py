"""What a runtime and the first process that it forked say to each other, over a socket pair of packets.

The choreography of `create` (and of `run`, which goes on with `start`):

    runtime                                          init, the container's first process
    -------                                          ------------------------------------
    makes the cgroups
    fork into the new namespaces  ─────────────────> has everything in memory, nothing is sent;
                                                     moves itself into its cgroups, and waits
    writes the id maps, rlimits, oom score
    GO            ─────────────────────────────────> joins namespaces, session keyring, cgroup and time namespaces,
    limits, device rules                             mounts, devices, console
                  <───────────────────────────────── PREPARED: the mounts are made, the old root is still there
    moves network devices,
    prestart and createRuntime hooks (state: creating)
    GO            ─────────────────────────────────> createContainer hooks, masked paths, pivot_root, user,
                                                     capabilities, looks up the program
                  <───────────────────────────────── READY: only the program is left to be started
    saves the state, writes the pid file
    exits                                            opens the FIFO for writing: waits there for `start`,
                                                     then startContainer hooks, seccomp filter, execve

With a seccomp profile that notifies an agent, init says NOTIFY with the number of the descriptor before READY, and
waits for a GO of its own, which it gets when the runtime has fetched the descriptor (see `listener`).

FAILED, with a text, can come instead of any message of init, which ends then. A socket that is closed without READY
means that init died. A runtime that dies closes the socket, and init ends at its next step: nothing is left running
that no state file knows.

The choreography of `exec` is the same without PREPARED: fork into the pid namespace, cgroups, GO, READY; there is no
FIFO, and instead of READY's execve waiting for `start`, the socket is closed by a successful execve. FAILED can follow
READY there.
"""

from __future__ import annotations

import _socket

from gantry.linux import unix
from runc.errors import RuntimeFailure

GO = b"go"
PREPARED = b"prepared"
READY = b"ready"
FAILED = b"failed"
NOTIFY = b"notify"
_SIZE = 65536


class ParentGone(Exception):
    """The runtime ended before it said GO."""


class Channel:
    """One end of the socket pair."""

    __slots__ = ("socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    def send(self, kind: bytes, text: str = "", descriptors: tuple[int, ...] = ()) -> None:
        """Send one message. Raises BrokenPipeError when the other side is gone."""
        unix.send_packet(self.socket, kind + b"\0" + text.encode("utf-8", "surrogateescape")[: _SIZE - 64], descriptors)

    def receive(self) -> tuple[bytes, str]:
        """Receive one message; an empty kind is the end."""
        try:
            data, _ = unix.receive_packet(self.socket, _SIZE)
        except ConnectionResetError:
            return b"", ""
        kind, _, text = data.partition(b"\0")
        return kind, text.decode("utf-8", "surrogateescape")

    def expect(self, wanted: bytes) -> None:
        """Receive the wanted message. Raises RuntimeFailure with the other side's text, or that it ended."""
        kind, text = self.receive()
        if kind == wanted:
            return
        if kind == FAILED:
            raise RuntimeFailure(text)
        raise RuntimeFailure(f"container init exited before it was {wanted.decode()}")

    def wait_go(self) -> None:
        """On init's side: wait for the runtime. Raises ParentGone."""
        if self.receive()[0] != GO:
            raise ParentGone

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self.socket.fileno()


def pair() -> tuple[Channel, Channel]:
    """The runtime's end and init's; both are close-on-exec."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
    return Channel(ours), Channel(theirs)
