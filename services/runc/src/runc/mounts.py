"""The mount plan: what config.json's mounts, masked and read-only paths come to, as values (config.md "Mounts").

Nothing here touches the system: a plan can be printed, compared and tested without root. `rootfs` carries it out.
"""

from __future__ import annotations

import os

from gantry.linux import mount as linux
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.linux.mount import MountOptions
    from gantry.oci.runtime import IdMapping, Mount, Spec

BIND = "bind"
FILESYSTEM = "filesystem"
CGROUP = "cgroup"

READONLY = linux.MS_RDONLY
DEFAULT_PROPAGATION = linux.MS_SLAVE | linux.MS_REC

# What may be mounted inside /proc of a container: files that stand for the machine's values, as lxcfs gives them.
_PROC_FILES = frozenset(
    (
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    )
)


class MountStep:
    """One mount of the container. `target` is the path inside its root; `source` is the host's for a bind."""

    __slots__ = ("data", "fstype", "gid_mappings", "kind", "options", "source", "target", "uid_mappings")

    def __init__(self, kind: str, source: str, target: str, fstype: str, options: MountOptions) -> None:
        self.kind = kind
        self.source = source
        self.target = target
        self.fstype = fstype
        self.options = options
        self.data = options.data_string
        self.uid_mappings: list[IdMapping] = []
        self.gid_mappings: list[IdMapping] = []

    @property
    def recursive(self) -> bool:
        """Is it a bind of the whole tree?"""
        return bool(self.options.flags & linux.MS_REC)

    @property
    def may_cover_procfs(self) -> bool:
        """Is the place one where a mount over procfs is fine?"""
        return self.target == "/proc" or self.target in _PROC_FILES

    @property
    def is_id_mapped(self) -> bool:
        """Must the mount have its ids mapped (`idmap`, `ridmap`)?"""
        return "idmap" in self.options.extensions or "ridmap" in self.options.extensions

    @property
    def copies_up(self) -> bool:
        """Does a tmpfs get what was at its place (`tmpcopyup`)?"""
        return "tmpcopyup" in self.options.extensions

    def describe(self) -> str:
        """For plans that are printed."""
        return (
            f"{self.kind} {self.source} on {self.target} type {self.fstype} flags {self.options.flags:#x} {self.data}"
        )


def plan_mounts(spec: Spec, bundle: str, rootfs: str) -> list[MountStep]:
    """The steps for config.json's mounts, in order. Raises RuntimeFailure naming the mount."""
    steps = [_plan_one(mount, bundle, rootfs) for mount in spec.get("mounts", [])]
    label = spec.get("linux", {}).get("mountLabel", "")
    for step in steps:
        if step.is_id_mapped and not step.uid_mappings:
            _map_as_the_container(step, spec)
        if label and step.kind == FILESYSTEM and step.fstype not in _UNLABELLED:
            step.options.data.append(f'context="{label}"')
            step.data = step.options.data_string
    return steps


# Theirs is the kernel's, for every file (selinux: security_sb_set_mnt_opts is refused).
_UNLABELLED = ("proc", "sysfs", "mqueue")


def _map_as_the_container(step: MountStep, spec: Spec) -> None:
    """`idmap` without mappings of the mount's own takes those of the container's user namespace."""
    container = spec.get("linux", {})
    step.uid_mappings = container.get("uidMappings", [])
    step.gid_mappings = container.get("gidMappings", [])
    if not (step.uid_mappings and step.gid_mappings):
        raise RuntimeFailure(
            f"mount {step.target}: idmap needs uidMappings and gidMappings, of the mount or of the container"
        )


def _plan_one(mount: Mount, bundle: str, rootfs: str) -> MountStep:
    target = os.path.normpath("/" + mount["destination"].lstrip("/"))
    if target == rootfs or target.startswith(rootfs + "/"):
        # Some configurations name the place as the host sees it.
        target = target[len(rootfs) :] or "/"
    options = linux.parse_options(mount.get("options", []))
    fstype = mount.get("type", "")
    source = mount.get("source", "")
    if fstype == "bind" or options.flags & linux.MS_BIND:
        if not source:
            raise RuntimeFailure(f"mount {target}: a bind mount needs a source")
        step = MountStep(BIND, os.path.join(bundle, source), target, "bind", options)
        step.options.flags |= linux.MS_BIND
    elif fstype in ("cgroup", "cgroup2"):
        step = MountStep(CGROUP, source or "cgroup", target, fstype, options)
    elif not fstype:
        raise RuntimeFailure(f"mount {target}: type must be specified")
    else:
        step = MountStep(FILESYSTEM, source or fstype, target, fstype, options)
    _plan_mappings(step, mount)
    check_place(step)
    return step


def _plan_mappings(step: MountStep, mount: Mount) -> None:
    step.uid_mappings = mount.get("uidMappings", [])
    step.gid_mappings = mount.get("gidMappings", [])
    if bool(step.uid_mappings) != bool(step.gid_mappings):
        raise RuntimeFailure(f"mount {step.target}: id-mapped mounts need both uidMappings and gidMappings")
    if (step.uid_mappings or step.is_id_mapped) and step.kind != BIND:
        raise RuntimeFailure(f"mount {step.target}: id-mapped mounts are supported for bind mounts only")


def check_place(step: MountStep) -> None:
    """Refuse what would let a container fake its /proc or /sys. Raises RuntimeFailure.

    A process in the container, and this runtime, trust what they read there.
    """
    target = step.target
    if target in ("/proc", "/sys"):
        wanted = {"/proc": "proc", "/sys": "sysfs"}[target]
        if step.fstype not in (wanted, "bind", "tmpfs") or (target == "/proc" and step.fstype == "tmpfs"):
            raise RuntimeFailure(f"{target} must be mounted as {wanted}, not as {step.fstype}")
    elif target.startswith("/proc/") and target not in _PROC_FILES:
        raise RuntimeFailure(f'"{target}" cannot be mounted because it is inside /proc')


def root_propagation(spec: Spec) -> int:
    """MS_* flags of `rootfsPropagation`, 0 when it is not given. Raises RuntimeFailure."""
    word = spec["linux"].get("rootfsPropagation", "")
    if not word:
        return 0
    if word not in linux.PROPAGATION_OPTIONS:
        raise RuntimeFailure(f"rootfsPropagation={word} is not supported")
    return linux.PROPAGATION_OPTIONS[word]


def has_mount_over(steps: list[MountStep], target: str) -> MountStep | None:
    """The last mount at this place, if any."""
    for step in reversed(steps):
        if step.target == target:
            return step
    return None


def needs_devices(steps: list[MountStep]) -> bool:
    """Must /dev be filled? Not when the host's own, or some directory, is bound there."""
    step = has_mount_over(steps, "/dev")
    return step is None or step.kind != BIND
