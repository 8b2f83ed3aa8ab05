"""How the kernel is to schedule a process: policy, I/O priority, processors, memory nodes.

Sources: config.md "Linux Process" (scheduler, ioPriority, execCPUAffinity), config-linux.md "Memory policy";
sched_setattr(2), ioprio_set(2), sched_setaffinity(2), set_mempolicy(2). Everything is checked and laid out before the
fork; the process itself then only makes the calls.
"""

from __future__ import annotations

import ctypes
import errno
import os

from gantry.linux.libc import MACHINE, syscall
from runc.errors import RuntimeFailure, system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import CPUAffinity, IOPriority, MemoryPolicy, Process, Scheduler, Spec

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {"MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15}

_IO_CLASS_SHIFT = 13  # linux/ioprio.h
_IOPRIO_WHO_PGRP = 2
_MAX_NUMBER = 64 * 1024  # a sanity limit for processors and nodes
_LONG_BITS = 8 * ctypes.sizeof(ctypes.c_long)

_NR_SCHED_SETATTR = {"x86_64": 314, "i686": 351, "armv7l": 380, "ppc64le": 355, "s390x": 345}.get(MACHINE, 274)
_NR_IOPRIO_SET = {"x86_64": 251, "i686": 289, "armv7l": 314, "ppc64le": 273, "s390x": 282}.get(MACHINE, 30)
_NR_SET_MEMPOLICY = {"x86_64": 238, "i686": 276, "armv7l": 321, "ppc64le": 261, "s390x": 270}.get(MACHINE, 237)


class _SchedulerAttributes(ctypes.Structure):
    """struct sched_attr (sched_setattr(2))."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


class Scheduling:
    """What a process sets for itself, as the kernel takes it; None where nothing is asked for.

    io_priority: class and level in one number. memory: the mode with its flags, and the nodes as a bit mask.
    initial, final: processors before and after the process is in its cgroup; for `exec` alone.
    """

    __slots__ = ("attributes", "final", "initial", "io_priority", "memory", "pinned")

    def __init__(self) -> None:
        self.attributes: _SchedulerAttributes | None = None
        self.io_priority: int | None = None
        self.memory: tuple[int, int] | None = None
        self.initial: set[int] | None = None
        self.final: set[int] | None = None
        self.pinned = False
        """Has the cgroup processors of its own? The deadline policy excludes that."""

    def apply(self) -> None:
        """Set policy, I/O priority and memory policy of the calling process. Raises RuntimeFailure."""
        if self.attributes is not None:
            self._set_scheduler(self.attributes)
        if self.io_priority is not None:
            try:
                syscall(_NR_IOPRIO_SET, "ioprio_set", _IOPRIO_WHO_PGRP, 0, self.io_priority)
            except OSError as error:
                raise RuntimeFailure(f"failed to set io priority: {system_text(error)}") from error
        if self.memory is not None:
            mode, nodes = self.memory
            _set_memory_policy(mode, nodes)

    def _set_scheduler(self, attributes: _SchedulerAttributes) -> None:
        try:
            syscall(_NR_SCHED_SETATTR, "sched_setattr", 0, ctypes.byref(attributes), 0)
        except OSError as error:
            if error.errno == errno.EPERM and self.pinned:
                raise RuntimeFailure("process scheduler can't be used together with AllowedCPUs") from error
            raise RuntimeFailure(f"error setting scheduler: {system_text(error)}") from error

    def enter_initial(self) -> set[int] | None:
        """Move the caller to the initial processors; gives where it was before, None when it was left alone."""
        if self.initial is None:
            return None
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self.initial)
        except OSError as error:
            raise RuntimeFailure(f"error setting initial CPU affinity: {system_text(error)}") from error
        return before

    def enter_final(self) -> None:
        """Move the calling process, which is in its cgroup, to its final processors. Raises RuntimeFailure."""
        if self.final is None:
            return
        try:
            os.sched_setaffinity(0, self.final)
        except OSError as error:
            raise RuntimeFailure(f"error setting final CPU affinity: {system_text(error)}") from error


def plan(process: Process, spec: Spec, *, added: bool = False) -> Scheduling | None:
    """What is asked for, checked; None when nothing is. Raises RuntimeFailure.

    spec: the container's; what the process does not say for itself holds from there. added: is it a process of `exec`?
    """
    first = spec["process"]
    scheduler = process.get("scheduler", first.get("scheduler"))
    io_priority = process.get("ioPriority", first.get("ioPriority"))
    memory = spec["linux"].get("memoryPolicy")
    affinity = process.get("execCPUAffinity", first.get("execCPUAffinity"))
    if scheduler is None and io_priority is None and memory is None and affinity is None:
        return None
    made = Scheduling()
    made.pinned = bool(spec["linux"].get("resources", {}).get("cpu", {}).get("cpus"))
    if scheduler is not None:
        made.attributes = scheduler_attributes(scheduler)
    if io_priority is not None:
        made.io_priority = io_priority_value(io_priority)
    if memory is not None:
        made.memory = memory_policy(memory)
    if affinity is not None:
        initial, final = cpu_affinity(affinity)
        if added:
            made.initial, made.final = initial, final
    return made


def scheduler_attributes(scheduler: Scheduler) -> _SchedulerAttributes:
    """What sched_setattr(2) takes. Raises RuntimeFailure for what does not go together."""
    policy = scheduler.get("policy", "")
    if not policy:
        raise RuntimeFailure("scheduler policy is required")
    if policy not in POLICIES:
        raise RuntimeFailure(f"invalid scheduler policy: {policy}")
    nice, priority = scheduler.get("nice", 0), scheduler.get("priority", 0)
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= nice <= 19:
        raise RuntimeFailure(f"invalid scheduler.nice: {nice} when scheduler.policy is {policy}")
    if priority and policy not in ("SCHED_FIFO", "SCHED_RR"):
        raise RuntimeFailure("scheduler.priority can only be specified for SchedFIFO or SchedRR policy")
    times = [scheduler.get("runtime", 0), scheduler.get("deadline", 0), scheduler.get("period", 0)]
    if policy != "SCHED_DEADLINE" and any(times):
        raise RuntimeFailure("scheduler runtime/deadline/period can only be specified for SchedDeadline policy")
    bits = 0
    for flag in scheduler.get("flags", []):
        if flag not in SCHEDULER_FLAGS:
            raise RuntimeFailure(f"invalid scheduler flag: {flag}")
        bits |= SCHEDULER_FLAGS[flag]
    return _SchedulerAttributes(ctypes.sizeof(_SchedulerAttributes), POLICIES[policy], bits, nice, priority, *times)


def io_priority_value(io_priority: IOPriority) -> int:
    """Class and level as ioprio_set(2) takes them. Raises RuntimeFailure."""
    level, kind = io_priority.get("priority", 0), io_priority.get("class", "")
    if not 0 <= level <= 7:
        raise RuntimeFailure(f"invalid ioPriority.Priority: {level}")
    if kind not in IO_CLASSES:
        raise RuntimeFailure(f'invalid ioPriority.Class: "{kind}"')
    return IO_CLASSES[kind] << _IO_CLASS_SHIFT | level


def cpu_affinity(affinity: CPUAffinity) -> tuple[set[int] | None, set[int] | None]:
    """Processors before and after the cgroup is joined. Raises RuntimeFailure."""
    found: list[set[int] | None] = []
    for key, text in (("Initial", affinity.get("initial", "")), ("Final", affinity.get("final", ""))):
        try:
            found.append(parse_list(text) if text else None)
        except ValueError as error:
            raise RuntimeFailure(f"bad CPUAffinity.{key}: {error}") from None
    return found[0], found[1]


def memory_policy(policy: MemoryPolicy) -> tuple[int, int]:
    """Mode with flags, and node mask, as set_mempolicy(2) takes them. Raises RuntimeFailure."""
    word = policy.get("mode", "")
    if word not in MEMORY_MODES:
        raise RuntimeFailure(f'invalid memory policy mode "{word}"')
    mode, text = MEMORY_MODES[word], policy.get("nodes", "")
    try:
        nodes = parse_list(text) if text else set()
    except ValueError as error:
        raise RuntimeFailure(f'invalid memory policy nodes "{text}": {error}') from None
    if word in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        if nodes:
            raise RuntimeFailure(f"memory policy mode requires 0 nodes but got {len(nodes)}")
    elif word != "MPOL_PREFERRED" and not nodes:
        raise RuntimeFailure("memory policy mode requires at least one node but got 0")
    for flag in policy.get("flags", []):
        if flag not in MEMORY_FLAGS:
            raise RuntimeFailure(f'invalid memory policy flag "{flag}"')
        mode |= MEMORY_FLAGS[flag]
    return mode, sum(1 << node for node in nodes)


def parse_list(text: str) -> set[int]:
    """`0-3,7` as numbers (cpuset(7) "List format"). Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"invalid range {part!r}")
        low, high = int(first), int(last if dash else first)
        if high < low or high > _MAX_NUMBER:
            raise ValueError(f"invalid range {part!r}")
        found.update(range(low, high + 1))
    if not found:
        raise ValueError(f"no members found in set {text!r}")
    return found


def _set_memory_policy(mode: int, nodes: int) -> None:
    words = -(-max(nodes.bit_length(), 1) // _LONG_BITS)
    mask = (ctypes.c_ulong * words)(*[nodes >> index * _LONG_BITS & (1 << _LONG_BITS) - 1 for index in range(words)])
    # The kernel looks at one bit less than it is told (set_mempolicy(2), BUGS of get_nodes).
    count = words * _LONG_BITS + 1
    try:
        syscall(_NR_SET_MEMPOLICY, "set_mempolicy", mode, mask if nodes else None, count if nodes else 0)
    except OSError as error:
        raise RuntimeFailure(f"failed to set memory policy: {system_text(error)}") from error
