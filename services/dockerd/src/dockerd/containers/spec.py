"""The OCI runtime specification of a container, computed from its settings: no file is read and nothing is made here.

Defaults are those of the real engine. What has to be looked up (the user's numbers, devices, paths of namespaces) comes
in as a :class:`Surroundings`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dockerd.containers import capabilities, seccomp, validation
from dockerd.containers.devices import Device
from dockerd.containers.model import Container, HostConfig, ThrottleDevice
from dockerd.containers.mounts import oci_mounts, tmpfs_mounts
from dockerd.containers.users import Identity

__all__ = ["DEFAULT_PATH", "INIT_PATH", "SPEC_TYPE_URL", "Surroundings", "build", "environment", "resources"]

SPEC_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_PATH = "/sbin/docker-init"

_OCI_VERSION = "1.2.0"
_DEVPTS_OPTIONS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
# Major, minor: zero, null, urandom, random, tty, console. The runtime adds those that it makes itself.
_ALLOWED_DEVICES = ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1))


@dataclass(frozen=True)
class Surroundings:
    """What a container's specification takes from the world around it.

    ``network_namespace`` is a path to join, empty for the host's. ``pid_namespace`` and ``ipc_namespace`` are paths to
    join, or empty. ``shm_path`` is a directory of the host to be /dev/shm, empty for one of the container's own.
    ``network_files`` are (path on the host, destination). ``init`` is the init program's path on the host.
    ``block_devices`` maps the paths of throttled devices to their numbers.
    """

    user: Identity
    network_namespace: str = ""
    pid_namespace: str = ""
    ipc_namespace: str = ""
    shm_path: str = ""
    network_files: Sequence[tuple[str, str]] = ()
    devices: Sequence[Device] = ()
    cgroup_version: int = 1
    init: str = ""
    block_devices: dict[str, tuple[int, int]] = field(default_factory=dict)


def build(container: Container, around: Surroundings) -> dict[str, Any]:
    """``config.json`` for the container."""
    config, host_config = container.config, container.host_config
    granted = capabilities.effective(
        capabilities.normalize(host_config.cap_add, "CapAdd"),
        capabilities.normalize(host_config.cap_drop, "CapDrop"),
        privileged=host_config.privileged,
    )
    spec: dict[str, Any] = {
        "ociVersion": _OCI_VERSION,
        "process": _process(container, around, granted),
        "root": {"path": "rootfs", "readonly": host_config.readonly_rootfs},
        "mounts": _mounts(container, around),
        "linux": _linux(container, around, granted),
    }
    if host_config.uts_mode != "host" and config.hostname:
        spec["hostname"] = config.hostname
    if host_config.annotations:
        spec["annotations"] = dict(host_config.annotations)
    return spec


def environment(container: Container, extra: Iterable[str] = (), *, tty: bool | None = None) -> list[str]:
    """The process's variables: the engine's defaults, then the container's, then ``extra``; the last word counts."""
    config = container.config
    variables = {"PATH": f"PATH={DEFAULT_PATH}", "HOSTNAME": f"HOSTNAME={config.hostname}"}
    if config.tty if tty is None else tty:
        variables["TERM"] = "TERM=xterm"
    for entry in [*(config.env or ()), *extra]:
        name, separator, _ = entry.partition("=")
        if separator:
            variables[name] = entry
        else:
            variables.pop(name, None)  # a name alone takes the variable away
    return list(variables.values())


def _process(container: Container, around: Surroundings, granted: list[str]) -> dict[str, Any]:
    config, host_config = container.config, container.host_config
    args = [container.path, *container.args]
    if around.init:
        args = [INIT_PATH, "--", *args]
    process: dict[str, Any] = {
        "user": {
            "uid": around.user.uid,
            "gid": around.user.gid,
            "additionalGids": list(around.user.additional_gids),
        },
        "args": args,
        "env": environment(container),
        "cwd": config.working_dir or "/",
        "capabilities": process_capabilities(granted),
        "oomScoreAdj": host_config.oom_score_adj,
    }
    if config.tty:
        process["terminal"] = True
        height, width = host_config.console_size
        if height and width:
            process["consoleSize"] = {"height": height, "width": width}
    if validation.security_options(host_config).get("no-new-privileges") == "true":
        process["noNewPrivileges"] = True
    if host_config.ulimits:
        process["rlimits"] = [
            {"type": f"RLIMIT_{limit.name.upper()}", "hard": _limit(limit.hard), "soft": _limit(limit.soft)}
            for limit in host_config.ulimits
        ]
    return process


def process_capabilities(granted: list[str]) -> dict[str, list[str]]:
    """``process.capabilities``: no inheritable and no ambient ones, so that a change of user loses them."""
    return {"bounding": granted, "effective": granted, "permitted": granted}


def _limit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1  # RLIM_INFINITY


def _linux(container: Container, around: Surroundings, granted: list[str]) -> dict[str, Any]:
    host_config = container.host_config
    parent = host_config.cgroup_parent or "/docker"
    linux: dict[str, Any] = {
        "resources": resources(host_config, around) | {"devices": _device_rules(host_config, around)},
        "cgroupsPath": posixpath.join("/", parent, container.id),
        "namespaces": _namespaces(host_config, around),
        "maskedPaths": host_config.masked_paths or [],
        "readonlyPaths": host_config.readonly_paths or [],
    }
    sysctls = _sysctls(container)
    if sysctls:
        linux["sysctl"] = sysctls
    if around.devices:
        linux["devices"] = [device.oci() for device in around.devices]
    if not host_config.privileged:
        profile = seccomp.profile_for(validation.security_options(host_config).get("seccomp", ""), granted)
        if profile is not None:
            linux["seccomp"] = profile
    shared = next((point.propagation for point in container.mounts if "shared" in point.propagation), "")
    slave = any("slave" in point.propagation for point in container.mounts)
    if shared or slave:
        # A mount inside can only be shared or slave when the root that it is made below is.
        linux["rootfsPropagation"] = "shared" if shared else "rslave"
    return linux


def _sysctls(container: Container) -> dict[str, str]:
    host_config = container.host_config
    sysctls: dict[str, str] = {}
    if host_config.network_mode != "host" and validation.container_mode(host_config.network_mode) is None:
        # In a network of one's own there is no port and no ping group that needs guarding.
        sysctls = {
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": "0 2147483647",
        }
    if container.config.domainname and host_config.uts_mode != "host":
        sysctls["kernel.domainname"] = container.config.domainname
    return sysctls | (host_config.sysctls or {})


def _namespaces(host_config: HostConfig, around: Surroundings) -> list[dict[str, str]]:
    namespaces: list[dict[str, str]] = [{"type": "mount"}]
    if host_config.network_mode != "host":
        namespaces.append(_namespace("network", around.network_namespace))
    if host_config.uts_mode != "host":
        namespaces.append({"type": "uts"})
    if host_config.pid_mode != "host":
        namespaces.append(_namespace("pid", around.pid_namespace))
    if host_config.ipc_mode != "host":
        namespaces.append(_namespace("ipc", around.ipc_namespace))
    if host_config.cgroupns_mode == "private":
        namespaces.append({"type": "cgroup"})
    return namespaces


def _namespace(kind: str, path: str) -> dict[str, str]:
    return {"type": kind, "path": path} if path else {"type": kind}


def _mounts(container: Container, around: Surroundings) -> list[dict[str, Any]]:
    host_config = container.host_config
    own = [*oci_mounts(container.mounts), *tmpfs_mounts(host_config.tmpfs)]
    taken = {mount["destination"] for mount in own}
    mounts = [
        mount
        for mount in _default_mounts(host_config, around)
        if mount["destination"] not in taken
        # A /dev of the user's own stays as it is.
        and not ("/dev" in taken and mount["destination"].startswith("/dev/"))
    ]
    if around.init:
        mounts.append({"destination": INIT_PATH, "type": "bind", "source": around.init, "options": ["bind", "ro"]})
    options = ["rbind", *(["ro"] if host_config.readonly_rootfs else []), "rprivate"]
    files = [
        {"destination": destination, "type": "bind", "source": source, "options": options}
        for source, destination in around.network_files
        if destination not in taken
    ]
    # Fewer components first: a mount must not cover one that was made below it.
    return mounts + sorted([*own, *files], key=lambda mount: len(mount["destination"].split("/")))


def _default_mounts(host_config: HostConfig, around: Surroundings) -> list[dict[str, Any]]:
    writable = host_config.privileged
    mounts: list[dict[str, Any]] = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", *([] if writable else ["ro"])),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *([] if writable else ["ro"]), "nosuid", "noexec", "nodev"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    ]
    if around.shm_path:
        mounts.append(_mount("/dev/shm", "bind", around.shm_path, "rbind", "rprivate"))
    elif host_config.ipc_mode != "none":
        size = f"size={host_config.shm_size}"
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", size))
    return mounts


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _device_rules(host_config: HostConfig, around: Surroundings) -> list[dict[str, Any]]:
    if host_config.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in _ALLOWED_DEVICES
    ]
    rules += [device.rule() for device in around.devices]
    for text in host_config.device_cgroup_rules or ():
        kind, numbers, access = text.split()
        major, _, minor = numbers.partition(":")
        rules.append({"allow": True, "type": kind, "major": _number(major), "minor": _number(minor), "access": access})
    return rules


def _number(text: str) -> int:
    return -1 if text == "*" else int(text)


def resources(host_config: HostConfig, around: Surroundings | None = None) -> dict[str, Any]:
    """``linux.resources`` without the devices; also what ``Tasks.Update`` is sent."""
    found: dict[str, Any] = {}
    for name, section in (
        ("memory", _memory(host_config)),
        ("cpu", _cpu(host_config)),
        ("blockIO", _block_io(host_config, around.block_devices if around else {})),
    ):
        if section:
            found[name] = section
    if host_config.pids_limit is not None:
        found["pids"] = {"limit": host_config.pids_limit if host_config.pids_limit > 0 else -1}
    return found


def _memory(host_config: HostConfig) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if host_config.memory:
        memory["limit"] = host_config.memory
    if host_config.memory_reservation:
        memory["reservation"] = host_config.memory_reservation
    if host_config.memory_swap:
        memory["swap"] = host_config.memory_swap
    if host_config.memory_swappiness is not None and host_config.memory_swappiness >= 0:
        memory["swappiness"] = host_config.memory_swappiness
    if host_config.oom_kill_disable:
        memory["disableOOMKiller"] = True
    return memory


def _cpu(host_config: HostConfig) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if host_config.cpu_shares:
        cpu["shares"] = host_config.cpu_shares
    if host_config.nano_cpus:
        # NanoCpus are billionths of a processor; the kernel gives microseconds in each period of 100 ms.
        cpu["period"] = 100_000
        cpu["quota"] = host_config.nano_cpus * 100_000 // 1_000_000_000
    if host_config.cpu_period:
        cpu["period"] = host_config.cpu_period
    if host_config.cpu_quota:
        cpu["quota"] = host_config.cpu_quota
    if host_config.cpu_realtime_period:
        cpu["realtimePeriod"] = host_config.cpu_realtime_period
    if host_config.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = host_config.cpu_realtime_runtime
    if host_config.cpuset_cpus:
        cpu["cpus"] = host_config.cpuset_cpus
    if host_config.cpuset_mems:
        cpu["mems"] = host_config.cpuset_mems
    return cpu


def _block_io(host_config: HostConfig, numbers: dict[str, tuple[int, int]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if host_config.blkio_weight:
        found["weight"] = host_config.blkio_weight
    if host_config.blkio_weight_device:
        found["weightDevice"] = [
            _at(numbers[entry.path]) | {"weight": entry.weight} for entry in host_config.blkio_weight_device
        ]
    throttles: tuple[tuple[str, list[ThrottleDevice] | None], ...] = (
        ("throttleReadBpsDevice", host_config.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host_config.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host_config.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host_config.blkio_device_write_iops),
    )
    for name, entries in throttles:
        if entries:
            found[name] = [_at(numbers[entry.path]) | {"rate": entry.rate} for entry in entries]
    return found


def _at(number: tuple[int, int]) -> dict[str, int]:
    return {"major": number[0], "minor": number[1]}
