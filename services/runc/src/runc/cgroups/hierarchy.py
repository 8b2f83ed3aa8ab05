"""Which control group hierarchies there are, and the directories a container gets in them (cgroups(7)).

v1 has one hierarchy per controller (or several controllers in one), v2 one for all, hybrid both: controllers in v1 and
a v2 hierarchy, mostly empty, at `unified`.
"""

from __future__ import annotations

import os

from runc.errors import RuntimeFailure

ROOT = "/sys/fs/cgroup"
UNIFIED_DIRECTORY = "unified"

V1 = "v1"
HYBRID = "hybrid"
V2 = "v2"


class Hierarchies:
    """The hierarchies of this machine.

    controllers: v1 controller, or `name=NAME`, to (mount point, the caller's own path in it).
    unified: mount point of the v2 hierarchy and the caller's own path there, or None.
    """

    __slots__ = ("controllers", "mode", "unified")

    def __init__(self, mode: str, controllers: dict[str, tuple[str, str]], unified: tuple[str, str] | None) -> None:
        self.mode = mode
        self.controllers = controllers
        self.unified = unified


class Paths:
    """The directories of one container: by v1 controller, and in the v2 hierarchy (empty for none)."""

    __slots__ = ("controllers", "mode", "unified")

    def __init__(self, mode: str, controllers: dict[str, str], unified: str) -> None:
        self.mode = mode
        self.controllers = controllers
        self.unified = unified

    @property
    def directories(self) -> list[str]:
        """Each directory once: controllers that are mounted together share one."""
        found = dict.fromkeys(self.controllers.values())
        if self.unified:
            found[self.unified] = None
        return list(found)


def parse_own(text: str) -> tuple[dict[str, tuple[str, str]], str | None]:
    """/proc/PID/cgroup: v1 controller to (the names mounted together, path), and the path in the v2 hierarchy."""
    controllers: dict[str, tuple[str, str]] = {}
    unified = None
    for line in text.splitlines():
        number, names, path = line.split(":", 2)
        if number == "0" and not names:
            unified = path
            continue
        for name in names.split(","):
            controllers[name] = (names, path)
    return controllers, unified


def discover() -> Hierarchies:
    """Look at this machine. Raises RuntimeFailure where no control groups are mounted."""
    with open("/proc/self/cgroup", "rb", buffering=0) as file:
        own, unified_path = parse_own(file.read().decode())
    # Only a v2 hierarchy has this file at its root.
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return Hierarchies(V2, {}, (ROOT, unified_path or "/"))
    controllers = {}
    for name, (names, path) in own.items():
        directory = os.path.join(ROOT, names.removeprefix("name="))
        if os.path.isdir(directory):
            controllers[name] = (directory, path)
    unified = None
    mount = f"{ROOT}/{UNIFIED_DIRECTORY}"
    if unified_path is not None and os.path.exists(f"{mount}/cgroup.procs"):
        unified = (mount, unified_path)
    if not controllers and unified is None:
        raise RuntimeFailure(f"no control groups are mounted at {ROOT}")
    return Hierarchies(HYBRID if unified else V1, controllers, unified)


def container_paths(hierarchies: Hierarchies, cgroups_path: str, container_id: str) -> Paths:
    """Where the container's groups are: `cgroupsPath` from the root when absolute, else below the caller's own group.

    Without one it is the id, below the caller's own (config-linux.md "Cgroups Path"). `..` never leads above the root.
    """
    if cgroups_path.startswith("/"):
        inner, relative = os.path.normpath(cgroups_path).lstrip("/"), False
    else:
        # Cleaned as if absolute, so that no `..` survives.
        inner, relative = os.path.normpath("/" + (cgroups_path or container_id)).lstrip("/"), True
    if not inner:
        raise RuntimeFailure(f'cgroupsPath "{cgroups_path}" is the root of the hierarchies')
    controllers = {
        name: os.path.join(mount, own.lstrip("/") if relative else "", inner)
        for name, (mount, own) in hierarchies.controllers.items()
    }
    unified = ""
    if hierarchies.unified:
        mount, own = hierarchies.unified
        unified = os.path.join(mount, own.lstrip("/") if relative else "", inner)
    return Paths(hierarchies.mode, controllers, unified)
