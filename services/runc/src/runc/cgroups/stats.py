"""What a container uses, in the shape of `runc events` (the names are those that callers read)."""

from __future__ import annotations

import os

from runc.cgroups import control
from runc.cgroups.hierarchy import V2, Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

Values = dict[str, object]

_USER_HERTZ_NS = 10_000_000
"""cpuacct.stat counts in ticks of 1/100 s whatever the kernel's own tick is (USER_HZ)."""


def collect(paths: Paths) -> Values:
    """The `data` of a stats event. What a missing controller would tell is left out."""
    return _v2(paths.unified) if paths.mode == V2 else _v1(paths.controllers)


def _text(directory: str | None, file: str) -> str:
    if not directory:
        return ""
    try:
        return control.read(directory, file)
    except OSError:
        return ""  # the controller, or this file of it, is not there


def _number(directory: str | None, file: str) -> int:
    text = _text(directory, file)
    if text == "max":
        return (1 << 64) - 1
    return int(text) if text.lstrip("-").isdigit() else 0


def parse_flat(text: str) -> dict[str, int]:
    """Lines of `key value`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def parse_list(text: str) -> list[int]:
    """`0-2,5` as numbers."""
    numbers: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _some(values: Values) -> Values:
    """Without what is zero or empty, as Go leaves it out."""
    return {key: value for key, value in values.items() if value not in (0, [], {}, "")}


def _frame(cpu: Values, cpuset: Values, memory: Values, pids: Values, blkio: Values, hugetlb: Values) -> Values:
    return {
        "cpu": cpu,
        "cpuset": cpuset,
        "memory": memory,
        "pids": _some(pids),
        "blkio": _some(blkio),
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _pids(directory: str | None) -> Values:
    limit = _text(directory, "pids.max")
    return {"current": _number(directory, "pids.current"), "limit": 0 if limit in ("max", "") else int(limit)}


# v1


def _v1(controllers: dict[str, str]) -> Values:
    return _frame(
        {"usage": _v1_usage(controllers.get("cpuacct")), "throttling": _v1_throttling(controllers.get("cpu"))},
        _v1_cpuset(controllers.get("cpuset")),
        _v1_memory(controllers.get("memory")),
        _pids(controllers.get("pids")),
        _v1_blkio(controllers.get("blkio")),
        _hugetlb(controllers.get("hugetlb"), "usage_in_bytes"),
    )


def _v1_usage(directory: str | None) -> Values:
    ticks = parse_flat(_text(directory, "cpuacct.stat"))
    kernel: list[int] = []
    user: list[int] = []
    for line in _text(directory, "cpuacct.usage_all").splitlines()[1:]:
        _, in_user, in_kernel = line.split()
        user.append(int(in_user))
        kernel.append(int(in_kernel))
    return _some(
        {
            "total": _number(directory, "cpuacct.usage"),
            "percpu": [int(word) for word in _text(directory, "cpuacct.usage_percpu").split()],
            "percpu_kernel": kernel,
            "percpu_user": user,
        }
    ) | {"kernel": ticks.get("system", 0) * _USER_HERTZ_NS, "user": ticks.get("user", 0) * _USER_HERTZ_NS}


def _v1_throttling(directory: str | None) -> Values:
    stat = parse_flat(_text(directory, "cpu.stat"))
    return _some(
        {
            "periods": stat.get("nr_periods", 0),
            "throttledPeriods": stat.get("nr_throttled", 0),
            "throttledTime": stat.get("throttled_time", 0),
        }
    )


def _v1_cpuset(directory: str | None) -> Values:
    values = _some(
        {"cpus": parse_list(_text(directory, "cpuset.cpus")), "mems": parse_list(_text(directory, "cpuset.mems"))}
    )
    for name in (
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
        "sched_relax_domain_level",
    ):
        values[name] = _number(directory, f"cpuset.{name}")
    return values


def _v1_memory(directory: str | None) -> Values:
    raw = parse_flat(_text(directory, "memory.stat"))
    values: Values = {"cache": raw.get("cache", 0)} if raw.get("cache") else {}
    for name, prefix in (
        ("usage", "memory"),
        ("swap", "memory.memsw"),
        ("kernel", "memory.kmem"),
        ("kernelTCP", "memory.kmem.tcp"),
    ):
        values[name] = {
            "limit": _number(directory, f"{prefix}.limit_in_bytes"),
            **_some(
                {
                    "usage": _number(directory, f"{prefix}.usage_in_bytes"),
                    "max": _number(directory, f"{prefix}.max_usage_in_bytes"),
                }
            ),
            "failcnt": _number(directory, f"{prefix}.failcnt"),
        }
    values["raw"] = raw
    return values


def parse_v1_block(text: str) -> list[Values]:
    """Lines of `major:minor [op] value`; the total at the end is left out."""
    entries = []
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) == 4:
            entries.append(
                _some({"major": int(words[0]), "minor": int(words[1]), "op": words[2]}) | {"value": int(words[3])}
            )
        elif len(words) == 3 and words[0].isdigit():
            entries.append(_some({"major": int(words[0]), "minor": int(words[1])}) | {"value": int(words[2])})
    return entries


def _v1_blkio(directory: str | None) -> Values:
    found: Values = {}
    for name, files in (
        (
            "ioServiceBytesRecursive",
            ("blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive"),
        ),
        ("ioServicedRecursive", ("blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced_recursive")),
    ):
        for file in files:
            entries = parse_v1_block(_text(directory, file))
            if entries:
                found[name] = entries
                break
    return found


def _hugetlb(directory: str | None, current: str) -> Values:
    found: Values = {}
    for name in _names(directory):
        if name.startswith("hugetlb.") and name.endswith(f".{current}") and ".rsvd." not in name:
            size = name.removeprefix("hugetlb.").removesuffix(f".{current}")
            if current == "current":
                events = parse_flat(_text(directory, f"hugetlb.{size}.events"))
                found[size] = _some({"usage": _number(directory, name)}) | {"failcnt": events.get("max", 0)}
            else:
                found[size] = _some(
                    {
                        "usage": _number(directory, name),
                        "max": _number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
                    }
                ) | {"failcnt": _number(directory, f"hugetlb.{size}.failcnt")}
    return found


def _names(directory: str | None) -> Iterable[str]:
    try:
        return os.listdir(directory) if directory else ()
    except FileNotFoundError:
        return ()


# v2


def _v2(directory: str) -> Values:
    cpu = parse_flat(_text(directory, "cpu.stat"))
    usage = _some({"total": cpu.get("usage_usec", 0) * 1000}) | {
        "kernel": cpu.get("system_usec", 0) * 1000,
        "user": cpu.get("user_usec", 0) * 1000,
    }
    throttling = _some(
        {
            "periods": cpu.get("nr_periods", 0),
            "throttledPeriods": cpu.get("nr_throttled", 0),
            "throttledTime": cpu.get("throttled_usec", 0) * 1000,
        }
    )
    cpuset = _some(
        {
            "cpus": parse_list(_text(directory, "cpuset.cpus")),
            "mems": parse_list(_text(directory, "cpuset.mems")),
        }
    )
    return _frame(
        {"usage": usage, "throttling": throttling},
        cpuset,
        _v2_memory(directory),
        _pids(directory),
        _v2_io(_text(directory, "io.stat")),
        _hugetlb(directory, "current"),
    )


def _v2_memory(directory: str) -> Values:
    raw = parse_flat(_text(directory, "memory.stat"))
    events = parse_flat(_text(directory, "memory.events"))
    usage = _number(directory, "memory.current")
    limit = _number(directory, "memory.max")
    swap_limit = _number(directory, "memory.swap.max")
    return {
        "cache": raw.get("file", 0),
        "usage": {
            "limit": limit,
            **_some({"usage": usage, "max": _number(directory, "memory.peak")}),
            "failcnt": events.get("max", 0),
        },
        # v1's numbers are of memory and swap together; v2 counts swap alone.
        "swap": {
            "limit": min(limit + swap_limit, (1 << 64) - 1),
            **_some({"usage": usage + _number(directory, "memory.swap.current")}),
            "failcnt": 0,
        },
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
        "raw": raw,
    }


_V2_IO = (
    ("ioServiceBytesRecursive", (("rbytes", "Read"), ("wbytes", "Write"))),
    ("ioServicedRecursive", (("rios", "Read"), ("wios", "Write"))),
)


def _v2_io(text: str) -> Values:
    found: dict[str, list[Values]] = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        if ":" not in device:
            continue
        major, minor = map(int, device.split(":"))
        counts = dict(pair.split("=", 1) for pair in pairs)
        for name, keys in _V2_IO:
            for key, op in keys:
                if key in counts:
                    entry = _some({"major": major, "minor": minor, "op": op}) | {"value": int(counts[key])}
                    found.setdefault(name, []).append(entry)
    return dict(found)
