"""A container's root file system, seen by the engine without mounting it anywhere.

A detached mount (fsopen(2), Linux 5.2) belongs to its descriptor alone: no process sees it, and none is left behind
when the engine is killed. It is read-only: while a container runs, its own mount writes to the same directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from dockerd import errors
from gantry.linux import mount, namespaces, path

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
    if _layers_are_told_singly():
        return _open_layers(layers)
    # One string of fsconfig(2) has at most 255 bytes, mount(2) takes a page. What a thread mounts in a namespace of its
    # own is seen by no other, and goes with it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_mount_layers, layers).result()


def _open_layers(layers: Sequence[str]) -> int:
    context = mount.fsopen("overlay")
    try:
        mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "source", "overlay")
        for layer in layers:
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "lowerdir+", layer)
        mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
        return mount.fsmount(context, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
    finally:
        os.close(context)


def _mount_layers(layers: Sequence[str]) -> int:
    """In a thread that does nothing else: it leaves the process's mount namespace."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    with ExitStack() as opened:
        names = []
        for layer in layers:
            fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            names.append(f"/proc/self/fd/{fd}")
        flags = mount.MS_RDONLY | mount.MS_NODEV | mount.MS_NOSUID
        mount.mount("overlay", layers[0], "overlay", flags, f"lowerdir={':'.join(names)}")
        return mount.open_tree(layers[0])


@cache
def _layers_are_told_singly() -> bool:
    """Whether the kernel has `lowerdir+` (Linux 6.7). Before 6.5 any option is taken, and refused by the mount only."""
    context = mount.fsopen("overlay")

    def takes(option: str) -> bool:
        try:
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, option, "/")
        except OSError:
            return False
        return True

    try:
        return takes("lowerdir+") and not takes("no-such-option")
    finally:
        os.close(context)
