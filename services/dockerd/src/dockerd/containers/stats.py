"""Numbers of a running container in the form of ``docker stats``, from containerd's cgroup metrics."""

from __future__ import annotations

import os
import time
from typing import Any

from dockerd.containers import timestamps
from dockerd.containers.model import ZERO_TIME, Container
from gantry.contracts.io.containerd.cgroups.v1 import metrics_pb2 as v1
from gantry.contracts.io.containerd.cgroups.v2 import metrics_pb2 as v2

__all__ = ["empty", "sample"]

Json = dict[str, Any]

_TICKS = os.sysconf("SC_CLK_TCK")
_BLKIO = (
    ("io_service_bytes_recursive", "io_service_bytes_recursive"),
    ("io_serviced_recursive", "io_serviced_recursive"),
    ("io_queue_recursive", "io_queued_recursive"),
    ("io_service_time_recursive", "io_service_time_recursive"),
    ("io_wait_time_recursive", "io_wait_time_recursive"),
    ("io_merged_recursive", "io_merged_recursive"),
    ("io_time_recursive", "io_time_recursive"),
    ("sectors_recursive", "sectors_recursive"),
)
_NO_CPU: Json = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


def empty(container: Container) -> Json:
    """The body for a container that does not run."""
    return {
        "name": f"/{container.name}",
        "id": container.id,
        "read": ZERO_TIME,
        "preread": ZERO_TIME,
        "pids_stats": {},
        "blkio_stats": {name: None for name, _ in _BLKIO},
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _NO_CPU,
        "precpu_stats": _NO_CPU,
        "memory_stats": {},
    }


def sample(container: Container, kind: str, data: bytes, previous: Json | None) -> Json:
    """One reading. ``kind`` is the type of the message ``data``; ``previous`` is the reading before it, if any."""
    body = empty(container)
    body["read"] = timestamps.from_nanoseconds(time.time_ns())
    if kind == "io.containerd.cgroups.v2.Metrics":
        body |= _from_v2(v2.Metrics.FromString(data))
    else:
        body |= _from_v1(v1.Metrics.FromString(data))
    if previous is not None:
        body["preread"], body["precpu_stats"] = previous["read"], previous["cpu_stats"]
    networks = _networks(container)
    if networks:
        body["networks"] = networks
    return body


def _from_v1(metrics: v1.Metrics) -> Json:
    cpu, memory = metrics.cpu, metrics.memory
    usage: Json = {
        "total_usage": cpu.usage.total,
        "percpu_usage": list(cpu.usage.per_cpu),
        "usage_in_kernelmode": cpu.usage.kernel,
        "usage_in_usermode": cpu.usage.user,
    }
    throttling = cpu.throttling
    names = {"rss_huge": "rss_huge", "pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout", "pg_fault": "pgfault"}
    names |= {"pg_maj_fault": "pgmajfault", "hierarchical_swap_limit": "hierarchical_memsw_limit"}
    details = {}
    for field in memory.DESCRIPTOR.fields:
        if field.message_type is None:
            base = field.name.removeprefix("total_")
            prefix = "total_" if field.name.startswith("total_") else ""
            details[prefix + names.get(base, base)] = getattr(memory, field.name)
    return {
        "pids_stats": _pids(metrics.pids.current, metrics.pids.limit),
        "blkio_stats": {
            name: [
                {"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value}
                for entry in getattr(metrics.blkio, field)
            ]
            for name, field in _BLKIO
        },
        "cpu_stats": {
            "cpu_usage": usage,
            **_system_cpu(),
            "throttling_data": {
                "periods": throttling.periods,
                "throttled_periods": throttling.throttled_periods,
                "throttled_time": throttling.throttled_time,
            },
        },
        "memory_stats": {
            "usage": memory.usage.usage,
            "max_usage": memory.usage.max,
            "stats": dict(sorted(details.items())),
            **({"failcnt": memory.usage.failcnt} if memory.usage.failcnt else {}),
            "limit": _memory_limit(memory.usage.limit),
        },
    }


def _from_v2(metrics: v2.Metrics) -> Json:
    cpu, memory = metrics.cpu, metrics.memory
    # What memory.stat counts comes first in the message, and is all that the API has had.
    counted = memory.DESCRIPTOR.fields_by_name["usage"].number
    details = {field.name: getattr(memory, field.name) for field in memory.DESCRIPTOR.fields if field.number < counted}
    service = [
        {"major": entry.major, "minor": entry.minor, "op": op, "value": value}
        for entry in metrics.io.usage
        for op, value in (("read", entry.rbytes), ("write", entry.wbytes))
    ]
    return {
        "pids_stats": _pids(metrics.pids.current, metrics.pids.limit),
        "blkio_stats": {name: None for name, _ in _BLKIO} | {"io_service_bytes_recursive": service},
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": cpu.usage_usec * 1000,
                "usage_in_kernelmode": cpu.system_usec * 1000,
                "usage_in_usermode": cpu.user_usec * 1000,
            },
            **_system_cpu(),
            "throttling_data": {
                "periods": cpu.nr_periods,
                "throttled_periods": cpu.nr_throttled,
                "throttled_time": cpu.throttled_usec * 1000,
            },
        },
        "memory_stats": {
            "usage": memory.usage,
            "stats": details,
            **({"failcnt": metrics.memory_events.oom} if metrics.memory_events.oom else {}),
            "limit": _memory_limit(memory.usage_limit),
        },
    }


def _pids(current: int, limit: int) -> Json:
    """Without a limit, a reading of v1 has none and one of v2 the largest number, as the real engine's have."""
    return {"current": current} | ({"limit": limit} if limit else {})


def _system_cpu() -> Json:
    """Nanoseconds that all processors have spent since the start, and how many there are."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()
    # user, nice, system, idle, iowait, irq, softirq: what the real engine adds up.
    total = sum(int(field) for field in fields[1:8])
    return {"system_cpu_usage": total * 1_000_000_000 // _TICKS, "online_cpus": os.cpu_count() or 1}


def _memory_limit(limit: int) -> int:
    """The limit, or the machine's memory where there is none."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(limit, total) if limit else total


def _networks(container: Container) -> Json:
    """Counters of the devices in the container's network namespace, without the loopback."""
    if container.host_config.network_mode in ("host", "none"):
        return {}
    try:
        with open(f"/proc/{container.state.pid}/net/dev", encoding="ascii") as file:
            lines = file.readlines()[2:]
    except OSError:  # it has just ended
        return {}
    networks: Json = {}
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = [int(field) for field in numbers.split()]
        if name.strip() != "lo" and len(fields) >= 12:
            received = zip(("rx_bytes", "rx_packets", "rx_errors", "rx_dropped"), fields[0:4], strict=True)
            sent = zip(("tx_bytes", "tx_packets", "tx_errors", "tx_dropped"), fields[8:12], strict=True)
            networks[name.strip()] = dict(received) | dict(sent)
    return networks
