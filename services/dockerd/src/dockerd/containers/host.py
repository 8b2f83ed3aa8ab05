"""What this machine offers to containers, read once."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache

__all__ = ["Host", "current"]

_CGROUP = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Host:
    """Facts about the machine. ``cgroup_version`` is 2 for the unified hierarchy, else 1 (hybrid counts as 1).

    The further fields say whether the kernel has the limit; ``init`` is the path of a small init program for
    ``--init``, empty when there is none.
    """

    cgroup_version: int = 1
    cpus: frozenset[int] = frozenset({0})
    swap_limit: bool = True
    swappiness: bool = True
    oom_kill_disable: bool = True
    blkio_weight: bool = True
    cpu_realtime: bool = False
    pids: bool = True
    init: str = ""


@cache
def current() -> Host:
    """Facts about this machine."""
    unified = os.path.exists(f"{_CGROUP}/cgroup.controllers")
    memory, blkio, cpu = (f"{_CGROUP}/{name}" for name in ("memory", "blkio", "cpu"))
    return Host(
        cgroup_version=2 if unified else 1,
        cpus=frozenset(os.sched_getaffinity(0)),
        # On v2 the file exists in child groups only, where swap accounting is on (the default since Linux 5.8).
        swap_limit=unified or os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"),
        swappiness=not unified and os.path.exists(f"{memory}/memory.swappiness"),
        oom_kill_disable=not unified and os.path.exists(f"{memory}/memory.oom_control"),
        blkio_weight=_blkio_weight(unified, blkio),
        cpu_realtime=not unified and os.path.exists(f"{cpu}/cpu.rt_runtime_us"),
        pids=unified or os.path.isdir(f"{_CGROUP}/pids"),
        init=_init_program(),
    )


def _blkio_weight(unified: bool, blkio: str) -> bool:
    if unified:
        with open(f"{_CGROUP}/cgroup.controllers", encoding="ascii") as file:
            return "io" in file.read().split()
    return os.path.exists(f"{blkio}/blkio.weight") or os.path.exists(f"{blkio}/blkio.bfq.weight")


def _init_program() -> str:
    own = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "docker-init")
    if os.access(own, os.X_OK):
        return own
    return shutil.which("docker-init") or shutil.which("tini-static") or ""
