"""Paths inside a root that is not trusted: every step by descriptor, no symlink leads out (openat2(2), Linux 5.6)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from gantry.linux.libc import AT_FDCWD, NR_OPENAT2, check, encode, libc, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

PROC_SUPER_MAGIC = 0x9FA0
_STATFS_SIZE = 128
# A rename or mount elsewhere can make the kernel give up a scoped walk with EAGAIN; it asks to be called again.
_ATTEMPTS = 128


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(path: str, flags: int, *, mode: int = 0, resolve: int = 0, dir_fd: int = AT_FDCWD) -> int:
    """openat2(2); the descriptor is close-on-exec. Raises OSError naming the path."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    raw = encode(path)
    for attempt in range(_ATTEMPTS):
        try:
            return syscall(NR_OPENAT2, "openat2", dir_fd, raw, ctypes.byref(how), ctypes.sizeof(how), path=path)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Open `path` as a process would whose root directory is `root_fd`: absolute links and `..` stay inside.

    Magic links of procfs are refused (ELOOP): they lead out of any root.
    """
    return openat2(
        path.lstrip("/") or ".", flags, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, dir_fd=root_fd
    )


def mkdir_all_in_root(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Make the directory and its missing parents inside the root; gives a descriptor (O_PATH) of the directory.

    Symbolic links that exist are followed inside the root, dangling ones too: their target is what gets made, within
    the root. Raises OSError: ENOTDIR where a component is no directory, ELOOP for a circle of links.
    """
    return _mkdir_all(root_fd, path, mode, 40)


def _mkdir_all(root_fd: int, path: str, mode: int, links_left: int) -> int:
    try:
        return open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        pass
    if links_left == 0:
        raise OSError(errno.ELOOP, "mkdir: too many levels of symbolic links", path)
    # `..` is resolved by text only behind components that do not exist yet, where there is no link it could cross.
    parent, name = os.path.split(os.path.normpath("/" + path))
    parent_fd = _mkdir_all(root_fd, parent, mode, links_left)
    try:
        target = _readlink_at(parent_fd, name)
        if target is not None:
            return _mkdir_all(root_fd, os.path.join(parent, target), mode, links_left - 1)
        try:  # noqa: SIM105 (contextlib costs start-up time)
            os.mkdir(name, mode, dir_fd=parent_fd)
        except FileExistsError:
            pass  # made by someone else meanwhile; the open below tells what it is
        return openat2(
            name,
            os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
            resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
            dir_fd=parent_fd,
        )
    finally:
        os.close(parent_fd)


def _readlink_at(dir_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def create_file_in_root(root_fd: int, path: str, mode: int = 0o644) -> int:
    """Make an empty regular file, and its missing parents, inside the root unless something is there already.

    Gives a descriptor (O_PATH) of what is at the path: what a bind mount of a file is attached to.
    """
    try:
        return open_in_root(root_fd, path)
    except FileNotFoundError:
        pass
    parent, name = os.path.split(os.path.normpath("/" + path))
    parent_fd = mkdir_all_in_root(root_fd, parent)
    try:
        # A dangling link in the last place is made good inside the root: O_CREAT through RESOLVE_IN_ROOT follows it.
        target = _readlink_at(parent_fd, name)
        if target is not None:
            inner = os.path.join(parent, target)
            os.close(mkdir_all_in_root(root_fd, os.path.dirname(inner)))
            os.close(open_in_root(root_fd, inner, os.O_CREAT | os.O_RDONLY, mode))
            return open_in_root(root_fd, inner)
        os.close(os.open(name, os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent_fd))
        return openat2(name, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)


def descriptor_path(fd: int) -> str:
    """A path that means exactly the file of this descriptor, for calls that take paths only."""
    return f"/proc/self/fd/{fd}"


def filesystem_magic(fd: int) -> int:
    """The magic number of the file system that the descriptor's file is on (statfs(2), f_type)."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    check(libc.fstatfs(fd, buffer), "fstatfs")
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


def open_procfs(path: str, flags: int) -> int:
    """Open a file below /proc and make sure that it is procfs's, not one that a container mounted over it.

    Raises OSError (EINVAL) naming the path otherwise.
    """
    fd = openat2(path, flags, resolve=RESOLVE_NO_MAGICLINKS)
    if filesystem_magic(fd) != PROC_SUPER_MAGIC:
        os.close(fd)
        raise OSError(errno.EINVAL, "not on procfs", path)
    return fd


def write_procfs(path: str, text: str) -> None:
    """Write to a file that is proven to be procfs's. Raises OSError naming the path."""
    fd = open_procfs(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write: {os.strerror(error.errno or 0)}", path) from None
    finally:
        os.close(fd)


def is_directory(fd: int) -> bool:
    """Is the file of this descriptor a directory?"""
    return stat.S_ISDIR(os.fstat(fd).st_mode)
