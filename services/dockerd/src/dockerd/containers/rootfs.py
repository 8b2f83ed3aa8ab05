"""A container's root file system, seen by the engine without mounting it anywhere.

A detached mount (fsopen(2), Linux 5.2) belongs to its descriptor alone: no process sees it, and none is left behind
when the engine is killed. It is read-only: while a container runs, its own mount writes to the same directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dockerd import errors
from gantry.linux import mount, path

if TYPE_CHECKING:
    from gantry.contracts.containerd.types import mount_pb2

__all__ = ["open_rootfs", "read_file"]


@contextmanager
def open_rootfs(mounts: Sequence[mount_pb2.Mount]) -> Iterator[int]:
    """Give a descriptor of the root directory that ``mounts`` (a snapshot's) describe, for reading.

    Raises SystemFailure for a kind of snapshot that is neither a directory nor an overlay, or when it cannot be opened.
    """
    try:
        root = _open(mounts)
    except OSError as error:
        raise errors.SystemFailure(f"cannot open the container's root file system: {error}") from error
    try:
        yield root
    finally:
        os.close(root)


def read_file(root: int, name: str, limit: int = 1 << 20) -> str:
    """The text of a file inside the root, at most ``limit`` bytes of it; empty when there is no such regular file."""
    try:
        # O_NONBLOCK: an image may put a fifo there.
        fd = path.open_in_root(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(limit).decode("utf-8", "replace")


def _open(mounts: Sequence[mount_pb2.Mount]) -> int:
    if len(mounts) != 1:
        raise errors.SystemFailure(f"a snapshot of {len(mounts)} mounts cannot be opened")
    (entry,) = mounts
    if entry.type == "bind":
        return os.open(entry.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if entry.type == "overlay":
        return _open_overlay(list(entry.options))
    raise errors.SystemFailure(f"a snapshot of type {entry.type} cannot be opened")


def _open_overlay(options: list[str]) -> int:
    settings = dict(option.partition("=")[::2] for option in options)
    # As lower directories only: an upper one may not be in use twice.
    layers = [settings["upperdir"]] if settings.get("upperdir") else []
    layers += settings.get("lowerdir", "").split(":")
    if len(layers) == 1:
        return os.open(layers[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with ExitStack() as opened:
        context = mount.fsopen("overlay")
        opened.callback(os.close, context)
        mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "source", "overlay")
        _configure_layers(context, layers, opened)
        mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
        return mount.fsmount(context, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)


def _configure_layers(context: int, layers: Sequence[str], opened: ExitStack) -> None:
    """Tell of the lower directories, the topmost first: one by one where the kernel has that (Linux 6.5)."""
    try:
        for layer in layers:
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "lowerdir+", layer)
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # One string has at most 255 bytes (fsconfig(2)): the layers go by short names.
    names = []
    for layer in layers:
        fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        names.append(f"/proc/self/fd/{fd}")
    mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "lowerdir", ":".join(names))
