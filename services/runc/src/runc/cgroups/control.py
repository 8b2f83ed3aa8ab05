"""Doing it: making a container's groups, putting processes in, limits, freezing, signals, removal."""

from __future__ import annotations

import errno
import os
import time

from runc.cgroups import resources as plan
from runc.cgroups.hierarchy import ROOT, UNIFIED_DIRECTORY, V2, Paths
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gantry.oci.runtime import Resources
    from runc.state import Container

PROCS = "cgroup.procs"
_FREEZE_PATIENCE = 10.0
_REMOVE_PATIENCE = 5.0
_RETRY_PAUSE = 0.002
# Weights are of the I/O scheduler: since Linux 5.0 that is BFQ, with files of its own (block/bfq-iosched.rst).
_PERIODS = (("cpu.rt_period_us", "cpu.rt_runtime_us"), ("cpu.cfs_period_us", "cpu.cfs_quota_us"))
_BFQ_FILES = {"blkio.weight": "blkio.bfq.weight", "blkio.weight_device": "blkio.bfq.weight_device"}


def read(directory: str, file: str) -> str:
    """The text of a group's file, without the last newline."""
    fd = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 65536):
            pieces.append(piece)
        return b"".join(pieces).decode().rstrip("\n")
    finally:
        os.close(fd)


def write(directory: str, file: str, value: str) -> None:
    """Write a group's file. Raises OSError naming it."""
    path = f"{directory}/{file}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {os.strerror(error.errno or 0)}", path) from None
    finally:
        os.close(fd)


def paths_of(container: Container) -> Paths:
    """The groups of a container, from its state."""
    mode = "v1" if container.cgroup_paths else V2
    return Paths(mode, container.cgroup_paths, container.cgroup_unified)


# Making and joining


def create(paths: Paths) -> None:
    """Make the directories. Raises RuntimeFailure when one holds processes already, or can not be made."""
    try:
        made: set[str] = set()
        for name, directory in paths.controllers.items():
            if name == "cpuset":
                _make_cpuset(directory)
            elif directory not in made:
                os.makedirs(directory, 0o755, exist_ok=True)
            made.add(directory)
        if paths.unified:
            if paths.mode == V2:
                _make_unified(paths.unified)
            else:
                os.makedirs(paths.unified, 0o755, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(
            f"unable to apply cgroup configuration: mkdir {error.filename}: {system_text(error)}"
        ) from error


def check_unused(paths: Paths) -> None:
    """Raises RuntimeFailure when the container's groups exist and hold processes, or are frozen."""
    for directory in paths.directories:
        try:
            count = len(read(directory, PROCS).split())
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a threaded group of v2: it has threads of somebody
                continue
            raise
        if count:
            raise RuntimeFailure(f"container's cgroup is not empty: {count} process(es) found")
    if _frozen(paths):
        raise RuntimeFailure("container's cgroup unexpectedly frozen")


def _make_cpuset(directory: str) -> None:
    """A new cpuset is empty and takes no process: each level gets what its parent has (cgroup-v1/cpusets.rst)."""
    if os.path.isdir(directory) and read(directory, "cpuset.cpus") and read(directory, "cpuset.mems"):
        return
    parent = os.path.dirname(directory)
    if not os.path.isdir(parent) or os.path.exists(f"{parent}/cpuset.cpus"):
        _make_cpuset(parent)
    os.makedirs(directory, 0o755, exist_ok=True)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if os.path.exists(f"{parent}/{file}") and not read(directory, file):
            write(directory, file, read(parent, file))


def _make_unified(directory: str) -> None:
    """Make the group, and have every level above pass controllers down (cgroup-v2.rst, "Controlling Controllers")."""
    available = read(ROOT, "cgroup.controllers").split()
    enable = " ".join(f"+{name}" for name in available)
    current = ROOT
    for part in os.path.relpath(directory, ROOT).split("/"):
        if enable:
            try:
                write(current, "cgroup.subtree_control", enable)
            except OSError:
                # One controller that can not be had must not cost the others.
                for name in available:
                    _try_write(current, "cgroup.subtree_control", f"+{name}")
        current = f"{current}/{part}"
        os.makedirs(current, 0o755, exist_ok=True)


def _try_write(directory: str, file: str, value: str) -> bool:
    try:
        write(directory, file, value)
    except OSError:
        return False
    return True


class Joining:
    """How a process that is about to be forked comes into its groups.

    Moving a process by `cgroup.procs` has the kernel wait for a grace period of all processors, which takes longer than
    everything else about a container. A process that moves only itself, by v1's `tasks`, and one that is forked into a
    v2 group (CLONE_INTO_CGROUP) do not (kernel: cgroup_procs_write_start). The files are opened by the runtime: the
    kernel asks for the rights of who opened them, and the process may have none left in its user namespace.
    """

    __slots__ = ("group", "tasks", "unified")

    def __init__(self, directories: list[str], unified: str) -> None:
        self.unified = unified
        self.tasks: list[tuple[str, int]] = []
        self.group = -1
        try:
            for directory in directories:
                self.tasks.append((directory, os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)))
            if unified:
                self.group = os.open(unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise RuntimeFailure(
                f"unable to apply cgroup configuration: open {error.filename}: {system_text(error)}"
            ) from error

    @property
    def descriptors(self) -> list[int]:
        """The files that the child needs."""
        return [fd for _, fd in self.tasks]

    def fork(self, flags: int = 0) -> int:
        """Fork into new namespaces and into the v2 group."""
        # Who forks has loaded it; the commands that do not are spared ctypes.
        from gantry.linux import namespaces as linux_namespaces

        try:
            return linux_namespaces.fork(flags, self.group)
        except OSError as error:
            if self.group < 0 or error.errno not in (errno.EBUSY, errno.E2BIG, errno.EINVAL, errno.EOPNOTSUPP):
                raise
        # The group takes no processes any more (`parent_moves` knows where to put this one), or the kernel is old.
        os.close(self.group)
        self.group = -1
        return linux_namespaces.fork(flags)

    def enter(self) -> None:
        """In the child: move into the v1 groups. Raises RuntimeFailure."""
        for directory, fd in self.tasks:
            try:
                os.write(fd, b"0")
            except OSError as error:
                raise RuntimeFailure(
                    f"unable to apply cgroup configuration: write {directory}/tasks: {system_text(error)}"
                ) from error
            os.close(fd)

    def parent_moves(self, pid: int, fallback: str = "") -> None:
        """In the parent: move the child where `fork` could not put it. Raises RuntimeFailure."""
        if not self.unified or self.group >= 0:
            return
        try:
            _move(self.unified, pid)
        except RuntimeFailure:
            if not fallback:
                raise
            _move(fallback, pid)

    def close(self) -> None:
        """Close the files."""
        for _, fd in self.tasks:
            os.close(fd)
        self.tasks.clear()
        if self.group >= 0:
            os.close(self.group)


def joining(paths: Paths) -> Joining:
    """For the container's own groups. Raises RuntimeFailure."""
    return Joining(list(dict.fromkeys(paths.controllers.values())), paths.unified)


def move(paths: Paths, pid: int) -> None:
    """Move a process into all the groups. Raises RuntimeFailure."""
    for directory in paths.directories:
        _move(directory, pid)


def _move(directory: str, pid: int) -> None:
    try:
        write(directory, PROCS, str(pid))
    except OSError as error:
        raise RuntimeFailure(
            f"unable to apply cgroup configuration: failed to write {pid}: "
            f"open {directory}/{PROCS}: {system_text(error)}"
        ) from error


# Limits


def apply(paths: Paths, resources: Resources) -> None:
    """Write every limit. Raises RuntimeFailure naming the limit; a missing controller fails only when it has one."""
    plan.check_memory(resources.get("memory", {}))
    if paths.mode == V2:
        writes = plan.v2_writes(resources)
    else:
        if resources.get("unified"):
            raise RuntimeFailure("invalid configuration: cannot use unified cgroup resources with cgroup v1")
        writes = plan.v1_writes(resources, _swap_limit(paths))
    late = [_write_period(paths, writes, *files) for files in _PERIODS] if paths.mode != V2 else []
    for item in (*writes, *late):
        if item is not None:
            _apply_one(paths, item)
    shares = resources.get("cpu", {}).get("shares")
    if shares and paths.mode != V2:
        _check_shares(paths, shares)


def _write_period(paths: Paths, writes: list[plan.Write], period_file: str, time_file: str) -> plan.Write | None:
    """Write a period of v1's, taking it out of the list; gives it back when it must come after the time in it.

    Both together must stay below what the group above has, at each moment: which of them goes first depends on what is
    set now, and only trying tells.
    """
    files = [item.file for item in writes]
    if period_file not in files or time_file not in files:
        return None
    period = writes.pop(files.index(period_file))
    directory = paths.controllers.get(period.controller)
    try:
        if directory:
            write(directory, period.file, period.value)
            return None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    return period


def apply_devices(paths: Paths, resources: Resources) -> None:
    """Set the device rules: v1's lines, or v2's program. Raises RuntimeFailure.

    Not before the mounts and devices of the container are made: v1's lines take effect one by one, and the first
    forbids everything.
    """
    if paths.mode == V2:
        _install_device_program(paths, resources)
        return
    for item in plan.v1_device_writes(resources):
        _apply_one(paths, item)


def _swap_limit(paths: Paths) -> int | None:
    directory = paths.controllers.get("memory")
    if not directory:
        return None
    try:
        return int(read(directory, "memory.memsw.limit_in_bytes"))
    except FileNotFoundError:
        return None  # the kernel does not account swap


def _install_device_program(paths: Paths, resources: Resources) -> None:
    from runc.cgroups import bpf, devices

    try:
        bpf.install(paths.unified, devices.policy(resources.get("devices", [])))
    except OSError as error:
        raise RuntimeFailure(f"failed to set the device filter of {paths.unified}: {system_text(error)}") from error


def _apply_one(paths: Paths, item: plan.Write) -> None:
    directory = paths.unified if paths.mode == V2 else paths.controllers.get(item.controller, "")
    if item.file in _BFQ_FILES and directory and not os.path.exists(f"{directory}/{item.file}"):
        item = plan.Write(item.controller, _BFQ_FILES[item.file], item.value)
    if not directory or (item.controller != "devices" and not os.path.exists(f"{directory}/{item.file}")):
        if directory and os.path.isdir(directory) and paths.mode != V2:
            raise RuntimeFailure(
                f"failed to write {item.value!r}: open {directory}/{item.file}: no such file or directory"
            )
        raise RuntimeFailure(f"cannot set {item.controller} limit: container could not join or create cgroup")
    try:
        write(directory, item.file, item.value)
    except OSError as error:
        if item.file == "memory.limit_in_bytes" and error.errno == errno.EBUSY:
            usage = read(directory, "memory.usage_in_bytes")
            peak = read(directory, "memory.max_usage_in_bytes")
            raise RuntimeFailure(
                f"unable to set memory limit to {item.value} (current usage: {usage}, peak usage: {peak})"
            ) from error
        raise RuntimeFailure(
            f"failed to write {item.value!r}: write {directory}/{item.file}: {system_text(error)}"
        ) from error


def _check_shares(paths: Paths, shares: int) -> None:
    """The kernel bends shares that are out of range instead of refusing them."""
    actual = int(read(paths.controllers["cpu"], "cpu.shares"))
    if shares > actual:
        raise RuntimeFailure(f"the maximum allowed cpu-shares is {actual}")
    if shares < actual:
        raise RuntimeFailure(f"the minimum allowed cpu-shares is {actual}")


# Freezing


def _frozen(paths: Paths) -> bool:
    try:
        if paths.mode == V2:
            return read(paths.unified, "cgroup.freeze") == "1"
        directory = paths.controllers.get("freezer")
        return bool(directory) and read(directory or "", "freezer.state") != "THAWED"
    except FileNotFoundError:
        return False


def is_frozen(container: Container) -> bool:
    """Is the container paused?"""
    return _frozen(paths_of(container))


def freeze(paths: Paths) -> None:
    """Stop every process in the group. Raises RuntimeFailure where there is no freezer, or it does not come to rest."""
    _require_groups(paths)
    deadline = time.monotonic() + _FREEZE_PATIENCE
    if paths.mode == V2:
        write(paths.unified, "cgroup.freeze", "1")
        while "frozen 1" not in read(paths.unified, "cgroup.events"):
            if time.monotonic() > deadline:
                write(paths.unified, "cgroup.freeze", "0")
                raise RuntimeFailure("unable to freeze: the processes did not come to rest")
            time.sleep(_RETRY_PAUSE)
        return
    directory = _freezer(paths)
    # FREEZING may last for ever when a process forks meanwhile: say it again until it holds (cgroup-v1/freezer).
    while True:
        write(directory, "freezer.state", "FROZEN")
        if read(directory, "freezer.state") == "FROZEN":
            return
        if time.monotonic() > deadline:
            write(directory, "freezer.state", "THAWED")
            raise RuntimeFailure("unable to freeze: the processes did not come to rest")
        time.sleep(_RETRY_PAUSE)


def thaw(paths: Paths) -> None:
    """Let the processes of the group go on."""
    _require_groups(paths)
    if paths.mode == V2:
        write(paths.unified, "cgroup.freeze", "0")
    else:
        write(_freezer(paths), "freezer.state", "THAWED")


def _require_groups(paths: Paths) -> None:
    if not paths.directories:
        raise RuntimeFailure("cannot toggle freezer: cgroups not configured for container")


def _freezer(paths: Paths) -> str:
    directory = paths.controllers.get("freezer")
    if not directory:
        raise RuntimeFailure("cannot set freezer limit: container could not join or create cgroup")
    return directory


# Processes


def _main_directory(paths: Paths) -> str:
    return paths.unified if paths.mode == V2 else (paths.controllers.get("devices") or paths.directories[0])


def _tree(directory: str) -> Iterator[str]:
    """The group and all below it, the deepest first."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for child in below:
        yield from _tree(child)
    yield directory


def processes(paths: Paths, *, everywhere: bool = True) -> list[int]:
    """The pids in the container's group, with those of its sub-groups."""
    main = _main_directory(paths)
    found: list[int] = []
    for directory in _tree(main) if everywhere else [main]:
        try:
            # 0 stands for a process outside our pid namespace; to kill(2) it would mean our own process group.
            found += [int(word) for word in read(directory, PROCS).split() if word != "0"]
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    return found


def signal_all(paths: Paths, number: int) -> None:
    """Send a signal to every process of the group, frozen meanwhile where that can be, so that none escapes by fork."""
    kill_file = f"{paths.unified}/cgroup.kill" if paths.mode == V2 else ""
    if number == 9 and kill_file and os.path.exists(kill_file):
        write(paths.unified, "cgroup.kill", "1")
        return
    can_freeze = paths.mode == V2 or "freezer" in paths.controllers
    if can_freeze:
        freeze(paths)
    try:
        for pid in processes(paths):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    finally:
        if can_freeze:
            thaw(paths)


def wait_empty(paths: Paths, patience: float) -> bool:
    """Wait up to `patience` seconds until no process is left in the group."""
    deadline = time.monotonic() + patience
    while processes(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(_RETRY_PAUSE)
    return True


# Removal


def remove(paths: Paths) -> None:
    """Remove the groups and those below them. Raises RuntimeFailure when one stays in use."""
    deadline = time.monotonic() + _REMOVE_PATIENCE
    for top in paths.directories:
        for directory in _tree(top):
            _remove_one(directory, deadline)


def _remove_one(directory: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # The last process is gone for wait(2) before it is for its group.
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_RETRY_PAUSE)
                continue
            raise RuntimeFailure(f"unable to remove cgroup: rmdir {directory}: {system_text(error)}") from error


def mount_point(controller: str) -> str:
    """Where a v1 controller, or the v2 hierarchy of a hybrid machine, is mounted by convention."""
    return f"{ROOT}/{controller.removeprefix('name=') or UNIFIED_DIRECTORY}"
