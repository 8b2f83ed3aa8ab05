"""Scheduler, I/O priority, processors and memory policy. The last release of another runtime may lack some: it is told
by `features`, or ignores them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("ours_only")
STAT_NICE, STAT_POLICY = 18, 40  # fields of proc(5) stat, counted from 0


def stat_fields(text: str) -> list[str]:
    """/proc/PID/stat, its first two fields as one."""
    return ["", *text[text.rindex(")") :].split()]


def test_policy_and_nice(runtime) -> None:
    """Of the first process, and of one that is added."""
    runtime.bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    fields = stat_fields(runtime.output("cat", "/proc/self/stat"))
    assert (fields[STAT_NICE], fields[STAT_POLICY]) == ("7", "3")
    runtime.detached("sleep", "100")
    fields = stat_fields(runtime.exec("cat", "/proc/self/stat").stdout)
    assert (fields[STAT_NICE], fields[STAT_POLICY]) == ("7", "3")


def test_a_real_time_policy_where_it_is_allowed(runtime) -> None:
    """Or the kernel's refusal, with nothing left."""
    runtime.bundle.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    done = runtime.run("cat", "/proc/self/stat")
    if done.returncode:
        assert "error setting scheduler" in done.stderr
        return
    assert stat_fields(done.stdout)[STAT_POLICY - 1 : STAT_POLICY + 1] == ["3", "1"]


def test_io_priority(runtime) -> None:
    """As ioprio_get(2) has it: an idle class."""
    runtime.bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    runtime.detached("sleep", "100")
    import ctypes

    number = {"x86_64": 252}.get(os.uname().machine, 31)
    value = ctypes.CDLL(None).syscall(number, 1, runtime.state()["pid"])
    assert value >> 13 == 3


def test_memory_policy(runtime) -> None:
    """Of the first process and of an added one."""
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("the kernel knows no memory nodes")
    runtime.bundle.linux["memoryPolicy"] = {"mode": "MPOL_INTERLEAVE", "nodes": "0"}
    runtime.detached("sleep", "100")
    assert "interleave:0" in Path(f"/proc/{runtime.state()['pid']}/numa_maps").read_text()
    assert "interleave:0" in runtime.exec("head", "-n", "1", "/proc/self/numa_maps").stdout
    runtime.delete()
    runtime.bundle.linux["memoryPolicy"] = {"mode": "INTERLEAVE"}
    done = runtime.run("true")
    assert done.returncode == 1
    assert "invalid memory policy mode" in done.stderr


def test_processors_of_an_added_process(runtime, tmp_path: Path) -> None:
    """Before and after its cgroup; the container's own process stays everywhere, and so does the caller."""
    last = max(os.sched_getaffinity(0))
    runtime.detached("sleep", "100")
    process = {"cwd": "/", "args": ["grep", "Cpus_allowed_list", "/proc/self/status"], "env": ["PATH=/bin"]}
    for affinity in ({"final": str(last)}, {"initial": "0", "final": str(last)}, {"initial": str(last)}):
        (tmp_path / "process.json").write_text(json.dumps(process | {"execCPUAffinity": affinity}))
        done = runtime.call("exec", "--process", str(tmp_path / "process.json"), runtime.id)
        assert done.stdout.split() == ["Cpus_allowed_list:", str(last)], done.stderr
    (tmp_path / "process.json").write_text(json.dumps(process | {"execCPUAffinity": {"final": "999"}}))
    done = runtime.call("exec", "--process", str(tmp_path / "process.json"), runtime.id)
    assert done.returncode == 255
    assert "error setting final CPU affinity" in done.stderr
    assert os.sched_getaffinity(runtime.state()["pid"]) == os.sched_getaffinity(0)
