"""What those who call a runtime count on, beyond the letter of the specification; the same with RUNTIME's."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import uuid
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


def test_container_hooks_start_in_the_root_file_system(runtime, hook) -> None:
    """createContainer hooks run before the change of root: relative paths are the container's."""
    runtime.bundle.config["hooks"] = {"createContainer": [hook("here", "echo made >./tmp/mark")]}
    assert runtime.output("cat", "/tmp/mark") == "made"


def test_hooks_of_the_container_are_under_its_seccomp_filter(runtime) -> None:
    """A startContainer hook can do no more than the program."""
    runtime.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    runtime.bundle.config["hooks"] = {
        "startContainer": [{"path": "/bin/mkdir", "args": ["mkdir", "/tmp/x"], "env": ["PATH=/bin"]}]
    }
    done = runtime.run("true")
    assert done.returncode != 0
    assert re.search(r"error running (startContainer )?hook #0: .*bad system call", done.stderr)
    assert not (runtime.bundle.rootfs / "tmp/x").exists()


def test_hooks_of_the_container_have_its_environment(runtime) -> None:
    """One without an environment of its own gets the process's, and nothing of the caller's."""
    runtime.bundle.process["env"] = ["PATH=/bin", "ONE=two"]
    (runtime.bundle.rootfs / "hook.sh").write_text("#!/bin/sh\nenv >/tmp/hook.env\n")
    (runtime.bundle.rootfs / "hook.sh").chmod(0o755)
    runtime.bundle.config["hooks"] = {"startContainer": [{"path": "/hook.sh"}]}
    assert runtime.run("true", env={**os.environ, "OF_THE_CALLER": "1"}).returncode == 0
    out = (runtime.bundle.rootfs / "tmp/hook.env").read_text()
    assert "ONE=two\n" in out
    assert "OF_THE_CALLER" not in out


@pytest.mark.usefixtures("ours_only")  # others have needs of their own
def test_a_strict_profile_lets_the_program_start(runtime) -> None:
    """The runtime needs nothing behind the filter that a program does not need: not even close_range(2)."""
    needed = (
        *("access", "arch_prctl", "brk", "close", "dup2", "execve", "execveat", "exit", "exit_group", "fcntl", "fstat"),
        *("futex", "getpid", "getppid", "getrandom", "getuid", "ioctl", "lseek", "mmap", "mprotect", "munmap", "open"),
        *("newfstatat", "openat", "poll", "prctl", "prlimit64", "read", "readlink", "readlinkat", "rseq", "setgid"),
        *(
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "set_robust_list",
            "set_tid_address",
            "setuid",
            "sigaltstack",
        ),
        *("stat", "uname", "write", "writev", "getcwd", "geteuid", "getgid", "getegid", "wait4", "statx", "sysinfo"),
    )
    runtime.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": list(needed), "action": "SCMP_ACT_ALLOW"}],
    }
    assert runtime.output("echo", "started") == "started"


def test_terminal_output_has_plain_newlines(runtime) -> None:
    """Where the output goes is no terminal, or one that adds the carriage return itself."""
    runtime.bundle.process["terminal"] = True
    runtime.bundle.write("echo", "a line")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        runtime.argv("run", runtime.id),
        cwd=runtime.bundle.path,
        stdin=theirs,
        capture_output=True,
        timeout=60,
        check=True,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the controlling terminal
    )
    assert done.stdout == b"a line\n"
    os.close(ours)
    os.close(theirs)


def test_exec_stays_below_the_container_s_group(runtime) -> None:
    """`--cgroup ..` is refused, a missing group is named."""
    runtime.detached("sleep", "100")
    for path in ("..", "a/../../b"):
        done = runtime.exec("true", flags=("--cgroup", path))
        assert done.returncode == 255
        assert f"{path} is not a sub cgroup path" in done.stderr
    done = runtime.exec("true", flags=("--cgroup", "missing"))
    assert re.search(r" adding pid .*/missing/cgroup.procs: no such file ", done.stderr)


def test_a_frozen_group_is_refused_and_left_alone(runtime, groups) -> None:
    """It is somebody else's."""
    runtime.bundle.linux["cgroupsPath"] = f"/{runtime.id}"
    group = CGROUPS / ("" if groups.unified else "freezer") / runtime.id
    group.mkdir()
    state, frozen, thawed = ("cgroup.freeze", "1", "0") if groups.unified else ("freezer.state", "FROZEN", "THAWED")
    try:
        (group / state).write_text(frozen)
        for _ in range(2):
            done = runtime.run("true")
            assert done.returncode == 1
            assert "container's cgroup unexpectedly frozen" in done.stderr
        (group / state).write_text(thawed)
    finally:
        group.rmdir()
    assert runtime.run("true").returncode == 0


@pytest.mark.usefixtures("ours_only")  # older ones only warn
def test_refusing_a_group_in_use_touches_nothing(runtime) -> None:
    """Neither the group nor its limits, and nothing has to be said about it."""
    runtime.bundle.linux["cgroupsPath"] = f"/{runtime.id}"
    runtime.bundle.linux["resources"]["pids"] = {"limit": 77}
    runtime.detached("sleep", "100")
    runtime.bundle.linux["resources"]["pids"] = {"limit": 88}
    runtime.bundle.write()
    done = runtime.call("run", f"{runtime.id}-second")
    assert "unable to remove" not in done.stderr
    assert not (runtime.root / f"{runtime.id}-second").exists()
    assert runtime.exec("sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max").stdout == "77\n"


def test_v2_resources_without_v2_are_a_wrong_configuration(runtime, groups) -> None:
    """`unified` says what to write to files that v1 does not have."""
    if groups.unified:
        pytest.skip("this machine has v2")
    runtime.bundle.linux["resources"]["unified"] = {"memory.min": "131072"}
    done = runtime.run("true")
    assert done.returncode == 1
    assert "invalid configuration" in done.stderr


def test_period_and_quota_go_in_the_order_that_the_group_above_allows(runtime, groups) -> None:
    """With a limit above, either of them alone may be too much."""
    if groups.unified:
        pytest.skip("v2 writes both at once")
    above = CGROUPS / "cpu" / f"gantry-test-{uuid.uuid4().hex[:12]}"
    above.mkdir()
    try:
        (above / "cpu.cfs_period_us").write_text("50000")
        (above / "cpu.cfs_quota_us").write_text("30000")
        runtime.bundle.linux["cgroupsPath"] = f"/{above.name}/{runtime.id}"
        runtime.bundle.linux["resources"]["cpu"] = {"period": 100000, "quota": 60000}
        runtime.detached("sleep", "100")
        files = [above / runtime.id / f"cpu.cfs_{name}_us" for name in ("period", "quota")]
        assert [path.read_text() for path in files] == ["100000\n", "60000\n"]
        for period, quota in (("10000", "3000"), ("50000", "29000")):
            runtime.call("update", "--cpu-period", period, "--cpu-quota", quota, runtime.id, check=True)
            assert [path.read_text().strip() for path in files] == [period, quota]
        runtime.delete()
    finally:
        for directory in CGROUPS.glob(f"*/{above.name}"):
            directory.rmdir()


def test_an_io_weight_needs_no_particular_scheduler(runtime, groups) -> None:
    """Since Linux 5.0 weights are BFQ's, whose files have another name."""
    blkio = CGROUPS / "blkio"
    if groups.unified or not any((blkio / name).exists() for name in ("blkio.weight", "blkio.bfq.weight")):
        pytest.skip("no weights in the blkio controller")
    runtime.bundle.linux["resources"]["blockIO"] = {"weight": 333}
    name = next(name for name in ("blkio.weight", "blkio.bfq.weight") if (blkio / name).exists())
    assert runtime.output("cat", f"/sys/fs/cgroup/blkio/{name}") == "333"


def test_accesses_without_meaning_are_passed_over(runtime) -> None:
    """Configurations in the wild have an `a` among the accesses of a device rule."""
    runtime.bundle.linux["resources"]["devices"] = [
        {"allow": False, "access": "rwm"},
        {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwa"},
    ]
    runtime.bundle.linux["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    done = runtime.run("head", "-c", "1", "/dev/kmsg")
    assert done.returncode == 1
    assert "not permitted" in done.stderr


def test_a_place_can_be_named_as_the_host_sees_it(runtime, tmp_path: Path) -> None:
    """A destination that begins with the root file system's own path is inside it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("here")
    (runtime.bundle.rootfs / "mnt/x").mkdir(parents=True)
    runtime.bundle.mount(f"{runtime.bundle.rootfs}/mnt/x", "bind", str(tmp_path / "source"), "bind")
    assert runtime.output("cat", "/mnt/x/file") == "here"


def test_a_tmpfs_on_a_new_place_is_for_everybody(runtime) -> None:
    """It takes over the mode of a directory that was there; where there was none it is tmpfs's own."""
    (runtime.bundle.rootfs / "there").mkdir(mode=0o710)
    for place in ("/there", "/missing/below"):
        runtime.bundle.mount(place, "tmpfs", "tmpfs", "nosuid")
    assert runtime.output("stat", "-c", "%a", "/there", "/missing/below").split() == ["710", "1777"]


def test_added_capabilities_are_ambient_where_some_are_inheritable(runtime) -> None:
    """exec --cap: bounding, effective, permitted; ambient only with an inheritable set in the configuration."""
    runtime.bundle.process["capabilities"] = {
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"],
        "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"],
        "ambient": ["CAP_CHOWN"],
    }
    runtime.detached("sleep", "100")
    out = runtime.exec("grep", "Cap", "/proc/self/status", flags=("--cap", "CAP_SYSLOG")).stdout
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in out.splitlines()}
    chown, kill, syslog = 1 << 0, 1 << 5, 1 << 34
    assert sets == {
        "CapInh": chown | syslog,
        "CapPrm": chown | kill | syslog,
        "CapEff": chown | kill | syslog,
        "CapBnd": chown | kill | syslog,
        "CapAmb": chown | syslog,
    }


@pytest.mark.parametrize("command", ["checkpoint", "restore", "run", "exec"])
def test_every_command_has_a_help(runtime, command: str) -> None:
    """Those that are not supported as well."""
    done = runtime.call(command, "-h", check=True)
    assert done.stdout.splitlines()[1].startswith(f"   runc {command}")


def test_debug_tells_the_steps(runtime, tmp_path: Path) -> None:
    """In the log, not among the output."""
    log = tmp_path / "log"
    runtime.bundle.write("echo", "hello")
    done = runtime.call("--debug", "--log", str(log), "--log-format", "json", "run", runtime.id, check=True)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) > 2
    assert {record["level"] for record in records} == {"debug"}


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_a_created_container_ends_when_asked_to(runtime, name: str) -> None:
    """Its first process waits for `start`, and the kernel would keep such signals from it."""
    runtime.create("sleep", "100")
    runtime.call("kill", runtime.id, name, check=True)
    runtime.wait_stopped()
    assert runtime.state()["status"] == "stopped"


@pytest.mark.usefixtures("ours_only")  # older ones need --all
def test_killing_reaches_everybody_where_the_first_process_takes_nobody_with_it(runtime) -> None:
    """A container in the host's pid namespace; also when its first process is gone already."""
    runtime.bundle.linux["namespaces"] = [n for n in runtime.bundle.linux["namespaces"] if n["type"] != "pid"]
    for killed_before in (False, True):
        runtime.detached("sh", "-c", "sleep 100 & sleep 100 & wait")
        pid = runtime.state()["pid"]
        others = Path(f"/proc/{pid}/task/{pid}/children")
        while len(others.read_text().split()) < 2:
            os.sched_yield()
        watched = [os.pidfd_open(int(other)) for other in others.read_text().split()]
        if killed_before:
            os.kill(pid, 9)
            runtime.wait_stopped()
        runtime.call("kill", runtime.id, "KILL", check=True)
        for fd in watched:
            assert select.select([fd], [], [], 30)[0]
            os.close(fd)
        runtime.reap()
        runtime.delete()


def test_a_burst_can_be_taken_back(runtime, groups) -> None:
    """0 is a value, not the absence of one."""
    name = "cpu.max.burst" if groups.unified else "cpu/cpu.cfs_burst_us"
    if not groups.unified and not list((CGROUPS / "cpu").glob("*/cpu.cfs_burst_us")):
        pytest.skip("a kernel without bursts")
    runtime.detached("sleep", "100")
    for value in ("50000", "0"):
        runtime.call(
            "update", "--cpu-quota", "50000", "--cpu-period", "100000", "--cpu-burst", value, runtime.id, check=True
        )
        assert runtime.exec("cat", f"/sys/fs/cgroup/{name}").stdout.strip() == value


@pytest.mark.usefixtures("ours_only")  # older ones mount twice
def test_a_path_is_masked_once(runtime) -> None:
    """However often it is listed, and however it is written."""
    (runtime.bundle.rootfs / "secret").mkdir()
    runtime.bundle.linux["maskedPaths"] = ["/secret", "/secret/", "/./secret"]
    assert runtime.output("grep", "-c", " /secret ", "/proc/self/mounts") == "1"
