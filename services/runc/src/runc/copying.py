"""Copying a directory tree by descriptor, for a tmpfs that starts with what it hides (`tmpcopyup`)."""

from __future__ import annotations

import os
import stat

_PIECE = 1 << 20


def copy_tree(source: int, target: int) -> None:
    """Copy everything below one directory into another: modes, owners, links, nodes, extended attributes."""
    _copy_metadata(source, target)
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=source)
            above = os.open(name, flags, dir_fd=target)
            try:
                copy_tree(below, above)
            finally:
                os.close(below)
                os.close(above)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(name, source, target)
        elif not stat.S_ISSOCK(status.st_mode):  # a socket without its process is nothing
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)


def _copy_file(name: str, source: int, target: int) -> None:
    below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        above = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(above, below, None, _PIECE):
                continue
            _copy_metadata(below, above)
        finally:
            os.close(above)
    finally:
        os.close(below)


def _copy_metadata(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for attribute in os.listxattr(source):
        try:
            os.setxattr(target, attribute, os.getxattr(source, attribute))
        except OSError:
            continue  # tmpfs takes trusted and security attributes only, and not all of those
