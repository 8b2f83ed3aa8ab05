"""Mounts: mount(2), its newer, descriptor based relatives, and the option strings of the OCI runtime-spec.

Sources: mount(2), mount_setattr(2), open_tree(2), move_mount(2), fsopen(2); config.md "Linux mount options".
"""

from __future__ import annotations

import ctypes
import os

from gantry.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    NR_FSCONFIG,
    NR_FSMOUNT,
    NR_FSOPEN,
    NR_MOUNT_SETATTR,
    NR_MOVE_MOUNT,
    NR_OPEN_TREE,
    check,
    encode,
    libc,
    syscall,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_POSIXACL = 1 << 16
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MS_PROPAGATION = MS_UNBINDABLE | MS_PRIVATE | MS_SLAVE | MS_SHARED
"""All propagation types: mount(2) takes exactly one of them in a call of its own."""

MS_PER_MOUNT = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW | MS_NOATIME | MS_NODIRATIME | MS_RELATIME
"""The flags that belong to a mount rather than to its file system: what a bind remount can change."""

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

# option: (flags to clear, flags to set)
FLAG_OPTIONS: dict[str, tuple[int, int]] = {
    "acl": (0, MS_POSIXACL),
    "async": (MS_SYNCHRONOUS, 0),
    "atime": (MS_NOATIME, 0),
    "bind": (0, MS_BIND),
    "defaults": (0, 0),
    "dev": (MS_NODEV, 0),
    "diratime": (MS_NODIRATIME, 0),
    "dirsync": (0, MS_DIRSYNC),
    "exec": (MS_NOEXEC, 0),
    "iversion": (0, MS_I_VERSION),
    "lazytime": (0, MS_LAZYTIME),
    "loud": (MS_SILENT, 0),
    "mand": (0, MS_MANDLOCK),
    "noacl": (MS_POSIXACL, 0),
    "noatime": (0, MS_NOATIME),
    "nodev": (0, MS_NODEV),
    "nodiratime": (0, MS_NODIRATIME),
    "noexec": (0, MS_NOEXEC),
    "noiversion": (MS_I_VERSION, 0),
    "nolazytime": (MS_LAZYTIME, 0),
    "nomand": (MS_MANDLOCK, 0),
    "norelatime": (MS_RELATIME, 0),
    "nostrictatime": (MS_STRICTATIME, 0),
    "nosuid": (0, MS_NOSUID),
    "nosymfollow": (0, MS_NOSYMFOLLOW),
    "rbind": (0, MS_BIND | MS_REC),
    "relatime": (0, MS_RELATIME),
    "remount": (0, MS_REMOUNT),
    "ro": (0, MS_RDONLY),
    "rw": (MS_RDONLY, 0),
    "silent": (0, MS_SILENT),
    "strictatime": (0, MS_STRICTATIME),
    "suid": (MS_NOSUID, 0),
    "symfollow": (MS_NOSYMFOLLOW, 0),
    "sync": (0, MS_SYNCHRONOUS),
}

PROPAGATION_OPTIONS: dict[str, int] = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
}

# option: (attributes to clear, attributes to set), for mount_setattr with AT_RECURSIVE.
# The access time is one field of several bits: a change of it clears the whole field (mount_setattr(2)).
RECURSIVE_OPTIONS: dict[str, tuple[int, int]] = {
    "rro": (0, MOUNT_ATTR_RDONLY),
    "rrw": (MOUNT_ATTR_RDONLY, 0),
    "rnosuid": (0, MOUNT_ATTR_NOSUID),
    "rsuid": (MOUNT_ATTR_NOSUID, 0),
    "rnodev": (0, MOUNT_ATTR_NODEV),
    "rdev": (MOUNT_ATTR_NODEV, 0),
    "rnoexec": (0, MOUNT_ATTR_NOEXEC),
    "rexec": (MOUNT_ATTR_NOEXEC, 0),
    "rnodiratime": (0, MOUNT_ATTR_NODIRATIME),
    "rdiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "rrelatime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_RELATIME),
    "rnorelatime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_STRICTATIME),
    "rnoatime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME),
    "ratime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_RELATIME),
    "rstrictatime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_STRICTATIME),
    "rnostrictatime": (MOUNT_ATTR_ATIME, MOUNT_ATTR_RELATIME),
    "rnosymfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
    "rsymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
}


class MountOptions:
    """What a list of mount options means to the kernel.

    flags: MS_* to set. cleared: MS_* that an option asked to be off. propagation: MS_* propagation calls, in order.
    recursive_set, recursive_clear: MOUNT_ATTR_* for the whole tree. data: what is left, for the file system.
    extensions: options that are neither the kernel's nor the file system's (`idmap`, `ridmap`, `tmpcopyup`).
    """

    __slots__ = ("cleared", "data", "extensions", "flags", "propagation", "recursive_clear", "recursive_set")

    def __init__(self) -> None:
        self.flags = 0
        self.cleared = 0
        self.propagation: list[int] = []
        self.recursive_set = 0
        self.recursive_clear = 0
        self.data: list[str] = []
        self.extensions: list[str] = []

    @property
    def data_string(self) -> str:
        """The file system's own options as mount(2) takes them."""
        return ",".join(self.data)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in sorted(self.__slots__))
        return f"MountOptions({fields})"


EXTENSION_OPTIONS = ("idmap", "ridmap", "tmpcopyup")


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort mount options into flags, propagation, recursive attributes and file system data; a later one wins."""
    parsed = MountOptions()
    for option in options:
        if option in FLAG_OPTIONS:
            clear, add = FLAG_OPTIONS[option]
            parsed.flags = parsed.flags & ~clear | add
            parsed.cleared = parsed.cleared & ~add | clear
        elif option in PROPAGATION_OPTIONS:
            parsed.propagation.append(PROPAGATION_OPTIONS[option])
        elif option in RECURSIVE_OPTIONS:
            clear, add = RECURSIVE_OPTIONS[option]
            parsed.recursive_set = parsed.recursive_set & ~clear | add
            parsed.recursive_clear = parsed.recursive_clear & ~add | clear
        elif option in EXTENSION_OPTIONS:
            parsed.extensions.append(option)
        elif option:
            parsed.data.append(option)
    return parsed


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError naming the target."""
    raw = encode(data) if data else None
    check(
        libc.mount(encode(source or "none"), encode(target), encode(fstype), ctypes.c_ulong(flags), raw),
        f"mount {source or fstype or 'none'}",
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError naming the target."""
    check(libc.umount2(encode(target), flags), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); "." for both stacks the old root over the new one (pivot_root(2), NOTES)."""
    check(libc.pivot_root(encode(new_root), encode(put_old)), "pivot_root", new_root)


def open_tree(path: str, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2): a descriptor of the mount at `path`, with OPEN_TREE_CLONE of a detached copy (Linux 5.2)."""
    return syscall(NR_OPEN_TREE, "open_tree", dir_fd, encode(path), flags, path=path)


def move_mount(
    from_fd: int, to_path: str, *, from_path: str = "", to_fd: int = AT_FDCWD, flags: int | None = None
) -> None:
    """move_mount(2): attach the mount of `from_fd` at `to_path` (or at `to_fd` itself when that is empty)."""
    if flags is None:
        flags = (0 if from_path else MOVE_MOUNT_F_EMPTY_PATH) | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    syscall(
        NR_MOVE_MOUNT, "move_mount", from_fd, encode(from_path), to_fd, encode(to_path), flags, path=to_path or None
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    dir_fd: int,
    path: str = "",
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) (Linux 5.12). An empty path means the mount of `dir_fd` itself."""
    attr = _MountAttr(set_attributes, clear_attributes, propagation, userns_fd)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    syscall(
        NR_MOUNT_SETATTR,
        "mount_setattr",
        dir_fd,
        encode(path),
        flags,
        ctypes.byref(attr),
        ctypes.sizeof(attr),
        path=path or None,
    )


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """fsopen(2): a context in which a file system of this type is configured (Linux 5.2)."""
    return syscall(NR_FSOPEN, f"fsopen {fstype}", encode(fstype), flags)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """fsconfig(2) with a flag, a string, or a command."""
    syscall(NR_FSCONFIG, f"fsconfig {key or command}", fd, command, encode(key), encode(value), aux)


def fsmount(fd: int, attributes: int = 0, flags: int = FSMOUNT_CLOEXEC) -> int:
    """fsmount(2): the detached mount of a configured context."""
    return syscall(NR_FSMOUNT, "fsmount", fd, flags, attributes)


def clone_readonly(path: str) -> int:
    """A descriptor of a read-only, detached copy of the mount below `path`, seen by no other process.

    What is opened or executed through it can not be reopened for writing, not even by root through /proc/PID/exe.
    Needs CAP_SYS_ADMIN and Linux 5.12.
    """
    fd = open_tree(path)
    try:
        mount_setattr(fd, set_attributes=MOUNT_ATTR_RDONLY)
    except OSError:
        os.close(fd)
        raise
    return fd
