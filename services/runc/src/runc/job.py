"""Everything that is decided before the fork: the runtime puts it together, init has it in memory and does it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from gantry.oci.runtime import Device, Process, Spec
    from runc.cgroups.control import Joining
    from runc.cgroups.hierarchy import Paths
    from runc.cgroups.systemd import Unit
    from runc.listener import Listener
    from runc.logs import Log
    from runc.mounts import MountStep
    from runc.namespaces import NamespacePlan
    from runc.process import Credentials
    from runc.scheduling import Scheduling
    from runc.state import Container


class CreateOptions:
    """What the flags of `create` and `run` ask for."""

    __slots__ = (
        "bundle",
        "console_socket",
        "launcher_fd",
        "no_new_keyring",
        "no_pivot",
        "pid_file",
        "pidfd_socket",
        "preserve_fds",
        "spec",
    )

    def __init__(self, bundle: str, spec: Spec) -> None:
        self.bundle = bundle
        self.spec = spec
        self.console_socket = ""
        self.launcher_fd = -1
        self.pid_file = ""
        self.pidfd_socket = ""
        self.no_pivot = False
        self.no_new_keyring = False
        self.preserve_fds = 0


class Job:
    """A container to be made."""

    __slots__ = (
        "cgroups",
        "cgroups_are_optional",
        "console",
        "container",
        "credentials",
        "devices",
        "fifo_fd",
        "joining",
        "launcher_fd",
        "listen_env",
        "listener",
        "log",
        "mounts",
        "namespaces",
        "net_devices",
        "no_new_keyring",
        "no_pivot",
        "opened_namespaces",
        "preserved",
        "process",
        "root_propagation",
        "rootfs",
        "rootless",
        "scheduling",
        "seccomp",
        "seen_cgroups",
        "source_trees",
        "spec",
        "unit",
    )

    container: Container
    spec: Spec
    process: Process
    rootfs: str
    namespaces: NamespacePlan
    net_devices: dict[str, str]
    """Devices of the host to move: the name there to the name in the container."""
    mounts: list[MountStep]
    devices: list[Device]
    root_propagation: int
    cgroups: Paths
    cgroups_are_optional: bool
    unit: Unit | None
    """systemd's, when it makes the groups."""
    seen_cgroups: Paths
    """What cgroup mounts show: the container's groups, or the caller's when it has none of its own."""
    rootless: bool
    """Is the runtime an ordinary user's?"""
    credentials: Credentials
    scheduling: Scheduling | None
    listener: Listener | None
    seccomp: bytes
    """The compiled filter with its flags in front, empty for none."""
    log: Log
    no_pivot: bool
    no_new_keyring: bool
    console: _socket.socket | None
    """Where the master end of the terminal goes; connected before the fork, while its path means something."""
    fifo_fd: int
    joining: Joining
    launcher_fd: int
    """What init executes the program with, -1 when it does so itself (see `launcher`)."""
    preserved: int
    """How many descriptors behind the standard streams the program gets."""
    listen_env: list[str]
    """LISTEN_FDS and its company for the program."""
    opened_namespaces: dict[str, int]
    source_trees: dict[int, int]


class ExecJob:
    """A process to be added to a running container."""

    __slots__ = (
        "console",
        "container",
        "credentials",
        "in_user_namespace",
        "joining",
        "listen_env",
        "listener",
        "preserved",
        "process",
        "scheduling",
        "seccomp",
        "through_middle",
    )

    container: Container
    process: Process
    credentials: Credentials
    in_user_namespace: bool
    """Does the new process start in the container's user namespace? An ordinary user gets into no other before that."""
    through_middle: bool
    """Is it forked by a process in between? One without rights over its own pid namespace could not come back to it."""
    joining: Joining
    scheduling: Scheduling | None
    listener: Listener | None
    seccomp: bytes
    console: _socket.socket | None
    preserved: int
    listen_env: list[str]
