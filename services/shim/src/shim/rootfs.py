"""The container's root file system: containerd says what to mount, the shim mounts it and takes it away."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gantry.linux import mount as linux_mount
from gantry.linux import path as linux_path
from shim.errors import InvalidArgument, ShimError

# mount(2) copies one page of options.
_LONGEST_OPTIONS = 4095
_MOST_LAYERS = 100


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a snapshot. `target` is a path below the root, mostly empty."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""


def mount_all(mounts: Sequence[Mount], rootfs: str) -> None:
    """Mounts all on `rootfs`, which is made if missing; on an error what was mounted is taken away again."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(rootfs, 0o711)
    try:
        for mount in mounts:
            _mount(mount, rootfs)
    except (OSError, ShimError) as error:
        unmount_all(rootfs)
        if isinstance(error, ShimError):
            raise
        raise ShimError(f"failed to mount rootfs component: {error}") from error


def _mount(mount: Mount, rootfs: str) -> None:
    if "loop" in mount.options:
        raise InvalidArgument("failed to mount rootfs component: mount option loop is not supported")
    if not mount.target:
        _mount_at(mount, rootfs)
        return
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target = linux_path.open_in_root(root, mount.target, os.O_PATH)
    finally:
        os.close(root)
    try:
        _mount_at(mount, linux_path.descriptor_path(target))
    finally:
        os.close(target)


def _mount_at(mount: Mount, target: str) -> None:
    directory, mount = shortened(mount)
    options = linux_mount.parse_options(mount.options)
    if options.extensions or options.recursive_set or options.recursive_clear:
        known = ", ".join(mount.options)
        raise InvalidArgument(f"failed to mount rootfs component: mount options not supported here: {known}")
    bind = bool(options.flags & linux_mount.MS_BIND)
    flags = options.flags
    with _inside(directory):
        linux_mount.mount(mount.source, target, None if bind else mount.type, flags, options.data_string)
    try:
        for propagation in options.propagation:
            linux_mount.mount(None, target, None, propagation)
        if bind and flags & linux_mount.MS_RDONLY:
            # A bind takes no flags of its own at first: they need a remount (mount(2), MS_BIND).
            linux_mount.mount(None, target, None, flags | linux_mount.MS_REMOUNT)
    except OSError:
        linux_mount.umount2(target, linux_mount.MNT_DETACH)
        raise


def shortened(mount: Mount) -> tuple[str, Mount]:
    """An overlay with too many layers for one page of options, made relative to the directory that holds them all."""
    if mount.type != "overlay" or len(",".join(mount.options)) <= _LONGEST_OPTIONS:
        return "", mount
    prefix = "lowerdir="
    lower = [option for option in mount.options if option.startswith(prefix)]
    layers = lower[0].removeprefix(prefix).split(":") if lower else []
    if len(layers) < 2:
        return "", mount
    common = os.path.commonpath(layers)
    if common in ("/", "") or common in layers:
        return "", mount
    relative = prefix + ":".join(os.path.relpath(layer, common) for layer in layers)
    options = tuple(relative if option == lower[0] else option for option in mount.options)
    return common, replace(mount, options=options)


@contextlib.contextmanager
def _inside(directory: str) -> Iterator[None]:
    """Works in a directory for the length of one call: the shim has one thread, nobody else sees it."""
    if not directory:
        yield
        return
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def unmount_all(rootfs: str) -> None:
    """Takes away all mounts on `rootfs`, whoever made them. One that is in use is detached and ends with its last user.

    OSError for anything but "nothing is mounted there".
    """
    for _ in range(_MOST_LAYERS):
        try:
            linux_mount.umount2(rootfs, linux_mount.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            linux_mount.umount2(rootfs, linux_mount.UMOUNT_NOFOLLOW | linux_mount.MNT_DETACH)
