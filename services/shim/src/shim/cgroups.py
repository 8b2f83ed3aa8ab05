"""Where a container's cgroups are: /sys/fs/cgroup by convention, v1 (or hybrid) and v2."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)
MOUNT: Final = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Directories of one cgroup: of each v1 controller that is mounted, or of v2 alone (`unified`)."""

    unified: str = ""
    controllers: Mapping[str, str] | None = None

    def directory(self, controller: str) -> str:
        """Where the controller's files are; empty when it is not there."""
        return self.unified or (self.controllers or {}).get(controller, "")


def is_unified() -> bool:
    """Whether the machine has v2 alone: then the mount itself is a cgroup."""
    return os.path.exists(os.path.join(MOUNT, "cgroup.controllers"))


def of_process(pid: int) -> Cgroup | None:
    """The cgroup that a process is in; None when it has ended already or is in none."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        _log.info("cgroup of process %d: %s", pid, error)
        return None
    return parse(lines, unified=is_unified())


def parse(lines: list[str], *, unified: bool) -> Cgroup | None:
    """Reads /proc/PID/cgroup: `hierarchy:controllers:path` (cgroups(7))."""
    controllers: dict[str, str] = {}
    for line in lines:
        _, names, path = line.split(":", 2)
        if unified:
            if not names:
                return Cgroup(unified=os.path.join(MOUNT, path.lstrip("/")))
            continue
        for name in filter(None, names.split(",")):
            mounted = os.path.join(MOUNT, name.removeprefix("name="))
            controllers[name] = os.path.join(mounted, path.lstrip("/"))
    return Cgroup(controllers=controllers) if controllers else None


def add_process(pid: int, path: str) -> None:
    """Puts a process into an existing cgroup given by its path (`shim_cgroup`), in every hierarchy that has it.

    OSError when no hierarchy has it.
    """
    relative = path.lstrip("/")
    if is_unified():
        homes = [os.path.join(MOUNT, relative)]
    else:
        homes = [os.path.join(MOUNT, name, relative) for name in os.listdir(MOUNT)]
    found = False
    for home in homes:
        procs = os.path.join(home, "cgroup.procs")
        if os.path.exists(procs):
            found = True
            with open(procs, "w", encoding="ascii") as file:
                file.write(str(pid))
    if not found:
        raise FileNotFoundError(f"failed to load cgroup {path}")
