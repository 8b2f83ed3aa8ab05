"""`runc events`: what a container uses, and when it runs out of memory, one JSON line each."""

from __future__ import annotations

import ctypes
import os
import select
import time

from gantry.linux import process as linux_process
from gantry.linux.libc import check, libc
from runc import cli, jsontext, state
from runc.cgroups import control, stats
from runc.cgroups.hierarchy import V2, Paths
from runc.errors import ContainerNotRunning, RuntimeFailure
from runc.flags import Flag, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc.cli import Context

ARGUMENTS = "<container-id>"
DESCRIPTION = "Prints statistics once with --stats, else every interval, and a line for each out-of-memory kill."
FLAGS = (
    Flag("interval", "set the stats collection interval", value=str, default="5s"),
    Flag("stats", "display the container's stats then exit"),
)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """`5s`, `500ms`, `1m` in seconds. Raises RuntimeFailure unless it is more than nothing."""
    for unit in ("ms", "s", "m", "h"):
        digits = text.removesuffix(unit)
        if digits != text:
            try:
                seconds = float(digits) * _UNITS[unit]
            except ValueError:
                break
            if seconds <= 0:
                raise RuntimeFailure("duration interval must be greater than 0")
            return seconds
    raise RuntimeFailure(f'invalid value "{text}" for flag -interval: parse error')


def _emit(kind: str, container_id: str, data: object = None) -> None:
    line: dict[str, object] = {"type": kind, "id": container_id}
    if data is not None:
        line["data"] = data
    cli.out(jsontext.dumps(line) + "\n")


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Do it."""
    cli.expect_arguments("events", arguments, 1)
    interval = parse_duration(options.text("interval", "5s"))
    container = state.load(context.root, arguments[0])
    if not container.is_running:
        raise RuntimeFailure(f"container with id {container.id} is not running")
    paths = control.paths_of(container)
    if options.has("stats"):
        _emit("stats", container.id, stats.collect(paths))
        return 0
    try:
        pidfd = linux_process.pidfd_open(container.pid)
    except ProcessLookupError:
        raise ContainerNotRunning from None
    watch = _Watch(paths)
    try:
        _follow(container.id, paths, interval, pidfd, watch)
    finally:
        watch.close()
        os.close(pidfd)
    return 0


def _follow(container_id: str, paths: Paths, interval: float, pidfd: int, watch: _Watch) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if watch.fd >= 0:
        poll.register(watch.fd, watch.mask)
    due = time.monotonic() + interval
    while True:
        events = dict(poll.poll(max(0, int((due - time.monotonic()) * 1000) + 1)))
        if watch.fd in events:
            for _ in range(watch.kills()):
                _emit("oom", container_id)
        if pidfd in events:
            return
        if time.monotonic() >= due:
            _emit("stats", container_id, stats.collect(paths))
            due = time.monotonic() + interval


class _Watch:
    """A descriptor that wakes when the kernel runs the group out of memory, and how often it did since."""

    def __init__(self, paths: Paths) -> None:
        self.fd = -1
        self.mask = select.POLLIN
        self._v2 = paths.mode == V2
        self._directory = paths.unified if self._v2 else paths.controllers.get("memory", "")
        self._seen = 0
        if not self._directory:
            return
        if self._v2:
            # kernfs wakes pollers of an events file with POLLPRI (cgroup-v2.rst "memory.events").
            self.fd = os.open(f"{self._directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            self.mask = select.POLLPRI
            self._seen = self._count()
        else:
            # cgroup-v1/memory.rst "OOM Control".
            self.fd = check(libc.eventfd(0, os.O_CLOEXEC | os.O_NONBLOCK), "eventfd")
            control_fd = os.open(f"{self._directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                control.write(self._directory, "cgroup.event_control", f"{self.fd} {control_fd}")
            finally:
                os.close(control_fd)

    def _count(self) -> int:
        return stats.parse_flat(os.pread(self.fd, 4096, 0).decode()).get("oom_kill", 0)

    def kills(self) -> int:
        """How often since the last call. An eventfd is signalled once more when its group is removed."""
        if self._v2:
            now = self._count()
            new, self._seen = now - self._seen, now
            return new
        os.read(self.fd, ctypes.sizeof(ctypes.c_uint64))
        return 1 if os.path.exists(f"{self._directory}/cgroup.event_control") else 0

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            os.close(self.fd)
