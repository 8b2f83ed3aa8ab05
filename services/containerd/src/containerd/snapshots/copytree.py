"""Copying a file system tree with everything that belongs to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["copy_tree"]


def copy_tree(source: Path, target: Path) -> None:
    """Copy ``source`` into the existing, empty directory ``target``.

    Owner, mode, times, extended attributes, hard links, device nodes, FIFOs and symbolic links are kept; sockets are
    left out, as they are in layers. Data is shared with the source where the file system can (``copy_file_range``).
    Both trees must be the daemon's own: nobody else may change them meanwhile.
    """
    links: dict[tuple[int, int], str] = {}
    finished: list[tuple[str, str]] = []
    pending = [(os.fspath(source), os.fspath(target))]
    while pending:
        here, there = pending.pop()
        finished.append((here, there))
        with os.scandir(here) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                destination = os.path.join(there, entry.name)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(destination, 0o700)
                    pending.append((entry.path, destination))
                    continue
                first = links.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
                if first is not None:
                    os.link(first, destination, follow_symlinks=False)
                    continue
                if _copy_entry(entry.path, destination, status):
                    links[status.st_dev, status.st_ino] = destination
                    _copy_attributes(entry.path, destination)
    for here, there in reversed(finished):  # deepest first: a directory's time is set after its entries are made
        _copy_attributes(here, there)


def _copy_entry(source: str, target: str, status: os.stat_result) -> bool:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        _copy_data(source, target, status.st_size)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISSOCK(mode):
        return False
    else:
        os.mknod(target, mode, status.st_rdev)
    return True


def _copy_data(source: str, target: str, size: int) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while size > 0:
                copied = os.copy_file_range(reader, writer, size)
                if not copied:
                    break
                size -= copied
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_attributes(source: str, target: str) -> None:
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))  # after chown, which clears set-user-id
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
