"""From the spec's resources to the files of control groups: pure, for v1 and v2 (config-linux.md "Control groups")."""

from __future__ import annotations

from runc.cgroups import devices
from runc.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gantry.oci.runtime import CPU, BlockIO, Memory, Resources


class Write:
    """A value for a file of one controller."""

    __slots__ = ("controller", "file", "value")

    def __init__(self, controller: str, file: str, value: str) -> None:
        self.controller = controller
        self.file = file
        self.value = value

    def describe(self) -> str:
        """For plans that are printed."""
        return f"{self.controller}: {self.file} = {self.value}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Write) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.describe())

    def __repr__(self) -> str:
        return f"Write({self.describe()})"


UNLIMITED = -1


def v1_writes(resources: Resources, swap_limit_now: int | None = None) -> list[Write]:
    """Everything to write for these resources, device rules excepted, in the order that the kernel takes it.

    swap_limit_now: memory.memsw.limit_in_bytes as it is, for the order of two limits of which one bounds the other.
    """
    writes = _v1_memory(resources.get("memory", {}), swap_limit_now)
    writes += _v1_cpu(resources.get("cpu", {}))
    writes += _cpuset(resources.get("cpu", {}))
    writes += _pids(resources)
    writes += _v1_blkio(resources.get("blockIO", {}))
    for limit in resources.get("hugepageLimits", []):
        writes.append(Write("hugetlb", f"hugetlb.{limit['pageSize']}.limit_in_bytes", str(limit["limit"])))
    network = resources.get("network", {})
    if network.get("classID"):
        writes.append(Write("net_cls", "net_cls.classid", str(network["classID"])))
    for priority in network.get("priorities", []):
        writes.append(Write("net_prio", "net_prio.ifpriomap", f"{priority['name']} {priority['priority']}"))
    return writes + _rdma(resources)


def _v1_memory(memory: Memory, swap_limit_now: int | None) -> list[Write]:
    writes: list[Write] = []
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit == UNLIMITED and swap == 0:
        swap = UNLIMITED
    both = []
    if limit:
        both.append(Write("memory", "memory.limit_in_bytes", str(limit)))
    if swap:
        both.append(Write("memory", "memory.memsw.limit_in_bytes", str(swap)))
    # Memory alone may never be more than memory and swap: grow the outer limit first, shrink the inner one first.
    if limit and swap and swap_limit_now is not None and (swap == UNLIMITED or swap_limit_now < swap):
        both.reverse()
    writes += both
    if memory.get("reservation"):
        writes.append(Write("memory", "memory.soft_limit_in_bytes", str(memory["reservation"])))
    if memory.get("kernelTCP"):
        writes.append(Write("memory", "memory.kmem.tcp.limit_in_bytes", str(memory["kernelTCP"])))
    if memory.get("disableOOMKiller"):
        writes.append(Write("memory", "memory.oom_control", "1"))
    swappiness = memory.get("swappiness")
    if swappiness is not None and swappiness != UNLIMITED:
        if not 0 <= swappiness <= 100:
            raise RuntimeFailure(f"invalid memory swappiness value: {swappiness} (valid range is 0-100)")
        writes.append(Write("memory", "memory.swappiness", str(swappiness)))
    return writes


def _v1_cpu(cpu: CPU) -> list[Write]:
    writes = []
    if cpu.get("shares"):
        writes.append(Write("cpu", "cpu.shares", str(cpu["shares"])))
    for key, file in (
        ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"),
        ("period", "cpu.cfs_period_us"),
        ("quota", "cpu.cfs_quota_us"),
    ):
        value = cpu.get(key)
        if value:
            writes.append(Write("cpu", file, str(value)))
    if cpu.get("burst") is not None:
        writes.append(Write("cpu", "cpu.cfs_burst_us", str(cpu["burst"])))
    if cpu.get("idle") is not None:
        writes.append(Write("cpu", "cpu.idle", str(cpu["idle"])))
    return writes


def _cpuset(cpu: CPU) -> list[Write]:
    writes = []
    if cpu.get("cpus"):
        writes.append(Write("cpuset", "cpuset.cpus", cpu["cpus"]))
    if cpu.get("mems"):
        writes.append(Write("cpuset", "cpuset.mems", cpu["mems"]))
    return writes


def _pids(resources: Resources) -> list[Write]:
    limit = resources.get("pids", {}).get("limit", 0)
    return [Write("pids", "pids.max", str(limit) if limit > 0 else "max")] if limit else []


_THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


def _v1_blkio(block: BlockIO) -> list[Write]:
    writes = []
    if block.get("weight"):
        writes.append(Write("blkio", "blkio.weight", str(block["weight"])))
    if block.get("leafWeight"):
        writes.append(Write("blkio", "blkio.leaf_weight", str(block["leafWeight"])))
    for device in block.get("weightDevice", []):
        number = f"{device['major']}:{device['minor']}"
        if device.get("weight"):
            writes.append(Write("blkio", "blkio.weight_device", f"{number} {device['weight']}"))
        if device.get("leafWeight"):
            writes.append(Write("blkio", "blkio.leaf_weight_device", f"{number} {device['leafWeight']}"))
    for key, file, _ in _THROTTLES:
        for throttle in block.get(key, []):  # type: ignore[attr-defined]
            writes.append(Write("blkio", file, f"{throttle['major']}:{throttle['minor']} {throttle['rate']}"))
    return writes


def _rdma(resources: Resources) -> list[Write]:
    writes = []
    for device, limits in resources.get("rdma", {}).items():
        parts = [device]
        if "hcaHandles" in limits:
            parts.append(f"hca_handle={limits['hcaHandles']}")
        if "hcaObjects" in limits:
            parts.append(f"hca_object={limits['hcaObjects']}")
        writes.append(Write("rdma", "rdma.max", " ".join(parts)))
    return writes


def v1_device_writes(resources: Resources) -> list[Write]:
    """The device rules in v1's lines."""
    lines = devices.v1_lines(devices.policy(resources.get("devices", [])))
    return [Write("devices", file, line) for file, line in lines]


def v2_writes(resources: Resources) -> list[Write]:
    """Everything to write for these resources in a v2 hierarchy; device rules are a program there."""
    writes = _v2_memory(resources.get("memory", {}))
    writes += _v2_cpu(resources.get("cpu", {}))
    writes += _cpuset(resources.get("cpu", {}))
    writes += _pids(resources)
    writes += _v2_io(resources.get("blockIO", {}))
    for limit in resources.get("hugepageLimits", []):
        writes.append(Write("hugetlb", f"hugetlb.{limit['pageSize']}.max", str(limit["limit"])))
    writes += _rdma(resources)
    for file, value in resources.get("unified", {}).items():
        if "/" in file or "." not in file or file.startswith("."):
            raise RuntimeFailure(f"unified resource {file!r} must be a file name of a controller")
        writes.append(Write(file.partition(".")[0], file, value))
    return writes


def _maximum(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


def _v2_memory(memory: Memory) -> list[Write]:
    writes = []
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit == UNLIMITED and swap == 0:
        swap = UNLIMITED
    if swap:
        # The spec's swap is memory and swap together; v2 limits swap alone.
        if swap > 0:
            if limit <= 0:
                raise RuntimeFailure("unable to set swap limit without memory limit")
            if swap < limit:
                raise RuntimeFailure("memory+swap limit should be >= memory limit")
            swap -= limit
        writes.append(Write("memory", "memory.swap.max", _maximum(swap)))
    if limit:
        writes.append(Write("memory", "memory.max", _maximum(limit)))
    if memory.get("reservation"):
        writes.append(Write("memory", "memory.low", _maximum(memory["reservation"])))
    return writes


def cpu_weight(shares: int) -> int:
    """v2's weight (1 to 10000) for v1's shares (2 to 262144), by the mapping that engines agreed on."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142


def _v2_cpu(cpu: CPU) -> list[Write]:
    writes = []
    if cpu.get("idle") is not None:
        writes.append(Write("cpu", "cpu.idle", str(cpu["idle"])))
    if cpu.get("shares") and cpu.get("idle") != 1:
        writes.append(Write("cpu", "cpu.weight", str(cpu_weight(cpu["shares"]))))
    if cpu.get("realtimePeriod") or cpu.get("realtimeRuntime"):
        raise RuntimeFailure("realtime CPU limits are not supported by cgroup v2")
    quota, period = cpu.get("quota", 0), cpu.get("period", 0)
    if quota or period:
        writes.append(Write("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period or 100000}"))
    if cpu.get("burst") is not None:
        writes.append(Write("cpu", "cpu.max.burst", str(cpu["burst"])))
    return writes


def io_weight(weight: int) -> int:
    """v2's io.weight (1 to 10000) for v1's blkio weight (10 to 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def _v2_io(block: BlockIO) -> list[Write]:
    writes = []
    if block.get("leafWeight"):
        raise RuntimeFailure("leaf weights are not supported by cgroup v2")
    if block.get("weight"):
        writes.append(Write("io", "io.weight", f"default {io_weight(block['weight'])}"))
    for device in block.get("weightDevice", []):
        if device.get("weight"):
            number = f"{device['major']}:{device['minor']}"
            writes.append(Write("io", "io.weight", f"{number} {io_weight(device['weight'])}"))
    for key, _, word in _THROTTLES:
        for throttle in block.get(key, []):  # type: ignore[attr-defined]
            writes.append(Write("io", "io.max", f"{throttle['major']}:{throttle['minor']} {word}={throttle['rate']}"))
    return writes


def check_memory(memory: Memory) -> None:
    """Raises RuntimeFailure for limits that contradict each other."""
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit > 0 and 0 < swap < limit:
        raise RuntimeFailure("memory+swap limit should be >= memory limit")
