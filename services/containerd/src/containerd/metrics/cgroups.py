"""What the containers use, under containerd's names: one family for each number of their cgroups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from containerd.anyvalue import AnyValue
from containerd.metrics.text import Family
from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as v1
from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as v2

__all__ = ["families"]

_Sample = tuple[str, Mapping[str, str], int]
"""Name without its prefix, the labels that are its own, and the value."""

# Names that differ between a field of the message and the metric.
_V1_MEMORY = {
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
    "kernel_tcp": "kerneltcp",
    **{
        f"{total}{field}": f"{total}{name}"
        for total in ("", "total_")
        for field, name in (
            ("pg_pg_in", "pgpgin"),
            ("pg_pg_out", "pgpgout"),
            ("pg_fault", "pgfault"),
            ("pg_maj_fault", "pgmajfault"),
        )
    },
}
_V1_CPU = (
    ("cpu_throttle_periods_total", "periods"),
    ("cpu_throttled_periods_total", "throttled_periods"),
    ("cpu_throttled_time_nanoseconds", "throttled_time"),
)
_V1_BLKIO = (
    ("io_merged_recursive_total", "io_merged_recursive"),
    ("io_queued_recursive_total", "io_queued_recursive"),
    ("io_service_bytes_recursive_bytes", "io_service_bytes_recursive"),
    ("io_service_time_recursive_total", "io_service_time_recursive"),
    ("io_serviced_recursive_total", "io_serviced_recursive"),
    ("io_time_recursive_total", "io_time_recursive"),
    ("sectors_recursive_total", "sectors_recursive"),
)
_V2_CPU = (
    ("cpu_usage_usec_microseconds", "usage_usec"),
    ("cpu_user_usec_microseconds", "user_usec"),
    ("cpu_system_usec_microseconds", "system_usec"),
    ("cpu_nr_periods_total", "nr_periods"),
    ("cpu_nr_throttled_total", "nr_throttled"),
    ("cpu_throttled_usec_microseconds", "throttled_usec"),
)
_V2_MEMORY_WITHOUT = {"max_usage", "swap_max_usage"}
_V2_IO = (("rbytes", "bytes"), ("wbytes", "bytes"), ("rios", "total"), ("wios", "total"))


def families(containers: Iterable[tuple[str, str, AnyValue]]) -> list[Family]:
    """Return the families of all containers, each given as (namespace, id, what its shim says).

    Statistics of another kind than cgroups (a sandbox that is a virtual machine) are left out.
    """
    found: dict[str, Family] = {}
    for namespace, container_id, statistics in containers:
        owner = {"container_id": container_id, "namespace": namespace}
        for name, labels, value in _samples(statistics):
            name = f"container_{name}"
            family = found.get(name)
            if family is None:
                family = found[name] = Family(name, f"{name.removeprefix('container_').replace('_', ' ')} of a cgroup")
            family.add(value, {**owner, **labels})
    return [found[name] for name in sorted(found)]


def _samples(statistics: AnyValue) -> Iterator[_Sample]:
    reader = _READERS.get(statistics.type_url.rpartition("/")[2])
    if reader is None:
        return
    kind, read = reader
    try:
        message = kind.FromString(statistics.value)
    except DecodeError:
        return
    yield from read(message)


def _read_v1(stats: v1.Metrics) -> Iterator[_Sample]:
    if stats.HasField("pids"):
        yield "pids_current", {}, stats.pids.current
        yield "pids_limit", {}, stats.pids.limit
    if stats.HasField("cpu"):
        usage = stats.cpu.usage
        for name in ("total", "kernel", "user"):
            yield f"cpu_{name}_nanoseconds", {}, getattr(usage, name)
        for number, value in enumerate(usage.per_cpu):
            yield "per_cpu_nanoseconds", {"cpu": str(number)}, value
        yield from _listed(stats.cpu.throttling, _V1_CPU)
    if stats.HasField("memory"):
        yield from _v1_memory(stats.memory)
    if stats.HasField("blkio"):
        for name, field in _V1_BLKIO:
            for entry in getattr(stats.blkio, field):
                labels = {"op": entry.op, "device": entry.device}
                yield f"blkio_{name}", {**labels, "major": str(entry.major), "minor": str(entry.minor)}, entry.value
    for huge in stats.hugetlb:
        page = {"page": huge.pagesize}
        yield "hugetlb_usage_bytes", page, huge.usage
        yield "hugetlb_failcnt_total", page, huge.failcnt
        yield "hugetlb_max_bytes", page, huge.max


def _v1_memory(memory: v1.MemoryStat) -> Iterator[_Sample]:
    for descriptor in memory.DESCRIPTOR.fields:
        name = _V1_MEMORY.get(descriptor.name, descriptor.name)
        value = getattr(memory, descriptor.name)
        if descriptor.message_type is None:
            yield f"memory_{name}_bytes", {}, value
        elif memory.HasField(descriptor.name):
            for part in ("limit", "max", "usage"):
                yield f"memory_{name}_{part}_bytes", {}, getattr(value, part)
            yield f"memory_{name}_failcnt_total", {}, value.failcnt


def _read_v2(stats: v2.Metrics) -> Iterator[_Sample]:
    if stats.HasField("pids"):
        yield "pids_current", {}, stats.pids.current
        yield "pids_limit", {}, stats.pids.limit
    if stats.HasField("cpu"):
        yield from _listed(stats.cpu, _V2_CPU)
    if stats.HasField("memory"):
        for descriptor in stats.memory.DESCRIPTOR.fields:
            if descriptor.message_type is None and descriptor.name not in _V2_MEMORY_WITHOUT:
                yield f"memory_{descriptor.name}_bytes", {}, getattr(stats.memory, descriptor.name)
    if stats.HasField("memory_events"):
        yield "memory_oom_total", {}, stats.memory_events.oom
    for entry in stats.io.usage:
        device = {"major": str(entry.major), "minor": str(entry.minor)}
        for field, unit in _V2_IO:
            yield f"io_{field}_{unit}", device, getattr(entry, field)


def _listed(message: Message, names: Iterable[tuple[str, str]]) -> Iterator[_Sample]:
    for name, field in names:
        yield name, {}, getattr(message, field)


_READERS: dict[str, tuple[Any, Callable[[Any], Iterator[_Sample]]]] = {
    v1.Metrics.DESCRIPTOR.full_name: (v1.Metrics, _read_v1),
    v2.Metrics.DESCRIPTOR.full_name: (v2.Metrics, _read_v2),
}
