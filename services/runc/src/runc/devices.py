"""Device nodes and the links of /dev (config-linux.md "Devices"; runtime-linux.md "Dev symbolic links")."""

from __future__ import annotations

import errno
import os
import stat

from gantry.linux import mount as linux_mount
from gantry.linux import path as linux_path
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import Device, Spec

DEFAULT_MODE = 0o666

DEFAULT_DEVICES: tuple[Device, ...] = tuple(
    {"type": "c", "path": f"/dev/{name}", "major": major, "minor": minor, "fileMode": DEFAULT_MODE, "uid": 0, "gid": 0}
    for name, major, minor in (
        ("null", 1, 3),
        ("random", 1, 8),
        ("full", 1, 7),
        ("tty", 5, 0),
        ("zero", 1, 5),
        ("urandom", 1, 9),
    )
)

LINKS = (
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
)

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def plan_devices(spec: Spec) -> list[Device]:
    """The nodes to make: the default ones, where the spec does not redefine them, then the spec's.

    Raises RuntimeFailure for a type that is none.
    """
    own = spec["linux"].get("devices", [])
    for device in own:
        if device["type"] not in _KINDS:
            raise RuntimeFailure(f'device {device["path"]}: type "{device["type"]}" is not one of c, b, u, p')
        if not device["path"].startswith("/"):
            raise RuntimeFailure(f"device {device['path']}: the path must be absolute")
    redefined = {os.path.normpath(device["path"]) for device in own}
    return [device for device in DEFAULT_DEVICES if device["path"] not in redefined] + list(own)


def create(root_fd: int, devices: list[Device], *, bind: bool) -> None:
    """Make the nodes inside the root. With `bind` (in a user namespace) the host's nodes are bound instead."""
    before = os.umask(0)
    try:
        for device in devices:
            path = device["path"]
            if path in ("/dev/ptmx", "/dev/console"):
                continue  # these are made from the container's own devpts and terminal
            try:
                _create_one(root_fd, device, bind)
            except OSError as error:
                raise RuntimeFailure(f"creating device {path}: {system_text(error)}") from error
    finally:
        os.umask(before)


def _create_one(root_fd: int, device: Device, bind: bool) -> None:
    parent, name = os.path.split(os.path.normpath("/" + device["path"].lstrip("/")))
    parent_fd = linux_path.mkdir_all_in_root(root_fd, parent)
    try:
        if bind:
            _bind(parent_fd, name, device["path"])
            return
        mode = _KINDS[device["type"]] | device.get("fileMode", DEFAULT_MODE) & 0o7777
        number = os.makedev(device.get("major", 0), device.get("minor", 0))
        try:
            os.mknod(name, mode, number, dir_fd=parent_fd)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            _bind(parent_fd, name, device["path"])
            return
        os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=parent_fd, follow_symlinks=False)
    finally:
        os.close(parent_fd)


def _bind(parent_fd: int, name: str, host_path: str) -> None:
    tree = linux_mount.open_tree(host_path)
    try:
        target = os.open(name, os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent_fd)
        try:
            linux_mount.move_mount(tree, "", to_fd=target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def link(root_fd: int) -> None:
    """Make /dev/ptmx and the links to /proc/self/fd; what is there already stays, /dev/ptmx excepted."""
    dev_fd = linux_path.mkdir_all_in_root(root_fd, "/dev")
    try:
        try:  # noqa: SIM105 (contextlib costs start-up time)
            os.unlink("ptmx", dir_fd=dev_fd)
        except FileNotFoundError:
            pass
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev_fd)
        links = list(LINKS)
        if os.path.exists("/proc/kcore"):
            links.append(("/proc/kcore", "dev/core"))
        for target, path in links:
            try:
                os.symlink(target, os.path.basename(path), dir_fd=dev_fd)
            except FileExistsError:
                continue
    except OSError as error:
        raise RuntimeFailure(f"setting up /dev: {system_text(error)}") from error
    finally:
        os.close(dev_fd)
