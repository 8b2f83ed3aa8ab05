"""Starting a created container: opening the FIFO that its init waits at."""

from __future__ import annotations

import os
import select

from runc import hooks
from runc.errors import RuntimeFailure
from runc.state import oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.logs import Log
    from runc.state import Container


def start(container: Container, log: Log) -> None:
    """Let the created container's program start, then run its poststart hooks. Raises RuntimeFailure."""
    status = container.status
    if status == "stopped":
        raise RuntimeFailure("cannot start a container that has stopped")
    if status == "running" or status == "paused":
        raise RuntimeFailure("cannot start an already running container")
    if status == "creating":
        raise RuntimeFailure("cannot start a container that is still being created")
    _open_fifo(container)
    log.debug(f"init of {container.id} goes on to its program")
    try:
        hooks.run("poststart", container.spec.get("hooks", {}), oci_state(container, "running"))
    except RuntimeFailure as failure:
        # runtime.md "Lifecycle" 8: a failed poststart hook is logged, the container goes on.
        log.warning(failure.message)


def _open_fifo(container: Container) -> None:
    try:
        # Before the FIFO is opened: that lets init go on, and it may have ended and been reaped a moment later.
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        raise RuntimeFailure("container process is already dead") from None
    try:
        _let_go(container, pidfd)
    finally:
        os.close(pidfd)


def _let_go(container: Container, pidfd: int) -> None:
    try:
        # Without blocking: init may be dead, and would never open its end.
        fifo = os.open(container.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RuntimeFailure("cannot start an already running container") from None
    try:
        poll = select.poll()
        poll.register(fifo, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        events = dict(poll.poll())
        if fifo not in events or os.read(fifo, 1) != b"0":
            raise RuntimeFailure("container process is already dead")
        try:
            os.unlink(container.fifo)
        except FileNotFoundError:
            raise RuntimeFailure("cannot start an already running container") from None
    finally:
        os.close(fifo)
