"""``docker update``: which settings of a container can change while it exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dockerd import errors
from dockerd.containers import validation
from dockerd.containers.host import Host
from dockerd.containers.model import HostConfig
from dockerd.containers.wire import from_wire

__all__ = ["updated"]

_CHANGEABLE = (
    "cpu_shares",
    "memory",
    "nano_cpus",
    "blkio_weight",
    "cpu_period",
    "cpu_quota",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
    "cpuset_cpus",
    "cpuset_mems",
    "memory_reservation",
    "memory_swap",
    "pids_limit",
    "restart_policy",
)

# Of the kernel's past: the real engine takes it and does nothing.
_IGNORED = frozenset({"kernel_memory"})


def updated(present: HostConfig, body: Mapping[str, Any], host: Host) -> tuple[HostConfig, list[str]]:
    """``present`` with the changes that ``body`` asks for, and warnings; zero values change nothing.

    Raises NotSupported naming a field that cannot change, InvalidParameter for limits that do not go together.
    """
    asked = from_wire(body, HostConfig)
    neutral = HostConfig()
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(HostConfig):
        value = getattr(asked, field.name)
        if not value or value == getattr(neutral, field.name) or field.name in _IGNORED:
            continue
        if field.name not in _CHANGEABLE:
            raise errors.NotSupported(f"{field.encode_name} cannot be changed by an update")
        changes[field.name] = value
    if asked.restart_policy.name == "":
        changes.pop("restart_policy", None)
    if asked.pids_limit is not None:
        changes["pids_limit"] = max(0, asked.pids_limit)  # any number that is no limit means none
    if "nano_cpus" in changes and (present.cpu_period or present.cpu_quota):
        raise errors.Conflict("Conflicting options: CPU Period or Quota is set: NanoCPUs cannot be set")
    if ("cpu_period" in changes or "cpu_quota" in changes) and present.nano_cpus:
        which = "CPU Period" if "cpu_period" in changes else "CPU Quota"
        raise errors.Conflict(f"Conflicting options: {which} cannot be updated as NanoCPUs has already been set")
    memory, swap = changes.get("memory"), changes.get("memory_swap", present.memory_swap)
    if memory and 0 < swap < memory:
        raise errors.Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    new = msgspec.structs.replace(present, **changes)
    validation.check_resources(new, host)
    return validation.drop_unavailable(new, host)
