"""Which namespaces a container gets, which it joins, and how its first process comes to be in them."""

from __future__ import annotations

import os

from gantry.linux import namespaces as linux
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Namespace

NAMES = {
    "user": "user",
    "ipc": "ipc",
    "uts": "uts",
    "network": "net",
    "pid": "pid",
    "mount": "mnt",
    "cgroup": "cgroup",
    "time": "time",
}
"""The spec's word for each kind to the kernel's."""

# The order of joining: user first for the rights over those it owns, mount last, as it hides the paths of the others.
JOIN_ORDER = ("user", "ipc", "uts", "net", "pid", "cgroup", "time", "mnt")

# These are not made by the fork: the cgroup namespace's root is where its maker is when it is made, and that is decided
# after the fork; the time namespace's offsets must be written before anything runs in it.
LATE = linux.CLONE_NEWCGROUP | linux.CLONE_NEWTIME


class NamespacePlan:
    """new: CLONE_NEW* flags of the namespaces to make. joined: the kernel's word of a kind to the path to join."""

    __slots__ = ("joined", "new")

    def __init__(self, namespaces: list[Namespace]) -> None:
        self.new = 0
        self.joined: dict[str, str] = {}
        for namespace in namespaces:
            name = NAMES[namespace["type"]]
            path = namespace.get("path", "")
            if path:
                self.joined[name] = path
            else:
                self.new |= linux.FLAGS[name]

    @property
    def at_fork(self) -> int:
        """The flags of the namespaces that the fork makes."""
        return self.new & ~LATE

    @property
    def needs_middle(self) -> bool:
        """Must namespaces be joined before the fork, by a process in between?

        A pid namespace holds children only. Those of a joined user namespace must be made in it. And behind a new user
        namespace there are no more rights to join what the old one owns.
        """
        return bool(self.joined) and (
            "pid" in self.joined or "user" in self.joined or bool(self.new & linux.CLONE_NEWUSER)
        )

    def makes(self, name: str) -> bool:
        """Is a namespace of this kind (the kernel's word) made new?"""
        return bool(self.new & linux.FLAGS[name])

    def has(self, name: str) -> bool:
        """Is the container in a namespace of its own or of another's, of this kind?"""
        return self.makes(name) or name in self.joined


def open_joined(plan: NamespacePlan) -> dict[str, int]:
    """Descriptors of the namespaces to join, checked to be of their kind. Raises RuntimeFailure."""
    opened: dict[str, int] = {}
    try:
        for name in JOIN_ORDER:
            if name in plan.joined:
                path = plan.joined[name]
                try:
                    opened[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise RuntimeFailure(f"open {path}: {system_text(error)}") from error
    except RuntimeFailure:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def join(opened: dict[str, int], paths: dict[str, str]) -> None:
    """Enter the namespaces, in the right order, and close their descriptors. Raises RuntimeFailure."""
    for name in JOIN_ORDER:
        if name in opened:
            try:
                linux.setns(opened[name], linux.FLAGS[name], paths.get(name))
            except OSError as error:
                raise RuntimeFailure(
                    f"failed to setns into {name} namespace {paths.get(name, '')}: {system_text(error)}"
                ) from error
            os.close(opened[name])


def enter_time_namespace(offsets: dict[str, dict[str, int]]) -> None:
    """Make a time namespace, set its clocks, and go in (time_namespaces(7))."""
    linux.unshare(linux.CLONE_NEWTIME)
    lines = "".join(
        f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}\n" for clock, offset in offsets.items()
    )
    if lines:
        fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines.encode())
        except OSError as error:
            raise RuntimeFailure(f"unable to set time namespace offsets: {system_text(error)}") from error
        finally:
            os.close(fd)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.setns(fd, linux.CLONE_NEWTIME)
    finally:
        os.close(fd)
