"""The runtime-spec as types: config.json of a Linux container, and the state (config.md, config-linux.md, runtime.md).

These are the shapes of JSON; every key may be missing unless the specification requires it. Only type checkers need
this module: a program that counts its imports imports it for them alone.
"""

from __future__ import annotations

from typing import Literal, Required, TypedDict


class Root(TypedDict, total=False):
    """The root file system: its path, absolute or relative to the bundle."""

    path: Required[str]
    readonly: bool


class IdMapping(TypedDict):
    """A range of ids of a user namespace and where it is outside."""

    containerID: int
    hostID: int
    size: int


class Mount(TypedDict, total=False):
    """One mount, in order."""

    destination: Required[str]
    type: str
    source: str
    options: list[str]
    uidMappings: list[IdMapping]
    gidMappings: list[IdMapping]


class ConsoleSize(TypedDict):
    """Terminal size in characters."""

    height: int
    width: int


class User(TypedDict, total=False):
    """Whom the process runs as."""

    uid: int
    gid: int
    umask: int
    additionalGids: list[int]


class Capabilities(TypedDict, total=False):
    """The five capability sets, by name (capabilities(7))."""

    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]


class Rlimit(TypedDict):
    """One resource limit (setrlimit(2))."""

    type: str
    hard: int
    soft: int


class Scheduler(TypedDict, total=False):
    """sched_setattr(2) of the process."""

    policy: Required[str]
    nice: int
    priority: int
    flags: list[str]
    runtime: int
    deadline: int
    period: int


IOPriority = TypedDict("IOPriority", {"class": str, "priority": int})
"""ioprio_set(2) of the process."""


class CPUAffinity(TypedDict, total=False):
    """CPU affinity of a process joined by exec, before and after it enters the cgroup."""

    initial: str
    final: str


class MemoryPolicy(TypedDict, total=False):
    """NUMA memory policy of the container (set_mempolicy(2)); nodes is a list such as `0-3,7`."""

    mode: Required[str]
    nodes: str
    flags: list[str]


class Process(TypedDict, total=False):
    """The process of a container."""

    terminal: bool
    consoleSize: ConsoleSize
    user: User
    args: list[str]
    commandLine: str
    env: list[str]
    cwd: Required[str]
    capabilities: Capabilities
    rlimits: list[Rlimit]
    noNewPrivileges: bool
    apparmorProfile: str
    oomScoreAdj: int
    scheduler: Scheduler
    selinuxLabel: str
    ioPriority: IOPriority
    execCPUAffinity: CPUAffinity


class Hook(TypedDict, total=False):
    """A program to run at a point of the life cycle; timeout in seconds."""

    path: Required[str]
    args: list[str]
    env: list[str]
    timeout: int


class Hooks(TypedDict, total=False):
    """The hooks of each kind, in order."""

    prestart: list[Hook]
    createRuntime: list[Hook]
    createContainer: list[Hook]
    startContainer: list[Hook]
    poststart: list[Hook]
    poststop: list[Hook]


NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]


class Namespace(TypedDict, total=False):
    """A namespace to make, or with a path to join."""

    type: Required[NamespaceType]
    path: str


class Device(TypedDict, total=False):
    """A device node to make in the container."""

    type: Required[str]
    path: Required[str]
    major: int
    minor: int
    fileMode: int
    uid: int
    gid: int


class DeviceRule(TypedDict, total=False):
    """One rule of the device cgroup."""

    allow: Required[bool]
    type: str
    major: int
    minor: int
    access: str


class Memory(TypedDict, total=False):
    """Memory limits in bytes; -1 is unlimited."""

    limit: int
    reservation: int
    swap: int
    kernel: int
    kernelTCP: int
    swappiness: int
    disableOOMKiller: bool
    useHierarchy: bool
    checkBeforeUpdate: bool


class CPU(TypedDict, total=False):
    """CPU shares, quota and period in microseconds, and the cpuset."""

    shares: int
    quota: int
    burst: int
    period: int
    realtimeRuntime: int
    realtimePeriod: int
    cpus: str
    mems: str
    idle: int


class Pids(TypedDict, total=False):
    """The number of tasks; 0 or less is unlimited."""

    limit: int


class ThrottleDevice(TypedDict):
    """A rate limit of one block device."""

    major: int
    minor: int
    rate: int


class WeightDevice(TypedDict, total=False):
    """A weight of one block device."""

    major: Required[int]
    minor: Required[int]
    weight: int
    leafWeight: int


class BlockIO(TypedDict, total=False):
    """Block I/O weights and limits."""

    weight: int
    leafWeight: int
    weightDevice: list[WeightDevice]
    throttleReadBpsDevice: list[ThrottleDevice]
    throttleWriteBpsDevice: list[ThrottleDevice]
    throttleReadIOPSDevice: list[ThrottleDevice]
    throttleWriteIOPSDevice: list[ThrottleDevice]


class HugepageLimit(TypedDict):
    """A limit in bytes for one huge page size such as `2MB`."""

    pageSize: str
    limit: int


class InterfacePriority(TypedDict):
    """Traffic priority of one network interface."""

    name: str
    priority: int


class Network(TypedDict, total=False):
    """Network class and priorities (cgroup v1)."""

    classID: int
    priorities: list[InterfacePriority]


class Rdma(TypedDict, total=False):
    """Limits of one RDMA device."""

    hcaHandles: int
    hcaObjects: int


class Resources(TypedDict, total=False):
    """All resource limits."""

    devices: list[DeviceRule]
    memory: Memory
    cpu: CPU
    pids: Pids
    blockIO: BlockIO
    hugepageLimits: list[HugepageLimit]
    network: Network
    rdma: dict[str, Rdma]
    unified: dict[str, str]


class SeccompArg(TypedDict, total=False):
    """A condition on one argument of a system call."""

    index: Required[int]
    value: Required[int]
    valueTwo: int
    op: Required[str]


class SeccompSyscall(TypedDict, total=False):
    """What to do on some system calls."""

    names: Required[list[str]]
    action: Required[str]
    errnoRet: int
    args: list[SeccompArg]


class Seccomp(TypedDict, total=False):
    """The system call filter."""

    defaultAction: Required[str]
    defaultErrnoRet: int
    architectures: list[str]
    flags: list[str]
    listenerPath: str
    listenerMetadata: str
    syscalls: list[SeccompSyscall]


class TimeOffset(TypedDict, total=False):
    """An offset of a clock in the time namespace."""

    secs: int
    nanosecs: int


class Personality(TypedDict, total=False):
    """The execution domain (personality(2))."""

    domain: Required[str]
    flags: list[str]


class IntelRdt(TypedDict, total=False):
    """Cache and memory bandwidth allocation."""

    closID: str
    l3CacheSchema: str
    memBwSchema: str


class Linux(TypedDict, total=False):
    """What only Linux has."""

    devices: list[Device]
    uidMappings: list[IdMapping]
    gidMappings: list[IdMapping]
    sysctl: dict[str, str]
    resources: Resources
    cgroupsPath: str
    namespaces: list[Namespace]
    seccomp: Seccomp
    rootfsPropagation: str
    maskedPaths: list[str]
    readonlyPaths: list[str]
    mountLabel: str
    intelRdt: IntelRdt
    personality: Personality
    timeOffsets: dict[str, TimeOffset]
    netDevices: dict[str, dict[str, str]]
    memoryPolicy: MemoryPolicy


class Spec(TypedDict, total=False):
    """config.json."""

    ociVersion: Required[str]
    root: Root
    mounts: list[Mount]
    process: Process
    hostname: str
    domainname: str
    hooks: Hooks
    annotations: dict[str, str]
    linux: Linux


Status = Literal["creating", "created", "running", "stopped", "paused"]


class State(TypedDict, total=False):
    """The state that `state` prints and that hooks get on their standard input (runtime.md "State")."""

    ociVersion: Required[str]
    id: Required[str]
    status: Required[Status]
    pid: int
    bundle: Required[str]
    annotations: dict[str, str]
