"""Learning that the kernel killed for want of memory: an eventfd on v1, inotify on v2; nothing is polled."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable

from shim.cgroups import Cgroup
from shim.loop import Loop

_log = logging.getLogger(__name__)
_IN_MODIFY = 0x2


class OOMWatcher:
    """Watches cgroups of containers and names the container for each kill."""

    def __init__(self, loop: Loop, on_oom: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_oom = on_oom
        self._descriptors: dict[str, int] = {}
        self._kills: dict[str, int] = {}

    def add(self, container: str, cgroup: Cgroup) -> None:
        """Watches a container. A cgroup that cannot be watched is noted in the log and costs only the event."""
        self.remove(container)
        directory = cgroup.directory("memory")
        if not directory:
            return
        try:
            descriptor = _inotify(directory) if cgroup.unified else _eventfd(directory)
        except OSError as error:
            _log.warning("out-of-memory events of %s: %s", container, error)
            return
        self._descriptors[container] = descriptor
        self._kills[container] = _kills(directory, unified=bool(cgroup.unified))
        self._loop.on_readable(
            descriptor, lambda: self._changed(container, descriptor, directory, bool(cgroup.unified))
        )

    def _changed(self, container: str, descriptor: int, directory: str, unified: bool) -> None:
        os.read(descriptor, 4096)
        if not os.path.exists(directory):
            # v1 signals the removal of the cgroup in the same way.
            self.remove(container)
            return
        kills = _kills(directory, unified=unified)
        # v1 kernels without the counter only say that the limit was hit.
        if kills > self._kills[container] or (kills == 0 and not unified):
            self._on_oom(container)
        self._kills[container] = kills

    def remove(self, container: str) -> None:
        """Ends the watch."""
        descriptor = self._descriptors.pop(container, -1)
        if descriptor >= 0:
            self._loop.forget(descriptor)
            os.close(descriptor)


def _eventfd(directory: str) -> int:
    """Registers with cgroup.event_control (kernel: cgroup-v1/memory.rst, "OOM Control")."""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(os.path.join(directory, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open(os.path.join(directory, "cgroup.event_control"), "w", encoding="ascii") as file:
                file.write(f"{event} {control}")
        finally:
            os.close(control)
    except OSError:
        os.close(event)
        raise
    return event


def _inotify(directory: str) -> int:
    """memory.events changes are file modifications (kernel: cgroup-v2.rst)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    path = os.path.join(directory, "memory.events")
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) < 0:
        number = ctypes.get_errno()
        if descriptor >= 0:
            os.close(descriptor)
        raise OSError(number, f"inotify: {os.strerror(number)}", path)
    return descriptor


def _kills(directory: str, *, unified: bool) -> int:
    path = os.path.join(directory, "memory.events" if unified else "memory.oom_control")
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except OSError:
        return 0
    return 0
