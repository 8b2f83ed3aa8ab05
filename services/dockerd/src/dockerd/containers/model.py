"""What a container is: the settings that it was created with, and its state, as immutable values.

Field names on the wire are those of the Engine API (``HostConfig.NanoCpus`` ...). A change of state is a new value,
so that a listing reads a consistent snapshot without a lock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = [
    "ZERO_TIME",
    "BindOptions",
    "Container",
    "ContainerConfig",
    "DeviceMapping",
    "Health",
    "HealthConfig",
    "HealthResult",
    "HostConfig",
    "LogConfig",
    "MountPoint",
    "MountRequest",
    "PortBinding",
    "RestartPolicy",
    "State",
    "Status",
    "ThrottleDevice",
    "TmpfsOptions",
    "Ulimit",
    "VolumeOptions",
    "WeightDevice",
]

ZERO_TIME = "0001-01-01T00:00:00Z"
"""How the API writes a moment that has not been."""

# Names that are not the plain capitalised form of the field.
_SPECIAL_NAMES = {
    "container_id_file": "ContainerIDFile",
    "uts_mode": "UTSMode",
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "io_maximum_iops": "IOMaximumIOps",
    "io_maximum_bandwidth": "IOMaximumBandwidth",
    "kernel_memory_tcp": "KernelMemoryTCP",
    "size_bytes": "SizeBytes",
    "rw": "RW",
}


def _wire_name(field: str) -> str:
    return _SPECIAL_NAMES.get(field) or "".join(part.capitalize() for part in field.split("_"))


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename=_wire_name):
    """A value with a JSON form in the Engine API."""


class PortBinding(_Wire, frozen=True, kw_only=True):
    """Where a container's port is published; an empty port means any free one."""

    host_ip: str = ""
    host_port: str = ""


class LogConfig(_Wire, frozen=True, kw_only=True):
    """The log driver and its options."""

    type: str = ""
    config: dict[str, str] = {}


class RestartPolicy(_Wire, frozen=True, kw_only=True):
    """``no``, ``always``, ``unless-stopped`` or ``on-failure`` (at most ``maximum_retry_count`` times when not 0)."""

    name: str = ""
    maximum_retry_count: int = 0


class Ulimit(_Wire, frozen=True, kw_only=True):
    """One resource limit; -1 is unlimited."""

    name: str
    hard: int
    soft: int


class DeviceMapping(_Wire, frozen=True, kw_only=True):
    """A device of the host in the container."""

    path_on_host: str
    path_in_container: str = ""
    cgroup_permissions: str = ""


class WeightDevice(_Wire, frozen=True, kw_only=True):
    """Block I/O weight for one device, 10 to 1000."""

    path: str
    weight: int


class ThrottleDevice(_Wire, frozen=True, kw_only=True):
    """Block I/O rate for one device: bytes or operations per second."""

    path: str
    rate: int


class BindOptions(_Wire, frozen=True, kw_only=True):
    """Of a mount of type bind."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriverConfig(_Wire, frozen=True, kw_only=True):
    """Which driver makes the volume, and how."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(_Wire, frozen=True, kw_only=True):
    """Of a mount of type volume."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: VolumeDriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(_Wire, frozen=True, kw_only=True):
    """Of a mount of type tmpfs."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class MountRequest(_Wire, frozen=True, kw_only=True, omit_defaults=True):
    """One ``--mount``."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: dict[str, Any] | None = None
    cluster_options: dict[str, Any] | None = None


class HostConfig(_Wire, frozen=True, kw_only=True):
    """The settings that concern the host; defaults are what the real engine shows for a body without them."""

    binds: list[str] | None = None
    container_id_file: str = ""
    log_config: LogConfig = LogConfig()
    network_mode: str = "default"
    port_bindings: dict[str, list[PortBinding] | None] = {}
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[dict[str, Any]] | None = None
    kernel_memory: int = 0
    kernel_memory_tcp: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = 0
    io_maximum_bandwidth: int = 0
    init: bool | None = None
    mounts: list[MountRequest] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class HealthConfig(_Wire, frozen=True, kw_only=True, omit_defaults=True):
    """How the container's health is checked: ``test`` begins with NONE, CMD or CMD-SHELL; times are in nanoseconds, 0
    is the default."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(_Wire, frozen=True, kw_only=True):
    """The settings that an image can carry too, after the image's own were merged in."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class MountPoint(_Wire, frozen=True, kw_only=True):
    """One mount that the container has besides the default ones, resolved at its creation.

    ``name`` and ``driver`` are set for volumes only. ``options`` are further mount options (tmpfs).
    """

    type: Literal["bind", "volume", "tmpfs"]
    name: str = ""
    source: str = ""
    destination: str
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    recursive: bool = True
    read_only_recursive: bool = True
    copy_up: bool = False
    subpath: str = ""
    options: list[str] = []
    anonymous: bool = False


class Status(enum.StrEnum):
    """The words of ``State.Status``."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class HealthResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check. ``exit_code`` is -1 when it could not be run or took too long."""

    start: str
    end: str
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks have found: ``starting``, ``healthy`` or ``unhealthy``, and the last results."""

    status: str
    failing_streak: int = 0
    log: list[HealthResult] = []


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where the container is in its life. Times are RFC 3339 with nanoseconds, UTC.

    ``stopped_by_user`` holds until the next start: such a container is not restarted by its policy.
    ``has_task`` is true while containerd may still hold a task for it.
    """

    status: Status = Status.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME
    restart_count: int = 0
    stopped_by_user: bool = False
    has_task: bool = False
    health: Health | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process: also while paused."""
        return self.status in (Status.RUNNING, Status.PAUSED)


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One container as it is at this moment.

    ``created`` is in nanoseconds since 1970. ``image_id`` is the image's id, ``image`` what the user called it;
    ``chain_id`` names the snapshot that the root file system stands on. ``endpoints`` is the NetworkingConfig's
    EndpointsConfig as it was sent. ``root`` is the directory below the data root that belongs to the container.
    """

    id: str
    name: str
    created: int
    image: str
    image_id: str
    chain_id: str
    config: ContainerConfig
    host_config: HostConfig
    path: str
    args: list[str]
    mounts: list[MountPoint] = []
    endpoints: dict[str, dict[str, Any]] = {}
    snapshotter: str
    platform_os: str = "linux"
    root: str
    log_attributes: dict[str, str] = {}
    state: State = State()

    @property
    def tty(self) -> bool:
        """Whether its process has a terminal."""
        return self.config.tty

    @property
    def open_stdin(self) -> bool:
        """Whether its process has a standard input."""
        return self.config.open_stdin

    @property
    def stdin_once(self) -> bool:
        """Whether the standard input ends with the first session that had it."""
        return self.config.stdin_once

    @property
    def log_driver(self) -> str:
        """``json-file`` or ``none``."""
        return self.host_config.log_config.type

    @property
    def log_options(self) -> Mapping[str, str]:
        """The ``--log-opt`` values."""
        return self.host_config.log_config.config

    @property
    def log_path(self) -> str:
        """Absolute path of the log, empty without one."""
        return f"{self.root}/{self.id}-json.log" if self.log_driver == "json-file" else ""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels; never None."""
        return self.config.labels or {}

    def with_state(self, **changes: Any) -> Container:
        """This container with some fields of its state changed."""
        return msgspec.structs.replace(self, state=msgspec.structs.replace(self.state, **changes))
