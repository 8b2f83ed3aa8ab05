"""The daemon as a process, with the names that Prometheus clients use (proc(5) has the numbers)."""

from __future__ import annotations

import os
import resource

from containerd import version
from containerd.metrics.text import Family

__all__ = ["families"]


def families() -> list[Family]:
    """Return the numbers now."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        # The command name may hold anything: what follows its closing parenthesis starts with field 3.
        fields = file.read().rpartition(")")[2].split()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    about = {"version": version.VERSION, "revision": version.REVISION}
    return [
        Family("containerd_build_info_total", "containerd build information", "counter").add(1, about),
        Family("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter").add(
            (int(fields[11]) + int(fields[12])) / ticks
        ),
        Family("process_resident_memory_bytes", "Resident memory size in bytes.").add(int(fields[21]) * page),
        Family("process_virtual_memory_bytes", "Virtual memory size in bytes.").add(int(fields[20])),
        Family("process_threads", "Number of threads.").add(int(fields[17])),
        Family("process_open_fds", "Number of open file descriptors.").add(len(os.listdir("/proc/self/fd")) - 1),
        Family("process_max_fds", "Maximum number of open file descriptors.").add(limit),
        Family("process_start_time_seconds", "Start time of the process since unix epoch in seconds.").add(
            _boot_time() + int(fields[19]) / ticks
        ),
    ]


def _boot_time() -> int:
    with open("/proc/stat", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("btime "):
                return int(line.split()[1])
    return 0
