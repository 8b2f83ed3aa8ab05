"""What a cgroup counts, as the messages that containerd's clients expect: io.containerd.cgroups.v1 or v2 Metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as v1
from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as v2
from shim.cgroups import Cgroup

_MAX: Final = 0xFFFFFFFFFFFFFFFF
# Names that differ between memory.stat and the message.
_V1_MEMORY: Final = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V1_BLKIO: Final = {
    "throttle.io_service_bytes_recursive": "io_service_bytes_recursive",
    "throttle.io_serviced_recursive": "io_serviced_recursive",
    "bfq.io_service_bytes_recursive": "io_service_bytes_recursive",
    "bfq.io_serviced_recursive": "io_serviced_recursive",
    "io_queued_recursive": "io_queued_recursive",
    "io_service_time_recursive": "io_service_time_recursive",
    "io_wait_time_recursive": "io_wait_time_recursive",
    "io_merged_recursive": "io_merged_recursive",
    "time_recursive": "io_time_recursive",
    "sectors_recursive": "sectors_recursive",
}


def read(cgroup: Cgroup) -> Message:
    """The numbers now. What a file does not say, or a controller that is not mounted, is left at zero or unset."""
    return _read_v2(cgroup.unified) if cgroup.unified else _read_v1(cgroup)


def _text(directory: str, name: str) -> str:
    if not directory:
        return ""
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _number(directory: str, name: str) -> int:
    text = _text(directory, name).strip()
    if text == "max":
        return _MAX
    return int(text) & _MAX if text.isdigit() else 0


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            yield name, int(value)


def _fill(message: Message, pairs: Iterator[tuple[str, int]], names: dict[str, str] | None = None) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in pairs:
        field = (names or {}).get(name, name)
        # memory.stat has a "swap", which the message has too, as something else.
        if field in fields and fields[field].message_type is None:
            setattr(message, field, value)


def _hugetlb_sizes(directory: str, suffix: str) -> Iterator[str]:
    try:
        names = os.listdir(directory) if directory else []
    except OSError:
        return
    for name in names:
        match = re.fullmatch(rf"hugetlb\.(\w+)\.{suffix}", name)
        if match:
            yield match[1]


def _read_v1(cgroup: Cgroup) -> v1.Metrics:
    metrics = v1.Metrics()
    if pids := cgroup.directory("pids"):
        limit = _number(pids, "pids.max")
        metrics.pids.current = _number(pids, "pids.current")
        metrics.pids.limit = 0 if limit == _MAX else limit
    _v1_cpu(metrics, cgroup.directory("cpuacct"), cgroup.directory("cpu"))
    if memory := cgroup.directory("memory"):
        _v1_memory(metrics, memory)
    if blkio := cgroup.directory("blkio"):
        _v1_blkio(metrics, blkio)
    hugetlb = cgroup.directory("hugetlb")
    for size in _hugetlb_sizes(hugetlb, "usage_in_bytes"):
        metrics.hugetlb.add(
            pagesize=size,
            usage=_number(hugetlb, f"hugetlb.{size}.usage_in_bytes"),
            max=_number(hugetlb, f"hugetlb.{size}.max_usage_in_bytes"),
            failcnt=_number(hugetlb, f"hugetlb.{size}.failcnt"),
        )
    return metrics


def _v1_cpu(metrics: v1.Metrics, cpuacct: str, cpu: str) -> None:
    usage = metrics.cpu.usage
    usage.total = _number(cpuacct, "cpuacct.usage")
    usage.per_cpu.extend(int(value) for value in _text(cpuacct, "cpuacct.usage_percpu").split())
    # cpuacct.stat counts in ticks of a hundredth of a second whatever the kernel's own tick is (USER_HZ).
    ticks = dict(_pairs(_text(cpuacct, "cpuacct.stat")))
    usage.user = ticks.get("user", 0) * 10_000_000
    usage.kernel = ticks.get("system", 0) * 10_000_000
    names = {"nr_periods": "periods", "nr_throttled": "throttled_periods", "throttled_time": "throttled_time"}
    _fill(metrics.cpu.throttling, _pairs(_text(cpu, "cpu.stat")), names)


def _v1_memory(metrics: v1.Metrics, directory: str) -> None:
    _fill(metrics.memory, _pairs(_text(directory, "memory.stat")), _V1_MEMORY)
    entries = (
        (metrics.memory.usage, "memory"),
        (metrics.memory.swap, "memory.memsw"),
        (metrics.memory.kernel, "memory.kmem"),
        (metrics.memory.kernel_tcp, "memory.kmem.tcp"),
    )
    for entry, prefix in entries:
        entry.usage = _number(directory, f"{prefix}.usage_in_bytes")
        entry.max = _number(directory, f"{prefix}.max_usage_in_bytes")
        entry.failcnt = _number(directory, f"{prefix}.failcnt")
        entry.limit = _number(directory, f"{prefix}.limit_in_bytes")
    _fill(metrics.memory_oom_control, _pairs(_text(directory, "memory.oom_control")))


def _v1_blkio(metrics: v1.Metrics, directory: str) -> None:
    for name, field in _V1_BLKIO.items():
        entries = getattr(metrics.blkio, field)
        if entries:
            continue
        for line in _text(directory, f"blkio.{name}").splitlines():
            match = re.fullmatch(r"(\d+):(\d+)(?: (\w+))? (\d+)", line)
            if match:
                major, minor, operation, value = match.groups()
                entries.add(major=int(major), minor=int(minor), op=operation or "", value=int(value))


def _read_v2(directory: str) -> v2.Metrics:
    metrics = v2.Metrics()
    metrics.pids.current = _number(directory, "pids.current")
    metrics.pids.limit = _number(directory, "pids.max")
    _fill(metrics.cpu, _pairs(_text(directory, "cpu.stat")))
    memory = metrics.memory
    _fill(memory, _pairs(_text(directory, "memory.stat")))
    memory.usage = _number(directory, "memory.current")
    memory.usage_limit = _number(directory, "memory.max")
    memory.max_usage = _number(directory, "memory.peak")
    memory.swap_usage = _number(directory, "memory.swap.current")
    memory.swap_limit = _number(directory, "memory.swap.max")
    memory.swap_max_usage = _number(directory, "memory.swap.peak")
    _fill(metrics.memory_events, _pairs(_text(directory, "memory.events")))
    for line in _text(directory, "io.stat").splitlines():
        device, *counters = line.split()
        major, _, minor = device.partition(":")
        values = dict(counter.split("=", 1) for counter in counters if "=" in counter)
        names = ("rbytes", "wbytes", "rios", "wios")
        numbers = {name: int(values[name]) for name in names if values.get(name, "").isdigit()}
        metrics.io.usage.add(major=int(major), minor=int(minor), **numbers)
    for message, name in ((metrics.cpu, "cpu"), (memory, "memory"), (metrics.io, "io")):
        _pressure(message.psi, _text(directory, f"{name}.pressure"))
    for size in _hugetlb_sizes(directory, "current"):
        metrics.hugetlb.add(
            pagesize=size,
            current=_number(directory, f"hugetlb.{size}.current"),
            max=_number(directory, f"hugetlb.{size}.max"),
            failcnt=dict(_pairs(_text(directory, f"hugetlb.{size}.events"))).get("max", 0),
        )
    return metrics


def _pressure(stats: v2.PSIStats, text: str) -> None:
    """Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`."""
    for line in text.splitlines():
        kind, *values = line.split()
        if kind not in ("some", "full"):
            continue
        data = getattr(stats, kind)
        for value in values:
            name, _, number = value.partition("=")
            if name == "total":
                data.total = int(number)
            elif name in ("avg10", "avg60", "avg300"):
                setattr(data, name, float(number))
