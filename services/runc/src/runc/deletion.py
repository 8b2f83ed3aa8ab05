"""Removing a container: its processes, cgroups, and what is kept of it."""

from __future__ import annotations

import os

from runc import hooks
from runc.cgroups import control
from runc.errors import RuntimeFailure
from runc.state import oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.logs import Log
    from runc.state import Container

SIGKILL = 9
PATIENCE = 10.0
"""Seconds that killed processes get to vanish."""


def kill(container: Container) -> None:
    """Kill the container's processes, frozen ones too, and wait until they are gone. Raises RuntimeFailure."""
    paths = control.paths_of(container)
    if container.is_running:
        try:  # noqa: SIM105 (contextlib costs start-up time)
            os.kill(container.pid, SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
    if paths.directories and any(map(os.path.isdir, paths.directories)):
        if control.is_frozen(container):
            control.thaw(paths)
        # Without a pid namespace of its own the first process takes nobody with it.
        if "pid" not in container.namespaces or not _wait_gone(container):
            control.signal_all(paths, SIGKILL)
        if not control.wait_empty(paths, PATIENCE):
            raise RuntimeFailure("container init still running")
    elif not _wait_gone(container):
        raise RuntimeFailure("container init still running")


def _wait_gone(container: Container) -> bool:
    if not container.is_running:
        return True
    import select

    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(int(PATIENCE * 1000)))
    finally:
        os.close(pidfd)


def destroy(container: Container, log: Log) -> None:
    """Remove the cgroups and the directory, then run the poststop hooks. Raises RuntimeFailure."""
    paths = control.paths_of(container)
    if "pid" not in container.namespaces and any(map(os.path.isdir, paths.directories)) and control.processes(paths):
        # What the first process left behind: it shared its pid namespace with the host.
        control.signal_all(paths, SIGKILL)
        control.wait_empty(paths, PATIENCE)
    control.remove(paths)
    if container.systemd_unit:
        _stop_unit(container, log)
    stopped, listed = oci_state(container, "stopped"), container.spec.get("hooks", {})
    container.remove_directory()
    try:
        hooks.run("poststop", listed, stopped)
    except RuntimeFailure as failure:
        # runtime.md "Lifecycle" 12: a failed poststop hook is logged, the container is gone all the same.
        log.warning(failure.message)


def _stop_unit(container: Container, log: Log) -> None:
    """Have systemd forget the container; without systemd there is nothing that would be kept."""
    from runc.cgroups import systemd

    try:
        systemd.stop(container.systemd_unit)
    except RuntimeFailure as failure:
        log.warning(f"removing unit {container.systemd_unit}: {failure.message}")
