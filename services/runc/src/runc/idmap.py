"""Id-mapped mounts: the user namespace that carries a mapping, and its use on a detached mount (mount_setattr(2))."""

from __future__ import annotations

import os

from gantry.linux import mount as linux_mount
from gantry.linux import namespaces as linux_namespaces
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import IdMapping
    from runc.mounts import MountStep


def text(mappings: list[IdMapping]) -> str:
    """The lines of /proc/PID/uid_map and gid_map (user_namespaces(7))."""
    return "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in mappings)


def write_maps(pid: int, uid_mappings: list[IdMapping], gid_mappings: list[IdMapping]) -> None:
    """Give a process's user namespace its mappings; needs CAP_SETUID and CAP_SETGID outside of it."""
    for file, mappings in (("gid_map", gid_mappings), ("uid_map", uid_mappings)):
        try:
            fd = os.open(f"/proc/{pid}/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text(mappings).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise RuntimeFailure(f"failed to write {file}: {system_text(error)}") from error


def user_namespace(uid_mappings: list[IdMapping], gid_mappings: list[IdMapping]) -> int:
    """A descriptor of a new user namespace with these mappings, that nobody lives in."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = linux_namespaces.fork(linux_namespaces.CLONE_NEWUSER)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        write_maps(pid, uid_mappings, gid_mappings)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def apply(tree: int, step: MountStep) -> None:
    """Map the ids of a detached mount, of the whole tree with `ridmap`. Raises RuntimeFailure."""
    namespace = user_namespace(step.uid_mappings, step.gid_mappings)
    try:
        linux_mount.mount_setattr(
            tree,
            set_attributes=linux_mount.MOUNT_ATTR_IDMAP,
            userns_fd=namespace,
            recursive="ridmap" in step.options.extensions,
        )
    except OSError as error:
        raise RuntimeFailure(f"failed to map the ids of {step.source}: {system_text(error)}") from error
    finally:
        os.close(namespace)
