"""Devices of the host that a container gets: ``--device``, and all of them for a privileged one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dockerd import errors
from dockerd.containers.model import HostConfig

__all__ = ["Device", "block_numbers", "check_rules", "host_devices", "requested"]

# Made by the runtime, for each container its own.
_NOT_FROM_HOST = ("/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/.udev", "/dev/.lxc")
_RULE = re.compile(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}")


@dataclass(frozen=True)
class Device:
    """A device node as the runtime makes it in the container, and what the device cgroup lets through."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str

    def oci(self) -> dict[str, Any]:
        """An entry of ``linux.devices``."""
        return {
            "path": self.path,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }

    def rule(self) -> dict[str, Any]:
        """An entry of ``linux.resources.devices``."""
        return {"allow": True, "type": self.kind, "major": self.major, "minor": self.minor, "access": self.access}


def check_rules(host_config: HostConfig) -> None:
    """Raise InvalidParameter for a DeviceCgroupRule or a device's permissions that cannot be read."""
    for text in host_config.device_cgroup_rules or ():
        if not _RULE.fullmatch(text):
            raise errors.InvalidParameter(f"invalid device cgroup rule format: '{text}'")
    for device in host_config.devices or ():
        if not re.fullmatch("[rwm]{0,3}", device.cgroup_permissions):
            raise errors.InvalidParameter(f"invalid device mode: {device.cgroup_permissions}")


def requested(host_config: HostConfig) -> list[Device]:
    """The devices of the settings, as they are on the host now. Raises InvalidParameter for one that is not there."""
    if host_config.privileged:
        return list(host_devices("/dev"))
    found: list[Device] = []
    for device in host_config.devices or ():
        target = device.path_in_container or device.path_on_host
        access = device.cgroup_permissions or "rwm"
        path = os.path.realpath(device.path_on_host)
        if os.path.isdir(path):
            found += [_moved(entry, path, target, access) for entry in host_devices(path)]
            continue
        single = _device(path, target, access)
        if single is None:
            raise errors.InvalidParameter(
                f'error gathering device information while adding custom device "{device.path_on_host}": '
                + ("not a device node" if os.path.exists(path) else "no such file or directory")
            )
        found.append(single)
    return found


def _moved(device: Device, base: str, target: str, access: str) -> Device:
    path = os.path.join(target, os.path.relpath(device.path, base))
    return Device(path, device.kind, device.major, device.minor, device.mode, device.uid, device.gid, access)


def host_devices(directory: str) -> Iterator[Device]:
    """Every device below ``directory``, without those that the runtime makes for each container."""
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        if entry.path in _NOT_FROM_HOST or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from host_devices(entry.path)
        else:
            device = _device(entry.path, entry.path, "rwm")
            if device is not None:
                yield device


def _device(path: str, target: str, access: str) -> Device | None:
    try:
        found = os.stat(path)
    except OSError:  # gone meanwhile: hot-plugged devices come and go
        return None
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        return None
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return Device(target, kind, major, minor, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, access)


def block_numbers(host_config: HostConfig) -> dict[str, tuple[int, int]]:
    """The numbers of the devices that have I/O limits. Raises InvalidParameter for one that is not there."""
    paths = [entry.path for entry in host_config.blkio_weight_device or ()]
    for throttles in (
        host_config.blkio_device_read_bps,
        host_config.blkio_device_write_bps,
        host_config.blkio_device_read_iops,
        host_config.blkio_device_write_iops,
    ):
        paths += [entry.path for entry in throttles or ()]
    numbers = {}
    for path in paths:
        device = _device(path, path, "")
        if device is None:
            raise errors.InvalidParameter(f"{path}: no such device (block I/O limit)")
        numbers[path] = (device.major, device.minor)
    return numbers
