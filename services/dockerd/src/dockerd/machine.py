"""What this machine is and can do, as ``docker info`` and ``docker version`` show it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import uuid
from dataclasses import dataclass
from functools import cache

__all__ = [
    "ARCHITECTURES",
    "Cgroups",
    "Runtime",
    "backing_filesystem",
    "cgroups",
    "engine_id",
    "memory_total",
    "open_files",
    "operating_system",
    "runtime",
    "security_options",
    "usable_cpus",
]

CGROUP2_MAGIC = 0x63677270

ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "i686": "386",
}
"""The kernel's names of architectures and Go's, which the API uses."""


@dataclass(frozen=True)
class Cgroups:
    """The machine's control groups: the version in use, and which limits can be set."""

    version: str
    memory: bool
    swap: bool
    cpu_shares: bool
    cpu_quota: bool
    cpuset: bool
    pids: bool
    oom_kill_disable: bool
    kernel_memory_tcp: bool


@cache
def cgroups() -> Cgroups:
    """Look at /sys/fs/cgroup, once."""
    root = "/sys/fs/cgroup"
    if os.path.exists(os.path.join(root, "cgroup.controllers")):
        controllers = _words(os.path.join(root, "cgroup.controllers"))
        return Cgroups(
            "2",
            "memory" in controllers,
            "memory" in controllers and _swap_accounting(root),
            "cpu" in controllers,
            "cpu" in controllers,
            "cpuset" in controllers,
            "pids" in controllers,
            oom_kill_disable=False,
            kernel_memory_tcp=False,
        )

    def has(controller: str, name: str) -> bool:
        return os.path.exists(os.path.join(root, controller, name))

    return Cgroups(
        "1",
        has("memory", "memory.limit_in_bytes"),
        has("memory", "memory.memsw.limit_in_bytes"),
        has("cpu", "cpu.shares"),
        has("cpu", "cpu.cfs_quota_us"),
        has("cpuset", "cpuset.cpus"),
        os.path.isdir(os.path.join(root, "pids")),
        has("memory", "memory.oom_control"),
        has("memory", "memory.kmem.tcp.limit_in_bytes"),
    )


def _words(path: str) -> set[str]:
    with open(path, encoding="ascii") as file:
        return set(file.read().split())


def _swap_accounting(root: str) -> bool:
    """Whether v2 limits swap: groups have the file then, but there may be none yet, and the root has no limits."""
    with os.scandir(root) as entries:
        groups = [entry.path for entry in entries if os.path.exists(os.path.join(entry.path, "memory.max"))]
    if groups:
        return os.path.exists(os.path.join(groups[0], "memory.swap.max"))
    # It is on unless the kernel was told otherwise (Linux 5.8), or knows no swap at all.
    return os.path.exists("/proc/swaps") and "swapaccount=0" not in _words("/proc/cmdline")


@cache
def operating_system() -> str:
    """The distribution's name for people."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as file:
                values = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        except FileNotFoundError:
            continue
        return values.get("PRETTY_NAME", "Linux").strip("\"'")
    return "Linux"


def memory_total() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def open_files() -> int:
    """Descriptors that this process holds."""
    return len(os.listdir("/proc/self/fd"))


def backing_filesystem(path: str) -> str:
    """The type of the file system that holds ``path``, as the kernel names it; ext4 and its elders are ``extfs``."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[2] == wanted:
                kind = fields[fields.index("-") + 1]
                return "extfs" if kind.startswith("ext") else kind
    return "<unknown>"


@cache
def security_options() -> list[str]:
    """What confines containers on this machine."""
    options = []
    if os.path.exists("/sys/kernel/security/apparmor") and _is_on("/sys/module/apparmor/parameters/enabled"):
        options.append("name=apparmor")
    if os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        options.append("name=seccomp,profile=builtin")
    if cgroups().version == "2":
        options.append("name=cgroupns")
    return options


def _is_on(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() in ("Y", "1")
    except OSError:
        return False


@dataclass(frozen=True)
class Runtime:
    """The OCI runtime: version and commit, empty when it cannot be found."""

    version: str = ""
    commit: str = ""


_runtime_lock = threading.Lock()
_runtime_known: dict[tuple[str, int], Runtime] = {}


def runtime(search_path: str) -> Runtime:
    """Ask the ``runc`` that would be used for its version; asked again when another one was installed."""
    program = shutil.which("runc", path=search_path)
    if program is None:
        return Runtime()
    key = (program, os.stat(program).st_mtime_ns)
    with _runtime_lock:
        if key not in _runtime_known:
            _runtime_known[key] = _ask_runtime(program)
        return _runtime_known[key]


def _ask_runtime(program: str) -> Runtime:
    try:
        reply = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return Runtime()
    version = commit = ""
    for line in reply.stdout.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        if name == "runc":
            version = value.removeprefix("version").strip()
        elif name == "commit:":
            commit = value.strip()
    return Runtime(version, commit)


def engine_id(data_root: str) -> str:
    """The engine's identity, made at its first start and kept."""
    path = os.path.join(data_root, "engine-id")
    try:
        with open(path, encoding="ascii") as file:
            known = file.read().strip()
        if known:
            return known
    except FileNotFoundError:
        pass
    made = str(uuid.uuid4())
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(made)
    os.replace(temporary, path)
    return made
