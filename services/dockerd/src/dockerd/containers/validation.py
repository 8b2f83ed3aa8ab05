"""Whether the settings of a new container make sense, and which of them this engine does not offer.

Wording is the real engine's where clients read it. Nothing is ignored in silence: what is not offered is refused by
name, what the kernel lacks is dropped with a warning where the real engine does so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dockerd import errors, networks
from dockerd.containers import capabilities, log_options, signals
from dockerd.containers.host import Host
from dockerd.containers.model import ContainerConfig, HostConfig, RestartPolicy

__all__ = [
    "check_config",
    "check_endpoints",
    "check_resources",
    "check_restart_policy",
    "container_mode",
    "drop_unavailable",
    "refuse_unsupported",
    "security_options",
]

_MEMORY_MINIMUM = 6 << 20
_ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()  # noqa: SIM905
)
# Field, its name on the wire, and the values that ask for nothing.
_UNSUPPORTED: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("isolation", "Isolation", ("", "default")),
    ("userns_mode", "UsernsMode", ("", "host")),
    ("cgroup", "Cgroup", ("",)),
    ("links", "Links", (None, [])),
    ("storage_opt", "StorageOpt", (None, {})),
    ("device_requests", "DeviceRequests", (None, [])),
    ("cpu_count", "CpuCount", (0,)),
    ("cpu_percent", "CpuPercent", (0,)),
    ("io_maximum_iops", "IOMaximumIOps", (0,)),
    ("io_maximum_bandwidth", "IOMaximumBandwidth", (0,)),
    ("kernel_memory", "KernelMemory", (0,)),
    ("kernel_memory_tcp", "KernelMemoryTCP", (0,)),
)


def refuse_unsupported(host_config: HostConfig, unknown: Iterable[str]) -> None:
    """Raise NotSupported naming the first HostConfig field that asks for what this engine does not have."""
    for field, name, neutral in _UNSUPPORTED:
        value = getattr(host_config, field)
        if value not in neutral:
            raise errors.NotSupported(f"HostConfig.{name} is not supported by this engine: {value!r}")
    for name in unknown:
        raise errors.NotSupported(f"HostConfig.{name} is not known to this engine")
    log_options.check(host_config.log_config.type, host_config.log_config.config)
    if host_config.volume_driver not in ("", "local"):
        raise errors.NotFound(f"error looking up volume plugin {host_config.volume_driver}: plugin not found")


def check_config(config: ContainerConfig, host_config: HostConfig) -> None:
    """Raise InvalidParameter for what contradicts itself or cannot be."""
    if not config.entrypoint and not config.cmd:
        raise errors.InvalidParameter("no command specified")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise errors.InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for variable in config.env or ():
        if not variable or variable.startswith("="):
            raise errors.InvalidParameter(f"invalid environment variable: {variable}")
    if config.stop_signal:
        signals.parse(config.stop_signal)
    for name in (config.hostname, config.domainname):
        if len(name) > 63 or not re.fullmatch(r"[A-Za-z0-9_.-]*", name):
            raise errors.InvalidParameter(f"invalid hostname or domainname: {name}")
    for port in config.exposed_ports or {}:
        _check_port(port)
    _check_host(host_config)
    _check_modes(config, host_config)


def _check_host(host_config: HostConfig) -> None:
    check_restart_policy(host_config.restart_policy, host_config.auto_remove)
    capabilities.normalize(host_config.cap_add, "CapAdd")
    capabilities.normalize(host_config.cap_drop, "CapDrop")
    security_options(host_config)
    if host_config.shm_size < 0:
        raise errors.InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host_config.oom_score_adj <= 1000:
        raise errors.InvalidParameter(
            f"Invalid value {host_config.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    for port, bindings in host_config.port_bindings.items():
        _check_port(port)
        for binding in bindings or ():
            if not re.fullmatch(r"(\d{1,5}(-\d{1,5})?)?", binding.host_port) or _too_large(binding.host_port):
                raise errors.InvalidParameter(f'invalid port specification: "{binding.host_port}"')
    for limit in host_config.ulimits or ():
        if limit.name not in _ULIMITS:
            raise errors.InvalidParameter(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            raise errors.InvalidParameter(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
    for host in host_config.extra_hosts or ():
        if ":" not in host:
            raise errors.InvalidParameter(f'bad format for add-host: "{host}"')
    if host_config.runtime not in ("", "runc", "io.containerd.runc.v2"):
        raise errors.InvalidParameter(f"unknown or invalid runtime name: {host_config.runtime}")


def _too_large(port: str) -> bool:
    return any(int(part) > 65535 for part in port.split("-") if part)


def _check_port(port: str) -> None:
    number, _, protocol = port.partition("/")
    if not number.isdecimal() or int(number) > 65535 or (protocol and protocol not in ("tcp", "udp", "sctp")):
        raise errors.InvalidParameter(f"invalid port specification: {port!r}")


def container_mode(mode: str) -> str | None:
    """The container that ``container:NAME`` (of a network, pid or ipc mode) names; None for any other mode."""
    kind, separator, name = mode.partition(":")
    return name if separator and kind == "container" else None


def _check_modes(config: ContainerConfig, host_config: HostConfig) -> None:
    for field, mode, allowed in (
        ("PidMode", host_config.pid_mode, ("", "host")),
        ("IpcMode", host_config.ipc_mode, ("", "host", "private", "shareable", "none")),
        ("UTSMode", host_config.uts_mode, ("", "host")),
        ("CgroupnsMode", host_config.cgroupns_mode, ("", "host", "private")),
    ):
        joins = container_mode(mode) if field in ("PidMode", "IpcMode") else None
        if mode not in allowed and not joins:
            raise errors.InvalidParameter(f"invalid {field}: {mode}")
    network = host_config.network_mode
    if container_mode(network) == "":
        raise errors.InvalidParameter("Invalid network mode: container: needs a container's name or id")
    if container_mode(network) is not None:
        conflicts: tuple[tuple[object, str], ...] = (
            (host_config.port_bindings, "port publishing and the container type network mode"),
            (host_config.publish_all_ports, "port publishing and the container type network mode"),
            (config.exposed_ports, "port exposing and the container type network mode"),
            (host_config.dns, "dns and the network mode"),
            (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
            (config.mac_address, "mac-address and the network mode"),
        )
        for value, words in conflicts:
            if value:
                raise errors.InvalidParameter(f"conflicting options: {words}")


def check_restart_policy(policy: RestartPolicy, auto_remove: bool) -> None:
    """Raise InvalidParameter for a policy that does not exist or does not go with ``--rm``."""
    if policy.name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise errors.InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise errors.InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise errors.InvalidParameter("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if auto_remove and policy.name not in ("", "no"):
        raise errors.InvalidParameter("can't create 'AutoRemove' container with restart policy")


def check_endpoints(endpoints: Mapping[str, Mapping[str, Any]], mode: str) -> str:
    """Refuse what NetworkingConfig asks for beyond what a network of ``mode`` can have; returns its hardware address.

    Raises InvalidParameter, NotSupported naming what this engine does not have.
    """
    if mode == "host" and any(name not in ("host", "default") for name in endpoints):
        raise errors.InvalidParameter("conflicting options: cannot attach other networks to a host-mode container")
    wanted = {name: networks.membership.parse(name, settings) for name, settings in endpoints.items()}
    own = wanted.get(mode) or wanted.get("default")
    return own.hardware_address if own is not None else ""


def security_options(host_config: HostConfig) -> dict[str, str]:
    """``--security-opt`` by name; ``seccomp`` and ``no-new-privileges`` are acted on.

    ``label`` and ``apparmor`` are taken where they switch off what this engine does not have. Raises InvalidParameter
    for anything else.
    """
    options: dict[str, str] = {}
    for text in host_config.security_opt or ():
        name, separator, value = text.partition("=")
        if not separator:
            name, separator, value = text.partition(":")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            options[name] = value or "true"
        elif name == "seccomp" and value:
            options[name] = value
        elif (name, value) == ("label", "disable"):
            continue
        elif name == "apparmor" and value in ("unconfined", "docker-default"):
            if value != "unconfined":
                raise errors.NotSupported(f"AppArmor profiles are not supported (SecurityOpt {text!r})")
        elif name == "writable-cgroups":
            raise errors.NotSupported(f"SecurityOpt {text!r} is not supported")
        else:
            raise errors.InvalidParameter(f'invalid --security-opt 2: "{text}"')
    return options


def check_resources(resources: HostConfig, host: Host) -> None:
    """Raise InvalidParameter for limits that contradict each other or that the machine cannot have."""
    _check_memory(resources)
    if resources.nano_cpus:
        if resources.cpu_period:
            raise errors.InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
        if resources.cpu_quota:
            raise errors.InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
        if not 0 < resources.nano_cpus <= len(host.cpus) * 10**9:
            raise errors.InvalidParameter(
                f"range of CPUs is from 0.01 to {len(host.cpus)}.00, as there are only {len(host.cpus)} CPUs available"
            )
    if resources.cpu_shares < 0:
        raise errors.InvalidParameter(f"invalid CPU shares ({resources.cpu_shares}): value must be a positive integer")
    if resources.cpu_period and not 1000 <= resources.cpu_period <= 1_000_000:
        raise errors.InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if resources.cpu_quota > 0 and resources.cpu_quota < 1000:
        raise errors.InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    _check_cpuset(resources.cpuset_cpus, host.cpus)
    if resources.blkio_weight and not 10 <= resources.blkio_weight <= 1000:
        raise errors.InvalidParameter("Range of blkio weight is from 10 to 1000")


def _check_memory(resources: HostConfig) -> None:
    memory, swap = resources.memory, resources.memory_swap
    if memory and memory < _MEMORY_MINIMUM:
        raise errors.InvalidParameter("Minimum memory limit allowed is 6MB")
    if memory and swap > 0 and swap < memory:
        raise errors.InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not memory and swap > 0:
        raise errors.InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if swap < -1:
        raise errors.InvalidParameter(f"invalid memory-swap value: {swap}")
    reservation = resources.memory_reservation
    if reservation and reservation < _MEMORY_MINIMUM:
        raise errors.InvalidParameter("Minimum memory reservation allowed is 6MB")
    if memory and reservation > memory:
        raise errors.InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    swappiness = resources.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise errors.InvalidParameter(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")


def _check_cpuset(text: str, available: frozenset[int]) -> None:
    if not text:
        return
    wanted: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) - int(first) > 8192:
            raise errors.InvalidParameter(f"Invalid value {text} for cpuset cpus")
        wanted.update(range(int(first), int(last or first) + 1))
    if not wanted <= available:
        have = _ranges(available)
        raise errors.InvalidParameter(f"Requested CPUs are not available - requested {text}, available: {have}")


def _ranges(numbers: Iterable[int]) -> str:
    """``0-3,8``."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, ends)) for ends in found)


def drop_unavailable(resources: HostConfig, host: Host) -> tuple[HostConfig, list[str]]:
    """The settings without the limits that this kernel lacks, and a warning for each of them."""
    warnings: list[str] = []
    changes: dict[str, object] = {}

    def drop(field: str, neutral: object, warning: str) -> None:
        changes[field] = neutral
        warnings.append(warning)

    if resources.memory_swap > 0 and not host.swap_limit:
        warning = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
        drop("memory_swap", 0, warning + "Memory limited without swap.")
    if resources.memory_swappiness not in (None, -1) and not host.swappiness:
        warning = "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
        drop("memory_swappiness", None, warning + "Memory swappiness discarded.")
    if resources.oom_kill_disable and not host.oom_kill_disable:
        drop("oom_kill_disable", None, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
    if resources.blkio_weight and not host.blkio_weight:
        warning = "Your kernel does not support Block I/O weight or the cgroup is not mounted. "
        drop("blkio_weight", 0, warning + "Weight discarded.")
    if (resources.pids_limit or 0) > 0 and not host.pids:
        warning = "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
        drop("pids_limit", None, warning + "PIDs limit discarded.")
    if (resources.cpu_realtime_period or resources.cpu_realtime_runtime) and not host.cpu_realtime:
        raise errors.InvalidParameter("Your kernel does not support CPU real-time scheduler")
    if resources.oom_kill_disable and not resources.memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the "
            "system running out of resources."
        )
    return msgspec.structs.replace(resources, **changes), warnings
