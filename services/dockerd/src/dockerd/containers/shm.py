"""/dev/shm for containers that let others join their IPC: a file system of the host's, which both mount.

A container's own /dev/shm is made by the runtime and needs nothing here. A shared one cannot be taken from
the other container's mounts: what lies at a path there is the other's to decide.
"""

from __future__ import annotations

import contextlib
import errno
import os

from dockerd import errors
from gantry.linux import mount

__all__ = ["SharedMemory"]


class SharedMemory:
    """The shared /dev/shm directories of one engine, below its exec root."""

    def __init__(self, exec_root: str) -> None:
        self._root = os.path.join(exec_root, "shm")

    def path(self, container_id: str) -> str:
        """Where the container's /dev/shm is mounted on the host."""
        return os.path.join(self._root, container_id)

    def make(self, container_id: str, size: int) -> str:
        """Mount a fresh one of ``size`` bytes; returns its path. Raises SystemFailure."""
        self.remove(container_id)
        path = self.path(container_id)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
            mount.mount("shm", path, "tmpfs", flags, f"mode=1777,size={size}")
        except OSError as error:
            raise errors.SystemFailure(f"cannot mount /dev/shm for the container: {error}") from error
        return path

    def remove(self, container_id: str) -> None:
        """Unmount it; those who still use it keep it. Without one there is nothing to do."""
        path = self.path(container_id)
        if not os.path.isdir(path):
            return
        while True:
            try:
                mount.umount2(path, mount.MNT_DETACH)
            except OSError as error:
                if error.errno == errno.EINVAL:  # not, or no longer, a mount point
                    break
                raise errors.SystemFailure(f"cannot unmount the container's /dev/shm: {error}") from error
        with contextlib.suppress(OSError):
            os.rmdir(path)
