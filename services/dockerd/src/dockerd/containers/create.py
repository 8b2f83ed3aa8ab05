"""A create request and an image become the settings of a container: checked and complete, nothing made yet."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dockerd import errors
from dockerd.config import Config
from dockerd.containers import health, validation
from dockerd.containers.host import Host
from dockerd.containers.model import ContainerConfig, HostConfig, LogConfig, PortBinding, RestartPolicy
from dockerd.containers.wire import from_wire, unknown_keys

__all__ = [
    "MASKED_PATHS",
    "READONLY_PATHS",
    "Request",
    "Settings",
    "log_attributes",
    "merge",
    "new_id",
    "parse",
    "settle",
]

MASKED_PATHS = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_DEFAULT_SHM_SIZE = 64 << 20


@dataclass(frozen=True)
class Request:
    """The body of ``POST /containers/create``. ``endpoints`` is NetworkingConfig.EndpointsConfig."""

    config: ContainerConfig
    host_config: HostConfig
    endpoints: Mapping[str, dict[str, Any]]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a container will be created with. ``path`` and ``args`` are its command."""

    config: ContainerConfig
    host_config: HostConfig
    endpoints: dict[str, dict[str, Any]]
    path: str
    args: list[str]
    warnings: list[str] = field(default_factory=list)


def new_id() -> str:
    """A container's id: 64 hexadecimal digits. Not all of the first 12 are decimal, so that it is no number."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdecimal():
            return candidate


def parse(body: Mapping[str, Any]) -> Request:
    """Read a create request. Raises InvalidParameter naming a field of the wrong type."""
    plain = {key.lower(): value for key, value in body.items()}
    host = plain.pop("hostconfig", None)
    networking = plain.pop("networkingconfig", None)
    for key in ("cmd", "entrypoint", "shell"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
    if not plain:
        raise errors.InvalidParameter("config cannot be empty in order to create a container")
    host = _mapping(host, "HostConfig")
    endpoints = {}
    for key, value in _mapping(networking, "NetworkingConfig").items():
        if key.lower() == "endpointsconfig":
            endpoints = {
                name: _mapping(entry, f"NetworkingConfig.EndpointsConfig.{name}")
                for name, entry in _mapping(value, "NetworkingConfig.EndpointsConfig").items()
            }
    return Request(
        config=from_wire(plain, ContainerConfig),
        host_config=from_wire(host, HostConfig),
        endpoints=endpoints,
        unknown=tuple(unknown_keys(host, HostConfig)),
    )


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise errors.InvalidParameter(f"invalid JSON: {name} must be an object")
    return dict(value)


def settle(
    request: Request, image_config: Mapping[str, Any], container_id: str, settings: Config, host: Host
) -> Settings:
    """Merge the image's settings into the request's, fill in defaults, and check the result.

    ``image_config`` is ``config`` of the image specification. Raises InvalidParameter or NotSupported, naming the
    option.
    """
    config = merge(request.config, image_config)
    hardware_address = validation.check_endpoints(request.endpoints, request.host_config.network_mode)
    if hardware_address and not config.mac_address:
        config = msgspec.structs.replace(config, mac_address=hardware_address)
    host_config = _with_defaults(request.host_config, settings, host)
    validation.refuse_unsupported(host_config, request.unknown)
    validation.check_config(config, host_config)
    validation.check_resources(host_config, host)
    host_config, warnings = validation.drop_unavailable(host_config, host)
    health.check(config.healthcheck)
    if host_config.init and not host.init:
        raise errors.InvalidParameter("HostConfig.Init needs the program docker-init, which is not in PATH")
    if host_config.memory and not host_config.memory_swap and host.swap_limit:
        host_config = msgspec.structs.replace(host_config, memory_swap=2 * host_config.memory)
    config = _with_identity(config, host_config, container_id)
    command = [*(config.entrypoint or ()), *(config.cmd or ())]
    return Settings(
        config=config,
        host_config=host_config,
        endpoints=_with_mode(request.endpoints, host_config.network_mode),
        path=command[0],
        args=command[1:],
        warnings=list(warnings),
    )


def _with_mode(endpoints: Mapping[str, dict[str, Any]], mode: str) -> dict[str, dict[str, Any]]:
    """The networks to be on: that of the network mode first, whether or not it was given settings.

    As in the real engine, settings for other networks take the place of the bridge or of no network, and are not
    looked at beside another container's network.
    """
    if validation.container_mode(mode) is not None:
        return {}
    others = {name: settings for name, settings in endpoints.items() if name not in (mode, "default")}
    if mode in ("bridge", "none") and others and len(others) == len(endpoints):
        return others
    return {mode: dict(endpoints.get(mode) or endpoints.get("default") or {}), **others}


def merge(config: ContainerConfig, image: Mapping[str, Any]) -> ContainerConfig:
    """The image's settings where the request has none; env, labels, ports and volumes are united."""
    changes: dict[str, Any] = {}
    if not config.user and image.get("User"):
        changes["user"] = image["User"]
    if not config.working_dir and image.get("WorkingDir"):
        changes["working_dir"] = image["WorkingDir"]
    if not config.stop_signal and image.get("StopSignal"):
        changes["stop_signal"] = image["StopSignal"]
    changes["healthcheck"] = health.merged(config.healthcheck, image.get("Healthcheck"))
    own = {variable.partition("=")[0] for variable in config.env or ()}
    inherited = [entry for entry in image.get("Env") or () if entry.partition("=")[0] not in own]
    if config.env is not None or inherited:
        changes["env"] = [*(config.env or ()), *inherited]
    changes["labels"] = {**(image.get("Labels") or {}), **(config.labels or {})}
    for name, key in (("exposed_ports", "ExposedPorts"), ("volumes", "Volumes")):
        united = {**(image.get(key) or {}), **(getattr(config, name) or {})}
        changes[name] = united or None
    # An entry point of one's own leaves the image's arguments behind: they were meant for the image's.
    if not config.entrypoint:
        if not config.cmd and image.get("Cmd"):
            changes["cmd"] = list(image["Cmd"])
        if config.entrypoint is None and image.get("Entrypoint"):
            changes["entrypoint"] = list(image["Entrypoint"])
    # `--entrypoint ""` arrives as one empty string and means none.
    if config.entrypoint == [""]:
        changes["entrypoint"] = None
    return msgspec.structs.replace(config, **changes)


def _with_defaults(host_config: HostConfig, settings: Config, host: Host) -> HostConfig:
    changes: dict[str, Any] = {}
    if host_config.network_mode in ("", "default"):
        changes["network_mode"] = "bridge"
    elif host_config.network_mode not in ("bridge", "host", "none") and ":" not in host_config.network_mode:
        changes["links"] = None  # on a network of the user's they are its endpoint's
    if not host_config.restart_policy.name:
        changes["restart_policy"] = RestartPolicy(
            name="no", maximum_retry_count=host_config.restart_policy.maximum_retry_count
        )
    log_config = host_config.log_config
    if not log_config.type:
        changes["log_config"] = LogConfig(type=settings.log_driver, config={**settings.log_opts, **log_config.config})
    if not host_config.shm_size:
        changes["shm_size"] = _DEFAULT_SHM_SIZE
    if not host_config.ipc_mode:
        changes["ipc_mode"] = "private"
    if not host_config.cgroupns_mode:
        private = host.cgroup_version == 2 and not host_config.privileged
        changes["cgroupns_mode"] = "private" if private else "host"
    if not host_config.runtime:
        changes["runtime"] = "runc"
    if host_config.masked_paths is None and not host_config.privileged:
        changes["masked_paths"] = list(MASKED_PATHS)
    if host_config.readonly_paths is None and not host_config.privileged:
        changes["readonly_paths"] = list(READONLY_PATHS)
    # What clients send for "not set".
    if host_config.memory_swappiness == -1:
        changes["memory_swappiness"] = None
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        changes["pids_limit"] = None
    if host_config.oom_kill_disable is None and host.oom_kill_disable:
        changes["oom_kill_disable"] = False
    changes["port_bindings"] = {
        _full_port(port): bindings if bindings else [PortBinding()]
        for port, bindings in host_config.port_bindings.items()
    }
    return msgspec.structs.replace(host_config, **changes)


def _full_port(port: str) -> str:
    return port if "/" in port else f"{port}/tcp"


def _with_identity(config: ContainerConfig, host_config: HostConfig, container_id: str) -> ContainerConfig:
    names = {*map(_full_port, config.exposed_ports or ()), *host_config.port_bindings}
    ports: dict[str, dict[str, Any]] = {name: {} for name in sorted(names)}
    hostname = config.hostname
    if host_config.uts_mode == "host" or host_config.network_mode == "host":
        if host_config.uts_mode == "host" and hostname:
            raise errors.InvalidParameter("conflicting options: hostname and the UTS mode")
        hostname = hostname or socket.gethostname()
    elif not hostname:
        hostname = container_id[:12]
    return msgspec.structs.replace(config, hostname=hostname, exposed_ports=ports or None)


def log_attributes(container_id: str, name: str, config: ContainerConfig, options: Mapping[str, str]) -> dict[str, str]:
    """The ``attrs`` of each record of a json-file log: what the options ``labels``, ``env`` and ``tag`` choose."""
    chosen: dict[str, str] = {}
    labels = config.labels or {}
    for key in filter(None, options.get("labels", "").split(",")):
        if key in labels:
            chosen[key] = labels[key]
    environment = dict(entry.partition("=")[::2] for entry in config.env or ())
    for key in filter(None, options.get("env", "").split(",")):
        if key in environment:
            chosen[key] = environment[key]
    tag = options.get("tag", "")
    if tag:
        for field_name, value in (("{{.ID}}", container_id[:12]), ("{{.FullID}}", container_id), ("{{.Name}}", name)):
            tag = tag.replace(field_name, value)
        chosen["tag"] = tag
    return chosen
