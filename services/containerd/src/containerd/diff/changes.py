"""What a file system tree has that another has not, as the members of a layer.

Source: image-spec, "Image Layer Filesystem Changeset"; for overlay layers the kernel's overlayfs documentation.

The trees may belong to a running container, which can change them at any time and is not trusted: everything is
opened relative to the descriptor of its directory, and no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from containerd.archive import members
from containerd.archive.members import Member

__all__ = ["Change", "RedirectedLayer", "between", "in_overlay_layer", "whole_tree"]

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_XATTRS = ("security.capability", "user.")
_OVERLAY_XATTRS = ("user.overlay.",)


class RedirectedLayer(Exception):
    """An overlay layer whose entries point elsewhere in the layers below: it can only be read through a mount."""


@dataclass(slots=True)
class Change:
    """One member of the layer, and for a regular file an open descriptor of its content (the consumer closes it)."""

    member: Member
    file: int = -1


@contextmanager
def _opened(path: str | bytes, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(
        path, _OPEN_DIRECTORY if directory is not None else _OPEN_DIRECTORY & ~os.O_NOFOLLOW, dir_fd=directory
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Walk:
    """State of one walk: hard links that were seen, and directories whose entries are still to be written."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], bytes] = {}
        self._pending: list[tuple[bytes, os.stat_result, dict[str, bytes]]] = []

    def enter(self, path: bytes, status: os.stat_result, directory: int) -> None:
        """Remember a directory: its entry is written when something in it has changed."""
        self._pending.append((path, status, _xattrs(directory)))

    def leave(self, path: bytes) -> None:
        """Forget a directory in which nothing has changed."""
        if self._pending and self._pending[-1][0] == path:
            self._pending.pop()

    def directories(self) -> Iterator[Change]:
        """Yield the entries of the directories that lead to a change."""
        for path, status, xattrs in self._pending:
            if path:
                member = _member(path, members.DIRECTORY, status)
                member.xattrs = xattrs
                yield Change(member)
        self._pending.clear()

    def entry(self, directory: int, name: str, path: bytes, status: os.stat_result) -> Iterator[Change]:
        """Yield the entry of anything but a directory."""
        kind = _kind(status.st_mode)
        if kind is None:
            return  # a socket means nothing without its process
        yield from self.directories()
        member = _member(path, kind, status)
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                member.type, member.link = members.HARD_LINK, first
                yield Change(member)
                return
        if kind == members.SYMBOLIC_LINK:
            member.link = os.fsencode(os.readlink(name, dir_fd=directory))
        elif kind in (members.CHARACTER_DEVICE, members.BLOCK_DEVICE):
            member.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        elif kind == members.REGULAR:
            yield _file_change(member, directory, name)
            return
        yield Change(member)


def whole_tree(root: str) -> Iterator[Change]:
    """Yield everything below ``root``, sorted: what a layer on top of nothing contains."""
    with _opened(root) as directory:
        yield from _added(_Walk(), directory, b"")


def in_overlay_layer(root: str) -> Iterator[Change]:
    """Yield what an overlay's upper (or lower) layer says: its entries, whiteouts and opaque directories.

    Raises :class:`RedirectedLayer` when it cannot be read alone.
    """
    with _opened(root) as directory:
        yield from _overlay(_Walk(), directory, b"")


def between(lower: str, upper: str) -> Iterator[Change]:
    """Yield what has to be done to the tree ``lower`` to make it like ``upper``."""
    with _opened(lower) as left, _opened(upper) as right:
        walk = _Walk()
        yield from _between(walk, left, right, b"")


def _added(walk: _Walk, directory: int, path: bytes) -> Iterator[Change]:
    for name in sorted(os.listdir(directory)):
        child = _child(path, name)
        status = _status(name, directory)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield from walk.entry(directory, name, child, status)
            continue
        with _opened(name, directory) as inner:
            walk.enter(child, status, inner)
            yield from walk.directories()
            yield from _added(walk, inner, child)


def _overlay(walk: _Walk, directory: int, path: bytes) -> Iterator[Change]:
    for name in sorted(os.listdir(directory)):
        child = _child(path, name)
        status = _status(name, directory)
        if status is None:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            yield from walk.directories()
            yield _whiteout(path, name)
        elif not stat.S_ISDIR(status.st_mode):
            _refuse_redirection(f"/proc/self/fd/{directory}/{name}", status)
            yield from walk.entry(directory, name, child, status)
        else:
            with _opened(name, directory) as inner:
                _refuse_redirection(inner, status)
                walk.enter(child, status, inner)
                yield from walk.directories()
                if _xattr(inner, "trusted.overlay.opaque") == b"y":
                    yield Change(Member(child + b"/.wh..wh..opq", members.REGULAR, mode=0o600))
                yield from _overlay(walk, inner, child)


def _between(walk: _Walk, left: int, right: int, path: bytes) -> Iterator[Change]:
    before, after = set(os.listdir(left)), set(os.listdir(right))
    for name in sorted(before | after):
        child = _child(path, name)
        if name not in after:
            yield from walk.directories()
            yield _whiteout(path, name)
            continue
        status = _status(name, right)
        if status is None:
            continue
        old = _status(name, left) if name in before else None
        if not stat.S_ISDIR(status.st_mode):
            if old is None or _differs(old, status, left, right, name):
                yield from walk.entry(right, name, child, status)
        elif old is not None and stat.S_ISDIR(old.st_mode):
            with _opened(name, left) as inner_left, _opened(name, right) as inner_right:
                walk.enter(child, status, inner_right)
                if _attributes(old) != _attributes(status) or _xattrs(inner_left) != _xattrs(inner_right):
                    yield from walk.directories()
                yield from _between(walk, inner_left, inner_right, child)
                walk.leave(child)
        else:
            with _opened(name, right) as inner:
                walk.enter(child, status, inner)
                yield from walk.directories()
                yield from _added(walk, inner, child)


def _differs(old: os.stat_result, new: os.stat_result, left: int, right: int, name: str) -> bool:
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return False
    if _attributes(old) != _attributes(new) or (old.st_size, old.st_rdev) != (new.st_size, new.st_rdev):
        return True
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(name, dir_fd=left) != os.readlink(name, dir_fd=right)
    if old.st_mtime_ns != new.st_mtime_ns:
        return True
    return _xattrs(f"/proc/self/fd/{left}/{name}") != _xattrs(f"/proc/self/fd/{right}/{name}")


def _attributes(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_mode, status.st_uid, status.st_gid)


def _file_change(member: Member, directory: int, name: str) -> Change:
    # Without O_NONBLOCK a FIFO that took the file's place would hold us up for ever.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fsdecode(member.name)} changed its type while it was read")
    member.size = status.st_size
    member.xattrs = _xattrs(descriptor)
    return Change(member, descriptor)


def _whiteout(path: bytes, name: str) -> Change:
    return Change(Member(_child(path, ".wh." + name), members.REGULAR, mode=0o600))


def _child(path: bytes, name: str) -> bytes:
    return path + b"/" + os.fsencode(name) if path else os.fsencode(name)


def _status(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _member(path: bytes, kind: bytes, status: os.stat_result) -> Member:
    return Member(
        path, kind, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid, mtime=status.st_mtime_ns
    )


def _kind(mode: int) -> bytes | None:
    for test, kind in (
        (stat.S_ISREG, members.REGULAR),
        (stat.S_ISLNK, members.SYMBOLIC_LINK),
        (stat.S_ISFIFO, members.FIFO),
        (stat.S_ISCHR, members.CHARACTER_DEVICE),
        (stat.S_ISBLK, members.BLOCK_DEVICE),
    ):
        if test(mode):
            return kind
    return None


def _xattrs(target: int | str) -> dict[str, bytes]:
    """Return the attributes that belong into a layer."""
    found = {}
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return {}
    for name in sorted(names):
        if name.startswith(_KEPT_XATTRS) and not name.startswith(_OVERLAY_XATTRS):
            value = _xattr(target, name)
            if value is not None:
                found[name] = value
    return found


def _xattr(target: int | str, name: str) -> bytes | None:
    try:
        return os.getxattr(target, name, follow_symlinks=isinstance(target, int))
    except OSError:
        return None


def _refuse_redirection(target: int | str, status: os.stat_result) -> None:
    names = ["trusted.overlay.redirect"]
    if stat.S_ISREG(status.st_mode):
        names = ["trusted.overlay.metacopy"]
    elif not stat.S_ISDIR(status.st_mode):
        return
    for name in names:
        if _xattr(target, name) is not None:
            raise RedirectedLayer(name)
