"""Copy-up: the first content of a volume is what the image has at the volume's place.

Both trees are hostile: the image decides about names and links. So nothing is opened by path except the two roots: the
source directory is resolved inside the root file system (openat2 with RESOLVE_IN_ROOT), and from there on every step
is relative to an open directory and follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from gantry.linux.path import open_in_root

__all__ = ["copy_up"]

_CHUNK = 8 << 20
_DEPTH = 200  # of recursion, and of descriptors held open


def copy_up(rootfs_directory: str, destination: str, volume_directory: str) -> None:
    """Copy the directory ``destination`` of the root file system into ``volume_directory``.

    A destination that is missing or not a directory is no error: there is nothing to copy. Raises OSError.
    """
    with contextlib.ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        root = keep(os.open(rootfs_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            source = keep(open_in_root(root, destination, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        target = keep(os.open(volume_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        _Copy(target).directory(source, target, "")


class _Copy:
    """One copy under way; remembers hard links."""

    def __init__(self, root: int) -> None:
        self._root = root
        # Source file -> where its copy is, and which file that is.
        self._links: dict[tuple[int, int], tuple[str, tuple[int, int]]] = {}

    def directory(self, source: int, target: int, path: str) -> None:
        """Copy what is in ``source``, then give ``target`` (at ``path``) its owner, mode, times and attributes."""
        if path.count("/") > _DEPTH:
            raise OSError(errno.ENAMETOOLONG, "directories are nested too deeply to be copied into a volume", path)
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            self._entry(source, target, name, f"{path}/{name}")
        status = os.fstat(source)
        os.fchown(target, status.st_uid, status.st_gid)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        _copy_attributes(source, target)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entry(self, source: int, target: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            self._subdirectory(source, target, name, path)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFREG:
            if status.st_nlink < 2 or not self._linked(status, target, name):
                self._file(source, target, name, path)
        elif kind != stat.S_IFSOCK:  # a socket is of no use without its listener
            os.mknod(name, kind, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _subdirectory(self, source: int, target: int, name: str, path: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        inner_source = os.open(name, flags, dir_fd=source)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            inner_target = os.open(name, flags, dir_fd=target)
            try:
                self.directory(inner_source, inner_target, path)
            finally:
                os.close(inner_target)
        finally:
            os.close(inner_source)

    def _linked(self, status: os.stat_result, target: int, name: str) -> bool:
        """Make ``name`` a hard link to the copy of the same file, if there is one already.

        The volume may be in use, so that path is looked up inside the volume, and must still be the file that we made.
        """
        path, identity = self._links.get((status.st_dev, status.st_ino), ("", (0, 0)))
        if not path:
            return False
        try:
            copy = open_in_root(self._root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            found = os.fstat(copy)
            if (found.st_dev, found.st_ino) != identity:
                return False
            os.link(f"/proc/self/fd/{copy}", name, dst_dir_fd=target, follow_symlinks=True)
        except OSError as error:
            if error.errno == errno.EMLINK:
                return False
            raise
        finally:
            os.close(copy)
        return True

    def _file(self, source: int, target: int, name: str, path: str) -> None:
        original = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            copy = os.open(name, flags, 0o600, dir_fd=target)
            try:
                _copy_bytes(original, copy)
                status = os.fstat(original)
                os.fchown(copy, status.st_uid, status.st_gid)
                os.fchmod(copy, stat.S_IMODE(status.st_mode))
                _copy_attributes(original, copy)  # after chown, which drops file capabilities
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
                if status.st_nlink > 1:
                    made = os.fstat(copy)
                    self._links[(status.st_dev, status.st_ino)] = (path, (made.st_dev, made.st_ino))
            finally:
                os.close(copy)
        finally:
            os.close(original)


def _copy_bytes(source: int, target: int) -> None:
    while True:
        try:
            count = os.copy_file_range(source, target, _CHUNK)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            break
        if count == 0:
            return
    # Between file systems that cannot copy into each other, from where the first call left off.
    while os.sendfile(target, source, None, _CHUNK):
        pass


def _copy_attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue  # the layering's own notes mean nothing outside it
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
