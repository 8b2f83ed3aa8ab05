"""What a container has changed in its root file system, read from the upper directory of its overlay.

Kinds are those of the API: 0 modified, 1 added, 2 deleted. A whiteout (a character device 0:0) hides what a lower layer
has; the attribute ``trusted.overlay.opaque`` on a directory hides all of it (kernel, filesystems/overlayfs).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dockerd import errors
from dockerd.containers.rootfs import open_rootfs
from gantry.contracts.containerd.types import mount_pb2 as mounts_pb2
from gantry.linux import path

if TYPE_CHECKING:
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["ADDED", "DELETED", "MODIFIED", "Change", "changes"]

MODIFIED, ADDED, DELETED = 0, 1, 2

_OPAQUE = "trusted.overlay.opaque"
_RESOLVE = path.RESOLVE_BENEATH | path.RESOLVE_NO_SYMLINKS

# What the runtime makes to mount things on: in the real engine they are part of a layer below the container's.
_MOUNT_POINTS = frozenset(
    {
        "/dev",
        "/dev/console",
        "/dev/mqueue",
        "/dev/pts",
        "/dev/shm",
        "/etc",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/proc",
        "/sys",
    }
)


@dataclass(frozen=True)
class Change:
    """One path, and what happened to it."""

    path: str
    kind: int


def changes(root_mounts: Sequence[mount_pb2.Mount]) -> list[Change]:
    """The changes that the upper directory of ``root_mounts`` holds, sorted by path.

    Raises NotSupported for a snapshot that is no overlay.
    """
    if len(root_mounts) != 1 or root_mounts[0].type not in ("overlay", "bind"):
        raise errors.SystemFailure("the container's snapshot cannot be read")
    settings = dict(option.partition("=")[::2] for option in root_mounts[0].options)
    if root_mounts[0].type == "bind" or not settings.get("upperdir"):
        raise errors.NotSupported("docker diff needs containerd's snapshotter overlayfs")
    lower = mounts_pb2.Mount(type="overlay", options=[f"lowerdir={settings.get('lowerdir', '')}"])
    with _directory(settings["upperdir"]) as upper, open_rootfs([lower]) as below:
        found = _Walk(upper, below).below("")
    return sorted(found, key=lambda change: change.path)


@contextmanager
def _directory(name: str) -> Iterator[int]:
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class _Walk:
    def __init__(self, upper: int, lower: int) -> None:
        self._upper = upper
        self._lower = lower

    def below(self, directory: str) -> list[Change]:
        """The changes in one directory of the upper layer; ``directory`` is relative, empty for the root."""
        found: list[Change] = []
        pending = [directory]
        hidden: list[str] = []  # directories that the runtime has made or touched
        while pending:
            current = pending.pop()
            names = self._names(current)
            for name in names:
                relative = f"{current}/{name}" if current else name
                change = self._change(relative)
                if change is None:
                    continue
                if change.kind != DELETED and self._is_directory(self._upper, relative):
                    pending.append(relative)
                if change.path in _MOUNT_POINTS and self._is_mount_point(change, relative):
                    if self._is_directory(self._upper, relative):
                        hidden.append(change.path)
                    continue
                found.append(change)
            if self._opaque(current):
                found += self._hidden_by(current, names)
        return [*found, *self._shown(hidden, found)]

    def _shown(self, hidden: list[str], found: list[Change]) -> Iterator[Change]:
        """Directories that were left out although something else in them has changed."""
        for name in hidden:
            if any(change.path.startswith(f"{name}/") for change in found):
                kind = ADDED if self._status(self._lower, name.lstrip("/")) is None else MODIFIED
                yield Change(name, kind)

    def _change(self, relative: str) -> Change | None:
        status = self._status(self._upper, relative)
        if status is None:
            return None
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return Change(f"/{relative}", DELETED)
        old = self._status(self._lower, relative)
        return Change(f"/{relative}", ADDED if old is None else MODIFIED)

    def _is_mount_point(self, change: Change, relative: str) -> bool:
        """Whether a path that the runtime needs is as the runtime makes it."""
        status, old = self._status(self._upper, relative), self._status(self._lower, relative)
        if change.kind == DELETED or status is None:
            return False
        if stat.S_ISDIR(status.st_mode):
            return old is None or (old.st_mode, old.st_uid, old.st_gid) == (
                status.st_mode,
                status.st_uid,
                status.st_gid,
            )
        return change.kind == ADDED and status.st_size == 0

    def _hidden_by(self, directory: str, names: list[str]) -> list[Change]:
        try:
            fd = path.openat2(directory or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE, dir_fd=self._lower)
        except OSError:
            return []
        try:
            gone = sorted(set(os.listdir(fd)) - set(names))
        finally:
            os.close(fd)
        return [Change(f"/{directory}/{name}" if directory else f"/{name}", DELETED) for name in gone]

    def _opaque(self, relative: str) -> bool:
        try:
            fd = path.openat2(relative or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE, dir_fd=self._upper)
        except OSError:
            return False
        try:
            return os.getxattr(fd, _OPAQUE) == b"y"
        except OSError:
            return False
        finally:
            os.close(fd)

    def _names(self, relative: str) -> list[str]:
        try:
            fd = path.openat2(relative or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE, dir_fd=self._upper)
        except OSError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _is_directory(self, root: int, relative: str) -> bool:
        status = self._status(root, relative)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _status(self, root: int, relative: str) -> os.stat_result | None:
        try:
            fd = path.openat2(relative, os.O_PATH | os.O_NOFOLLOW, resolve=_RESOLVE, dir_fd=root)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
