"""What containers get on a machine that has cgroup v2 alone: by the real docker CLI, read from the kernel."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.engine import Engine, await_true

ROOT = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.skipif(
    not (ROOT / "cgroup.controllers").exists(), reason="needs a machine with cgroup v2 alone (tox -e vm)"
)


def group(docker: Engine, name: str) -> Path:
    """A container's group on the machine."""
    return ROOT / "docker" / docker.out("inspect", "-f", "{{.Id}}", name)


def value(directory: Path, file: str) -> str:
    """What a group's file holds."""
    return (directory / file).read_text().strip()


def controllers() -> list[str]:
    """Those that the machine has."""
    return value(ROOT, "cgroup.controllers").split()


def sleeping(docker: Engine, *options: str, name: str = "box") -> Path:
    """Start a container that sleeps; its group."""
    docker.docker("run", "-d", "--name", name, *options, "busybox", "sleep", "1000")
    return group(docker, name)


def test_there_is_no_version_1() -> None:
    """No v1 hierarchy is mounted, every process has the one line of v2."""
    assert "cgroup " not in {line.split(" - ")[1] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert re.fullmatch(r"0::/.*\n", Path("/proc/self/cgroup").read_text())


def test_info(docker: Engine) -> None:
    """`docker info` tells version 2 and warns of no limit that the kernel has."""
    info = json.loads(docker.out("info", "-f", "{{json .}}"))
    assert (info["CgroupVersion"], info["CgroupDriver"]) == ("2", "cgroupfs")
    assert "name=cgroupns" in info["SecurityOptions"]
    assert (info["MemoryLimit"], info["SwapLimit"], info["PidsLimit"], info["CpuCfsQuota"]) == (True,) * 4
    assert [text for text in info["Warnings"] or [] if "memory" in text or "swap" in text or "cpu " in text] == []


def test_controllers_are_handed_down(clean: Engine) -> None:
    """From the root to the containers' parent, so that a container's group has the files of every controller."""
    directory = sleeping(clean)
    for level in (ROOT, ROOT / "docker"):
        assert set(controllers()) <= set(value(level, "cgroup.subtree_control").split())
    assert set(controllers()) <= set(value(directory, "cgroup.controllers").split())
    assert value(directory, "cgroup.procs") == clean.out("inspect", "-f", "{{.State.Pid}}", "box")


def test_limits(clean: Engine) -> None:
    """Memory, swap, processors and processes."""
    options = ("--memory", "64m", "--memory-reservation", "32m", "--cpus", "0.5", "--cpu-shares", "512")
    directory = sleeping(clean, *options, "--pids-limit", "50")
    assert value(directory, "memory.max") == str(64 << 20)
    assert value(directory, "memory.low") == str(32 << 20)
    assert value(directory, "memory.swap.max") == str(64 << 20)  # memory and swap together are twice the memory
    assert value(directory, "cpu.max") == "50000 100000"
    assert value(directory, "cpu.weight") == "20"
    assert value(directory, "pids.max") == "50"


def test_without_limits_nothing_is_limited(clean: Engine) -> None:
    """Every maximum is the kernel's own default."""
    directory = sleeping(clean)
    for file in ("memory.max", "memory.swap.max", "pids.max"):
        assert value(directory, file) == "max"
    assert value(directory, "cpu.max").split()[0] == "max"


def test_processors(clean: Engine) -> None:
    """--cpuset-cpus is the group's cpuset, and what the process may run on."""
    if "cpuset" not in controllers():
        pytest.skip("the kernel has no cpusets")
    directory = sleeping(clean, "--cpuset-cpus", "0")
    assert value(directory, "cpuset.cpus") == "0"
    assert clean.out("exec", "box", "grep", "Cpus_allowed_list", "/proc/1/status").split()[1] == "0"


def test_a_disk_s_speed(clean: Engine) -> None:
    """--device-write-bps becomes a line of io.max."""
    disk = next(path for path in sorted(Path("/sys/block").iterdir()) if not path.name.startswith(("loop", "ram")))
    directory = sleeping(
        clean, "--device-write-bps", f"/dev/{disk.name}:1mb", "--device-read-iops", f"/dev/{disk.name}:7"
    )
    number, *words = value(directory, "io.max").split()
    assert number == (disk / "dev").read_text().strip()
    assert {"wbps=1048576", "riops=7", "rbps=max"} <= set(words)


def test_update(clean: Engine) -> None:
    """Limits of a running container are raised and lowered."""
    directory = sleeping(clean, "--memory", "64m")
    clean.docker("update", "--memory", "128m", "--memory-swap", "128m", "--cpus", "0.7", "--pids-limit", "30", "box")
    assert (value(directory, "memory.max"), value(directory, "memory.swap.max")) == (str(128 << 20), "0")
    assert (value(directory, "cpu.max"), value(directory, "pids.max")) == ("70000 100000", "30")
    clean.docker("update", "--memory", "32m", "--memory-swap", "-1", "--pids-limit", "-1", "box")
    assert (value(directory, "memory.max"), value(directory, "memory.swap.max")) == (str(32 << 20), "max")
    assert value(directory, "pids.max") == "max"


def test_a_process_too_many(clean: Engine) -> None:
    """--pids-limit makes fork fail, and nothing else."""
    script = "sleep 9 & sleep 9 & sleep 9 & wait"
    done = clean.docker("run", "--rm", "--pids-limit", "3", "busybox", "sh", "-c", script, check=False)
    assert "can't fork" in done.stderr


def test_a_group_of_its_own(clean: Engine) -> None:
    """A container sees its own group as the root, read-only; --cgroupns host shows it where it is."""
    script = "cat /proc/self/cgroup; cd /sys/fs/cgroup; cat cgroup.procs; mkdir x; grep ' /sys/fs/cgroup ' /proc/mounts"
    done = clean.docker("run", "--rm", "busybox", "sh", "-c", script)
    own, first, *_, mounted = done.stdout.splitlines()
    assert (own, first) == ("0::/", "1")
    assert "Read-only file system" in done.stderr
    assert mounted.split()[2] == "cgroup2"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mounted.split()[3].split(","))
    shown = clean.out("run", "--rm", "--cgroupns", "host", "busybox", "cat", "/proc/self/cgroup")
    assert re.fullmatch(r"0::/docker/[0-9a-f]{64}", shown)


def test_privileged_sees_the_machine(clean: Engine) -> None:
    """The machine's own groups, writable, and every device."""
    script = (
        "cat /proc/self/cgroup; mkdir /sys/fs/cgroup/made && rmdir /sys/fs/cgroup/made && : </dev/kmsg && echo open"
    )
    own, opened = clean.out("run", "--rm", "--privileged", "busybox", "sh", "-c", script).splitlines()
    assert own.startswith("0::/docker/")
    assert opened == "open"


def test_devices(clean: Engine) -> None:
    """A device that no rule names can be made but not opened: the filter is a program of the kernel's."""
    script = "mknod /n c 10 229; : </n && echo open"
    denied = clean.docker("run", "--rm", "busybox", "sh", "-c", script, check=False)
    assert "Operation not permitted" in denied.stderr
    assert clean.out("run", "--rm", "--device-cgroup-rule", "c 10:229 rw", "busybox", "sh", "-c", script) == "open"
    assert (
        clean.out("run", "--rm", "--device", "/dev/fuse", "busybox", "sh", "-c", ": </dev/fuse && echo open") == "open"
    )
    half = "mknod /n c 10 229; (: </n) && echo read; (: >/n) || echo no"
    assert clean.out("run", "--rm", "--device-cgroup-rule", "c 10:229 r", "busybox", "sh", "-c", half).split() == [
        "read",
        "no",
    ]
    assert clean.out("run", "--rm", "busybox", "sh", "-c", "echo x >/dev/null && head -c1 /dev/zero | wc -c") == "1"


def test_devices_stay_closed_after_update(clean: Engine) -> None:
    """An update of limits leaves the device filter in force."""
    sleeping(clean)
    clean.docker("update", "--memory", "64m", "--memory-swap", "64m", "box")
    done = clean.docker("exec", "box", "sh", "-c", "mknod /n c 10 229; : </n", check=False)
    assert "Operation not permitted" in done.stderr


def test_exec_is_in_the_container_s_group(clean: Engine) -> None:
    """And sees the same root of groups."""
    directory = sleeping(clean)
    assert clean.out("exec", "box", "cat", "/proc/self/cgroup") == "0::/"
    clean.docker("exec", "-d", "box", "sleep", "999")
    await_true(lambda: len(value(directory, "cgroup.procs").split()) == 2, "the process is not in the group")


def test_pause(clean: Engine) -> None:
    """Is the group's freezer."""
    directory = sleeping(clean)
    clean.docker("pause", "box")
    assert "frozen 1" in value(directory, "cgroup.events")
    assert clean.out("inspect", "-f", "{{.State.Status}}", "box") == "paused"
    clean.docker("unpause", "box")
    assert "frozen 0" in value(directory, "cgroup.events")
    clean.docker("pause", "box")
    clean.docker("rm", "-f", "box")
    assert not directory.exists()


def test_stats(clean: Engine) -> None:
    """Of v2, by the CLI and by the API."""
    script = (
        "head -c 8000000 /dev/urandom >x; sync; v=$(head -c 8000000 /dev/zero | tr '\\0' a); echo up; sleep 99 & wait"
    )
    clean.docker("run", "-d", "--name", "box", "--memory", "64m", "--pids-limit", "9", "busybox", "sh", "-c", script)
    await_true(lambda: clean.out("logs", "box") == "up", "the container is not up")
    row = json.loads(clean.out("stats", "--no-stream", "--format", "{{json .}}", "box"))
    assert row["MemUsage"].endswith("/ 64MiB")
    assert float(re.match(r"[\d.]+", row["MemUsage"])[0]) > 7  # type: ignore[index]
    assert row["PIDs"] == "2"
    url = "http://localhost/containers/box/stats?stream=false"
    done = subprocess.run(
        ["curl", "-sS", "--unix-socket", clean.socket, url], capture_output=True, text=True, check=True
    )
    stats = json.loads(done.stdout)
    memory = stats["memory_stats"]
    assert memory["limit"] == 64 << 20
    assert memory["usage"] > 8_000_000
    assert memory["stats"]["anon"] > 7_000_000
    assert {"file", "inactive_file", "pgfault", "slab", "sock"} <= memory["stats"].keys()
    assert stats["pids_stats"] == {"current": 2, "limit": 9}
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert {entry["op"] for entry in stats["blkio_stats"]["io_service_bytes_recursive"] or []} <= {"read", "write"}


def test_out_of_memory(clean: Engine) -> None:
    """Told by an event and by inspect, of a child of the first process too."""
    events = clean.popen("events", "--filter", "event=oom", "--format", "{{.Actor.Attributes.name}}")
    try:
        script = "(x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $x | wc -c); sleep 1000"
        options = ("--memory", "20m", "--memory-swap", "20m")
        clean.docker("run", "-d", "--name", "oom", *options, "busybox", "sh", "-c", script)
        assert events.stdout is not None
        assert events.stdout.readline() == b"oom\n"
    finally:
        events.terminate()
        events.communicate()
    assert clean.out("inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}}", "oom") == "true true"


def test_a_parent_of_one_s_own(clean: Engine) -> None:
    """--cgroup-parent: controllers reach it too, and several levels down."""
    docker_options = ("--cgroup-parent", "/test-parent/inner", "--memory", "64m", "--name", "box")
    try:
        clean.docker("run", "-d", *docker_options, "busybox", "sleep", "1000")
        directory = ROOT / "test-parent/inner" / clean.out("inspect", "-f", "{{.Id}}", "box")
        assert value(directory, "memory.max") == str(64 << 20)
    finally:
        clean.remove_containers()
        for path in (ROOT / "test-parent/inner", ROOT / "test-parent"):
            path.rmdir()


def test_nothing_is_left(clean: Engine) -> None:
    """A removed container's group is gone, with groups that were made inside."""
    directory = sleeping(clean, "--privileged", "--cgroupns", "private")
    clean.docker("exec", "box", "mkdir", "-p", "/sys/fs/cgroup/a/b")
    assert (directory / "a/b").is_dir()
    clean.docker("rm", "-f", "box")
    assert not directory.exists()
